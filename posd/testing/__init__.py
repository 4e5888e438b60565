"""What the tests and the demonstration run on: a PostgreSQL server of their own, a daemon process.

Nothing is imported here, so that a test imports only what it uses. The daemon does not import it.
"""
