"""Functions of short texts that are asked again and again: what they returned is kept, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Sized
from functools import lru_cache, wraps
from typing import Final, TypeVar

K = TypeVar("K", bound=Sized)
T = TypeVar("T")

_MAX_RESULTS: Final = 1024
_MAX_ARGUMENT_LENGTH: Final = 256
"""A longer text is not kept: 1,024 request targets could have 16 MiB."""


def memoize(function: Callable[[K], T]) -> Callable[[K], T]:
    """Keep the results for the 1,024 short arguments that were used last. The results must not be changed."""
    kept = lru_cache(_MAX_RESULTS)(function)

    @wraps(function)
    def ask(argument: K) -> T:
        # mypy takes `kept` for one of any hashable arguments, which texts and tuples of texts are.
        return kept(argument) if len(argument) <= _MAX_ARGUMENT_LENGTH else function(argument)  # type: ignore[arg-type]

    return ask
