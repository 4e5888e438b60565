"""Credentials, limits, addresses and TLS: who may connect, and how much each may ask."""
