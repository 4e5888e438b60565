"""The network interface of posd: WebSockets, server-sent events and HTTP on one port.

The rules of delivery and publishing are in `posd.delivery` and `posd.publishing`.
"""
