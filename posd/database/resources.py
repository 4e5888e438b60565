"""The places of posd's data files, in an installation and in a checkout.

In a checkout they are top-level folders. In a wheel they are inside the package, as `posd/data`; setup.py
copies them there.
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
    """A file of the folder `systemd`, by its path in it."""
    return systemd() / name


def _folder(installed: str, checkout: str) -> Traversable:
    folder = _INSTALLED / installed
    return folder if folder.is_dir() else _CHECKOUT / checkout
