"""What tests share because it takes long to make, such as a daemon, and what closes it again.

trial has no `setUpClass`. What was used last is kept, and the rest is closed: a daemon that nobody uses, and
its PostgreSQL, take a hundredth of a processor, and there were fifty of them at the end of all tests.
"""

from __future__ import annotations

import atexit
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from threading import RLock
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_MOST: Final = 2
"""So many things are kept: the tests of a class share one, and may share another one beside it."""

_kept: OrderedDict[object, tuple[Any, ExitStack]] = OrderedDict()
_turn = RLock()


def shared(make: Callable[Concatenate[ExitStack, P], T]) -> Callable[P, T]:
    """Make it at the first call with these arguments, and keep it until others were used more recently.

    The stack that `make` is given is closed then, or when the process ends.
    """

    @wraps(make)
    def get(*args: P.args, **named: P.kwargs) -> T:
        name = (make, args, tuple(sorted(named.items())))
        with _turn:
            if name not in _kept:
                stack = ExitStack()
                with ExitStack() as failing:
                    failing.push(stack)
                    _kept[name] = make(stack, *args, **named), stack
                    failing.pop_all()
                # Only now: it is closed before the PostgreSQL that `make` may have started.
                atexit.register(stack.close)
            _kept.move_to_end(name)
            made: T = _kept[name][0]
            while len(_kept) > _MOST:
                _, (_, oldest) = _kept.popitem(last=False)
                atexit.unregister(oldest.close)
                oldest.close()
        return made

    return get
