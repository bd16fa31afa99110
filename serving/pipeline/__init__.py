"""The pipeline: the stages in their order, and one request on its way through them, whatever is slow, gone or on trial.

    pipeline                   every stage, in the order in which they run
    ladder, job, fallback      from a query to a list before its deadline, or to the best list there is then
    workers, turns, circuit    the threads that compute it, and what spares them a part that keeps failing
    live, holdings             the releases that answer
    releases, trial, attempt   one of them on trial
    wire                       the request on its way to another deployment, and back

No HTTP and no Ray: a call to another deployment comes in as an argument.
"""
