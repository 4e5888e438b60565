"""How a key is made, shown in lists, and looked up. What the database has of it is its SHA-256.

A key of posd's own has 32 random bytes, for which a plain hash is enough: nobody guesses it.
"""

from __future__ import annotations

import hashlib
import secrets

from attrs import field, frozen


@frozen
class NewKey:
    """A key that was just made. `secret` is for whoever will use it, and is kept nowhere."""

    secret: str = field(repr=False)

    @property
    def sha256(self) -> bytes:
        return digest(self.secret)

    @property
    def preview(self) -> str:
        """What tells it from others in a list."""
        return f"{self.secret[:8]}…{self.secret[-4:]}"


def make() -> NewKey:
    """A key that nobody had before."""
    return NewKey(f"pos_{secrets.token_bytes(32).hex()}")


def digest(secret: str) -> bytes:
    """What a key is looked up by."""
    return hashlib.sha256(secret.encode()).digest()
