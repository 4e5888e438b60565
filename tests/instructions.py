"""Count the instructions of posd's own code. The number is the same on every machine.

Processor time differs by a third between two runs on a shared machine. The number of instructions that
the interpreter executes depends only on the code, its input and the version of Python.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from attrs import define, field

import posd

_OWN: Final = str(Path(posd.__file__).parent)


@define
class Work:
    """The executed code: `instructions` of posd, and `calls` from posd to other code.

    `by_function` has the instructions of each function of posd. A call of a library counts as one.
    """

    instructions: int = 0
    calls: int = 0
    by_function: Counter[str] = field(factory=Counter)

    def __sub__(self, other: Work) -> Work:
        functions = self.by_function.copy()
        functions.subtract(other.by_function)
        return Work(self.instructions - other.instructions, self.calls - other.calls, functions)

    def most(self, count: int = 12) -> str:
        """Return a line for each of the functions with the most instructions."""
        return "\n".join(
            f"{instructions:8} {name}" for name, instructions in self.by_function.most_common(count)
        )


def count(run: Callable[[], object]) -> Work:
    """Call a function once and count. It must not set a trace function."""
    instructions: Counter[CodeType] = Counter()
    calls = 0
    own: dict[CodeType, bool] = {}

    def is_own(code: CodeType) -> bool:
        known = own.get(code)
        if known is None:
            known = own[code] = code.co_filename.startswith(_OWN)
        return known

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        nonlocal calls
        code = frame.f_code
        if what == "opcode":
            instructions[code] += 1
        elif what == "call":
            if not is_own(code):
                caller = frame.f_back
                calls += caller is not None and is_own(caller.f_code)
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return trace

    def profile(frame: FrameType, what: str, _: Any) -> None:
        nonlocal calls
        if what == "c_call" and is_own(frame.f_code):
            calls += 1

    collecting = gc.isenabled()
    gc.disable()
    traced, profiled = sys.gettrace(), sys.getprofile()
    sys.setprofile(profile)
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(traced)
        sys.setprofile(profiled)
        if collecting:
            gc.enable()
    functions: Counter[str] = Counter()
    for code, number in instructions.items():
        module = code.co_filename.removeprefix(_OWN).lstrip("/").removesuffix(".py")
        functions[f"{module}: {code.co_qualname}"] += number
    return Work(instructions.total(), calls, functions)
