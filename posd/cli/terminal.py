"""The encodings of the arguments and output streams of `posctl`."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Sequence
from typing import Final, TextIO, cast

_ERRORS: Final = "posctl"
_PLAIN: Final = {
    "–": "-",
    "—": "-",
    "…": ".",
    "→": ">",
    "’": "'",
    "“": '"',
    "”": '"',
    "×": "x",
    "\N{NO-BREAK SPACE}": " ",
}
"""Replacements for characters of posctl's own texts in an encoding without them. Each is one character,
so that the columns of tables stay aligned."""


def prepare() -> None:
    """Make standard output and standard error accept all characters. Call it before any output.

    Characters outside the encoding are replaced, because a command must not fail while it prints the
    result of completed work. A stream that the caller has closed (`>&-`) becomes /dev/null.
    """
    codecs.register_error(_ERRORS, _replaced)
    for name in ("stdout", "stderr"):
        stream = cast(TextIO | None, getattr(sys, name))
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def unusable(arguments: Sequence[str]) -> str | None:
    """Return a sentence about the first argument that is not text, or None."""
    for number, argument in enumerate(arguments, 1):
        if "\0" in argument:
            return f"Argument {number} contains a NUL character."
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            # Python passes bytes outside the locale's encoding as surrogates (PEP 383).
            return f"Argument {number} is not text in the encoding of this terminal."
    return None


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in text), error.end
