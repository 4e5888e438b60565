"""The HTTP server: parsing, routing, authentication, limits and errors.

The operations themselves are in `posd.web.api`.
"""
