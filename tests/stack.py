"""How deep the stack of calls is."""

from __future__ import annotations

import sys


def stack_depth() -> int:
    """The number of frames below this call; `inspect.stack` looks for the source of each of them."""
    frame, count = sys._getframe(), 0
    while (below := frame.f_back) is not None:
        frame, count = below, count + 1
    return count
