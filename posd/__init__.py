"""posd: a restaurant's online orders reach its tills, at once, every one, once, in order."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
