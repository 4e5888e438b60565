"""Delivers committed events to terminals: feed, channels, sessions, cursors and presence.

This package has no HTTP and no WebSocket. `posd.web` implements them and passes transports.
"""
