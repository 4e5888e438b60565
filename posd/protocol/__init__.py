"""Bytes and JSON texts on the wire: messages, wire formats, frames and cursors.

Nothing here does I/O, and nothing here decides who receives an event.
"""
