"""Who is measured besides the daemon. Each is a program: ``SCRIPT URL DATABASE EVENTS ROWS``.

It subscribes on the load generator at URL, says ``ready``, and says ``done`` when it has EVENTS events of ROWS rows
each (or, the writers, has committed them).
"""
