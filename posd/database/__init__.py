"""Connections to PostgreSQL, how they reconnect, and the schemas that posd installs.

Statements about tenants, orders or tills belong in `posd.store`.
"""
