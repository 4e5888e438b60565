"""`python -m posd.cli`: the same as `posctl`."""

from __future__ import annotations

from posd.cli import main

main()
