"""`bespoke doctor`: looks at everything that the service stands on, changes nothing, and says what to do.

It works on a machine where nothing was ever started, and beside a running service.
"""
