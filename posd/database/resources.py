"""Where the files that come with posd are, whether it is installed or run from a checkout.

In a checkout they are top-level folders, where people look for them. A wheel has them inside the
package as `posd/data`; setup.py says how one becomes the other.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

_INSTALLED: Final = files("posd") / "data"
_CHECKOUT: Final = Path(__file__).resolve().parents[2]


def sql() -> Traversable:
    """The folder with `bootstrap.sql`, `hooks.sql`, `main/` and `tenant/`."""
    return _folder("sql", "sql")


def example_config() -> Traversable:
    """`posd.toml` as it is installed in /etc/posd, with every key explained."""
    return _folder("etc", "etc/posd") / "posd.toml"


def systemd() -> Traversable:
    """The folder with the units, `sysusers.d/` and `tmpfiles.d/`."""
    return _folder("systemd", "systemd")


def systemd_unit(name: str = "posd.service") -> Traversable:
    """One of systemd's files, by its path in that folder."""
    return systemd() / name


def _folder(installed: str, checkout: str) -> Traversable:
    folder = _INSTALLED / installed
    return folder if folder.is_dir() else _CHECKOUT / checkout
