"""From a committed event to a terminal: feed, channels, sessions, cursors and presence.

HTTP and WebSocket do not belong here: `posd.web` speaks them and passes a transport.
"""
