"""Keys, rate limits, client addresses and TLS.

The operations of authenticated callers are in `posd.web.api`.
"""
