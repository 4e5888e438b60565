"""The network interface of posd: WebSockets, server-sent events and HTTP on one port.

Rules of delivery and publishing belong in the packages of those names.
"""
