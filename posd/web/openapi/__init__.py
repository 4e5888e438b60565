"""The description of the HTTP API, generated from the operations and from the types of their requests.

Texts about an operation belong to the operation in `posd.web.api`, not here.
"""
