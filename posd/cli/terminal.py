"""What `posctl` is called with and writes to: terminals, pipes and arguments of every encoding."""

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
"""How characters of our own texts are written where an encoding does not have them: by one character
each, so that the columns of tables stay in line."""


def prepare() -> None:
    """Make standard output and error take every character; call it before anything is printed.

    Characters that the encoding lacks are replaced: a command whose work is done must not fail
    while it tells so. A stream that the caller has closed (`>&-`) becomes /dev/null.
    """
    codecs.register_error(_ERRORS, _replaced)
    for name in ("stdout", "stderr"):
        stream = cast(TextIO | None, getattr(sys, name))
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def unusable(arguments: Sequence[str]) -> str | None:
    """Return why an argument is no text, in a sentence, or None if all of them are."""
    for number, argument in enumerate(arguments, 1):
        if "\0" in argument:
            return f"Argument {number} has a NUL character in it."
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            # Bytes that the locale's encoding does not have come as surrogates (PEP 383).
            return f"Argument {number} is no text in the encoding of this terminal."
    return None


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in text), error.end
