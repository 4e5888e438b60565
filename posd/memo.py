"""A cache with a limited size for the results of functions of short texts."""

from __future__ import annotations

from collections.abc import Callable, Sized
from functools import lru_cache, wraps
from typing import Final, TypeVar

K = TypeVar("K", bound=Sized)
T = TypeVar("T")

_MAX_RESULTS: Final = 1024
_MAX_ARGUMENT_LENGTH: Final = 256
"""A limit for memory: 1,024 cached request targets could otherwise have 16 MiB."""


def memoize(function: Callable[[K], T]) -> Callable[[K], T]:
    """Return `function` with a cache of its results for the last 1,024 short arguments.

    Callers must not change a result. Arguments of more than 256 characters are not cached.
    """
    cached = lru_cache(_MAX_RESULTS)(function)

    @wraps(function)
    def call(argument: K) -> T:
        # mypy wants a Hashable argument, and `K` is only Sized. Texts and tuples of texts are both.
        return cached(argument) if len(argument) <= _MAX_ARGUMENT_LENGTH else function(argument)  # type: ignore[arg-type]

    return call
