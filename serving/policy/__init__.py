"""Policy: what an operator wants shown, as documents compiled into one immutable object.

    conditions   a small typed tree, evaluated on one row or as a mask over all items
    columns      the item table in the shape that masks need
    kinds        what store, API and compiler know of each kind of documents
    rules        include, exclude, boost, bury, pin, cap: one document each
    placements   how a spot in the application is filled
    contents     variants of which each person gets one, and alerts; contact says how often and when
    compiled     all of it, compiled for a version and bound to a segment of items

Nothing here knows a database, a web server or the order of the pipeline.
"""
