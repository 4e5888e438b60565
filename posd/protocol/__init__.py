"""Bytes and JSON texts on the wire: messages, encodings, frames and cursors, without I/O."""
