"""Values that can be recognised wherever they turn up, also in pieces and in other clothes.

A `Canary` stands for something that is nobody's business: a key, a card, a customer. `Canaries.found`
looks for so many of its characters in a row as would be too many, as they are, in hexadecimal,
base64 and percent-encoding, in small letters or capitals, and once more after everything that could
stand between two pieces of it was taken away. Of keys it knows the SHA-256 too.
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
"""Of an encoded form so many characters in a row are looked for."""


@frozen
class Canary:
    """A value; `most` of its characters in a row may be told, as the end of a card may be."""

    name: str
    text: str
    most: int
    is_key: bool = False

    def pieces(self, text: str) -> Iterator[str]:
        """What must not be found anywhere, of this text in the place of its own."""
        yield from _windows(text, self.most + 1)
        raw = text.encode()
        yield from _windows(raw.hex(), _ENCODED)
        yield from _windows(urllib.parse.quote(text, safe=""), max(_ENCODED, self.most + 1))
        yield from _windows("".join(f"%{byte:02x}" for byte in raw), _ENCODED)
        for start in range(3):
            # Where it begins within three bytes; what depends on its neighbours is left out.
            encoded = base64.b64encode(bytes(start) + raw).decode()[4:-4]
            yield from _windows(encoded, _ENCODED)
            yield from _windows(encoded.translate({ord("+"): "-", ord("/"): "_"}), _ENCODED)
        if self.is_key:
            digest = hashlib.sha256(raw)
            yield from _windows(digest.hexdigest(), _ENCODED)
            yield from _windows(base64.b64encode(digest.digest()).decode(), _ENCODED)


@define(eq=False)
class Canaries:
    """All that must be found nowhere."""

    _whole: dict[str, str] = field(init=False, factory=dict)
    _joined: dict[str, str] = field(init=False, factory=dict)

    def add(self, canaries: Iterable[Canary]) -> None:
        for each in canaries:
            self._whole |= dict.fromkeys(map(str.lower, each.pieces(each.text)), each.name)
            joined = _BETWEEN.sub("", each.text)
            self._joined |= dict.fromkeys(map(str.lower, each.pieces(joined)), each.name)

    def found(self, text: str) -> dict[str, str]:
        """The names of those that a text gives away, each with what stands around it."""
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
    """All pieces of a size; the whole where it is no longer."""
    if len(text) <= size:
        yield text
    for start in range(len(text) - size + 1):
        yield text[start : start + size]
