"""The programs that are measured besides the daemon. Each is called as ``SCRIPT URL DATABASE EVENTS ROWS``.

A program subscribes on the load generator at URL and prints ``ready``. It prints ``done`` after it has received EVENTS
events of ROWS rows each, or, if it is a writer, has committed them. DATABASE is ``-`` for programs that only count.
"""
