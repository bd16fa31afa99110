"""Stages: one file a kind. Each is a class with one method, which is given the work of a request and keeps nothing of it.

    filters, sources, past     retrieval: what may be on the list, and who finds it
    scorers                    ranking, and the boosts of rules
    dial, selectors            rules: what the list aims at, and which candidate takes which place
    effects                    what is done with the answer after it went out

`stage` is the framework around them; the order in which they run is in `serving/pipeline/pipeline.py`.
"""
