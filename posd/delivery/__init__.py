"""From the committed event to the terminal: feed, channels, sessions, cursors and presence.

Nothing here speaks HTTP or WebSocket; `posd.web` does, and hands over a transport."""
