"""The request: what is asked, what is read for it once, and the candidates on their way. This is what a stage is given.

    query           what is asked, and what is answered
    snapshot        what a request reads once and keeps to the end
    catalogue       the items of that snapshot
    candidates      the items on their way to the list
    work            all of it together, with what the stages have found so far

The others are what a request finds out about its person when somebody asks: their arms, behaviour, and what they will need
again. No HTTP, no Ray, and no stage.
"""
