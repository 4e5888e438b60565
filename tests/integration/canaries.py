"""Values that can be recognised in any output, also in part or encoded.

A `Canary` stands for a confidential value: a key, a card, a customer. `Canaries.found` searches a text
for more of its characters in a row than allowed: as they are, in hexadecimal, base64 and
percent-encoding, in small letters or capitals, and again after the removal of separators. For keys it
also searches the SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Final

from attrs import define, field, frozen

_BETWEEN: Final = re.compile(r"[\s\-_.,;:|/\\'\"<>()\[\]{}…]+")
_ENCODED: Final = 16
"""The number of characters in a row of an encoded form that is searched."""


@frozen
class Canary:
    """A confidential value. `most` of its characters in a row are allowed."""

    name: str
    text: str
    most: int
    is_key: bool = False

    def pieces(self, text: str) -> Iterator[str]:
        """Return the pieces that must not be found, for this text in place of its own."""
        yield from _windows(text, self.most + 1)
        raw = text.encode()
        yield from _windows(raw.hex(), _ENCODED)
        yield from _windows(urllib.parse.quote(text, safe=""), max(_ENCODED, self.most + 1))
        yield from _windows("".join(f"%{byte:02x}" for byte in raw), _ENCODED)
        for start in range(3):
            # Its offset within three bytes. Leave out what depends on neighbouring bytes.
            encoded = base64.b64encode(bytes(start) + raw).decode()[4:-4]
            yield from _windows(encoded, _ENCODED)
            yield from _windows(encoded.translate({ord("+"): "-", ord("/"): "_"}), _ENCODED)
        if self.is_key:
            digest = hashlib.sha256(raw)
            yield from _windows(digest.hexdigest(), _ENCODED)
            yield from _windows(base64.b64encode(digest.digest()).decode(), _ENCODED)


@define(eq=False)
class Canaries:
    """All values that must not be found."""

    _whole: dict[str, str] = field(init=False, factory=dict)
    _joined: dict[str, str] = field(init=False, factory=dict)

    def add(self, canaries: Iterable[Canary]) -> None:
        for each in canaries:
            self._whole |= dict.fromkeys(map(str.lower, each.pieces(each.text)), each.name)
            joined = _BETWEEN.sub("", each.text)
            self._joined |= dict.fromkeys(map(str.lower, each.pieces(joined)), each.name)

    def found(self, text: str) -> dict[str, str]:
        """Return the names of the values that a text contains, each with its surroundings."""
        seen: dict[str, str] = {}
        lower = text.lower()
        for said, pieces in ((lower, self._whole), (_BETWEEN.sub("", lower), self._joined)):
            for size in {*map(len, pieces)}:
                there = {said[start : start + size] for start in range(len(said) - size + 1)}
                for piece in there & pieces.keys():
                    place = said.index(piece)
                    seen.setdefault(pieces[piece], said[max(0, place - 80) : place + 120])
        return seen


def _windows(text: str, size: int) -> Iterator[str]:
    """Return all substrings of a size, or the whole text if it is shorter."""
    if len(text) <= size:
        yield text
    for start in range(len(text) - size + 1):
        yield text[start : start + size]
