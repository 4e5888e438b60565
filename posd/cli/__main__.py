"""`python -m posd.cli` is the same as `posctl`."""

from __future__ import annotations

from posd.cli import main

main()
