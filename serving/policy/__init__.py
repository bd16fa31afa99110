"""Policy: what an operator wants shown, as documents compiled into one immutable object.

    conditions   a small typed tree, evaluated on one row or as a mask over all items
    columns      the item table in the shape that masks need
    rules        include, exclude, boost, bury, pin, cap: one document each
    placements   how a spot in the application is filled
    compiled     all of it, compiled for a version and bound to a segment of items

Nothing here knows a database, a web server or the order of the pipeline.
"""
