"""Credentials, limits, addresses and TLS: who may connect, and how much a caller may ask for.

What an authenticated caller asks for belongs in `posd.web.api`.
"""
