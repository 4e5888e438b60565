"""Where the files that come with posd are, in a checkout."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path


def sql() -> Traversable:
    """The folder with `bootstrap.sql`, `hooks.sql`, `main/` and `tenant/`."""
    return Path(__file__).resolve().parent.parent / "sql"
