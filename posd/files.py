"""Reading of small files that a person or another program has written: configuration, PEM, keys.

This module imports no other module of posd, so that every package can use it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

MAX_SIZE: Final = 16 << 20
"""Bytes. The files that posd reads are shorter. The limit is for a large file that was named by mistake."""

_BYTE_ORDER_MARK: Final = "\ufeff"


def read_file(path: Path, max_size: int = MAX_SIZE) -> bytes:
    """Return the content of a regular file of at most `max_size` bytes.

    Raises OSError, also if the file is not a regular one: a named pipe would block the process until
    another process writes to the pipe, and a device may have no end.
    """
    # With O_NONBLOCK, the opening of a named pipe returns at once (open(2)). Regular files ignore the flag.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path)) from error
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        content = file.read(max_size + 1)
    if len(content) > max_size:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def decode_secret(content: bytes) -> str:
    """Return the text of a file that holds one secret: a key, a password, a connection string.

    The secret does not include white space at either end, or the newline, CRLF or byte order mark that
    editors, `echo` and Windows add. Raises UnicodeDecodeError if the content is not UTF-8.
    """
    return strip_secret(content.decode("utf-8"))


def strip_secret(text: str) -> str:
    """Return a secret without the white space, newlines and byte order mark around it."""
    return text.strip().removeprefix(_BYTE_ORDER_MARK).strip()
