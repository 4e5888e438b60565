"""Generating and hashing keys. The database stores the SHA-256 of a key.

A key that posd generates has 32 random bytes. A plain hash is enough, because such a key cannot be guessed.
"""

from __future__ import annotations

import hashlib
import secrets

from attrs import field, frozen


@frozen
class NewKey:
    """A new key. `secret` is shown once and is not stored."""

    secret: str = field(repr=False)

    @property
    def sha256(self) -> bytes:
        return digest(self.secret)

    @property
    def preview(self) -> str:
        """The first 8 and the last 4 characters, which identify the key in a list."""
        return f"{self.secret[:8]}…{self.secret[-4:]}"


def make() -> NewKey:
    """Generate a key."""
    return NewKey(f"pos_{secrets.token_bytes(32).hex()}")


def digest(secret: str) -> bytes:
    """Return the SHA-256 of a key, by which the key is looked up."""
    return hashlib.sha256(secret.encode()).digest()
