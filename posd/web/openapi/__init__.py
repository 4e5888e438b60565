"""The description of the HTTP API, generated from the types that validate requests.

What an operation accepts is written at the operation, not here.
"""
