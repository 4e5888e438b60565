"""Tests of several parts together: real PostgreSQL, real sockets."""
