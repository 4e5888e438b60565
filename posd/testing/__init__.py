"""What tests and the demonstration stand on: a PostgreSQL of their own, and fakes.

Nothing is imported here, so that a test pays only for what it uses.
"""
