"""Connections to PostgreSQL, how they heal, and the schema that posd installs.

Statements about tenants, orders or tills belong in `posd.store`."""
