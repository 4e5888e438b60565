"""PostgreSQL servers and daemon processes for the tests and for `posctl demo`.

This file imports nothing, so that a test imports only the modules it uses. The daemon does not import
this package.
"""
