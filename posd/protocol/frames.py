"""WebSocket frames of a server: unfragmented, unmasked, uncompressed (RFC 6455 §5).

posd makes the frame of an event once, and writes the same bytes to all tills.
"""

from __future__ import annotations

from struct import Struct

_FINAL = 0x80
_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA
_CONTROL_PAYLOAD = 125
"""The largest payload of a control frame (RFC 6455 §5.5)."""

_pack_medium_header = Struct(">BBH").pack

_CLOSE_CODES = frozenset({*range(1000, 1004), *range(1007, 1015)})
"""The close codes below 3000 that a frame may have (RFC 6455 §7.4.1 and IANA's registry).

1004 to 1006 and 1015 must not be sent.
"""


def text_frame(payload: bytes) -> bytes:
    """Return an unfragmented text frame with UTF-8 text (RFC 6455 §5.2)."""
    return _frame(_TEXT, payload)


def ping_frame(payload: bytes = b"") -> bytes:
    """Return a ping frame (RFC 6455 §5.5.2). Raises `ValueError` if the payload exceeds 125 bytes."""
    if len(payload) > _CONTROL_PAYLOAD:
        raise ValueError(f"A ping carries at most {_CONTROL_PAYLOAD} bytes.")
    return _frame(_PING, payload)


def pong_frame(payload: bytes) -> bytes:
    """Return a pong frame, which has the payload of the ping (RFC 6455 §5.5.3)."""
    return _frame(_PONG, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a close frame (RFC 6455 §5.5.1). The reason is cut between characters to 123 bytes.

    Raises `ValueError` if the code must not be sent (RFC 6455 §7.4).
    """
    if code not in _CLOSE_CODES and not 3000 <= code <= 4999:
        raise ValueError(f"{code} is not a close code that may be sent.")
    text = reason.encode()[: _CONTROL_PAYLOAD - 2].decode(errors="ignore").encode()
    return _frame(_CLOSE, code.to_bytes(2, "big") + text)


def _frame(opcode: int, payload: bytes) -> bytes:
    length = len(payload)
    if length <= 125:
        head = bytes((_FINAL | opcode, length))
    elif length < 1 << 16:
        head = _pack_medium_header(_FINAL | opcode, 126, length)
    else:
        head = bytes((_FINAL | opcode, 127)) + length.to_bytes(8, "big")
    return head + payload
