"""The codec of the protocol for tills: messages, wire formats, frames and cursors.

The functions do no I/O. `posd.delivery` decides which tills receive an event.
"""
