"""How an HTTP request becomes a call of an operation: parsing, routing, authentication, limits, errors.

What one operation does belongs in `posd.web.api`.
"""
