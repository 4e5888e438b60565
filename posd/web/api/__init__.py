"""The HTTP operations, one module for each group.

Authentication, limits and error responses are in `posd.web.http`.
"""
