"""A lower bound for the size of a value as JSON text, computed in steps."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Final

_STEP_VALUES: Final = 1000


def exceeds(value: object, most_bytes: int, most_values: int) -> Generator[None, None, bool]:
    """Whether a value has more than `most_values` values, or its JSON text more than `most_bytes` bytes.

    The counted size is a lower bound: a string counts its characters and quotes, a number or a literal one
    character, and a container its brackets and separators. The generator yields after each 1,000 values, and
    returns as soon as a limit is exceeded.
    """
    size, value_count, stack = 0, 0, [value]
    while stack:
        each = stack.pop()
        value_count += 1
        size += 1
        if isinstance(each, str):
            size += len(each) + 1
        elif isinstance(each, Mapping):
            for name, member in each.items():
                # The name has two quotes and a colon.
                size += len(name) + 3
                stack.append(member)
                if len(stack) % _STEP_VALUES == 0:
                    if size > most_bytes or value_count + len(stack) > most_values:
                        return True
                    yield
        elif isinstance(each, list | tuple):
            size += len(each)
            stack += each
        if size > most_bytes or value_count + len(stack) > most_values:
            return True
        if value_count % _STEP_VALUES == 0:
            yield
    return False
