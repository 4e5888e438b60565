"""posd delivers a restaurant's online orders from PostgreSQL to its tills, each order once and in order."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
