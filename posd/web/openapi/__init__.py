"""The description of the HTTP API, generated from the types that validate requests."""
