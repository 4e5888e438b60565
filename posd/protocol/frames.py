"""WebSocket frames as posd writes them: whole, unmasked, uncompressed (RFC 6455 §5).

They are made once per event and written to every till as they are.
"""

from __future__ import annotations

from struct import Struct

_FINAL = 0x80
_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA
_CONTROL_PAYLOAD = 125
"""A control frame carries no more than this (RFC 6455 §5.5)."""

_pack_medium_header = Struct(">BBH").pack

_CLOSE_CODES = frozenset({*range(1000, 1004), *range(1007, 1015)})
"""Those a frame may carry: RFC 6455 §7.4.1 and IANA's registry; 1004–1006, 1015 never are."""


def text_frame(payload: bytes) -> bytes:
    """One unfragmented text frame around UTF-8 text (RFC 6455 §5.2)."""
    return _frame(_TEXT, payload)


def ping_frame(payload: bytes = b"") -> bytes:
    """A protocol ping (RFC 6455 §5.5.2); `ValueError` over 125 bytes."""
    if len(payload) > _CONTROL_PAYLOAD:
        raise ValueError(f"A ping carries at most {_CONTROL_PAYLOAD} bytes.")
    return _frame(_PING, payload)


def pong_frame(payload: bytes) -> bytes:
    """The answer to a protocol ping, with its payload (RFC 6455 §5.5.3)."""
    return _frame(_PONG, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame (RFC 6455 §5.5.1) with a reason, cut between characters to 123 bytes.

    Raises `ValueError` for a code that must not be sent (RFC 6455 §7.4).
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
