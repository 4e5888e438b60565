"""The HTTP operations, one module for each group.

Authentication, limits and errors are the same for all of them and belong in `posd.web.http`.
"""
