"""Pin processes to processors, and read their processor time and memory (proc(5))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_CHILDREN_TIME: Final = slice(13, 15)
"""The fields `cutime` and `cstime` of `_fields`, whose first one is the state."""


def share() -> int | None:
    """Reserve a processor for the measured servers, and move this process to the other processors.

    Processes that are started later, such as PostgreSQL and the load client, run on the others too. `pin`
    moves a server to the reserved one. Returns the reserved processor, or None if there is only one.
    """
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        return None
    os.sched_setaffinity(0, available[1:])
    return available[0]


def pin(pid: int, processor: int | None) -> None:
    """Run all threads of a process on one processor."""
    if processor is not None:
        for task in _tasks(pid):
            os.sched_setaffinity(int(task.name), {processor})


def used(pid: int) -> float:
    """Return the seconds of processor time of all threads of a process."""
    total = 0
    for task in _tasks(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def used_with_children(pid: int) -> float:
    """Return the same for a process and its children, including ended ones, such as a PostgreSQL server."""
    ended = sum(map(int, _fields(Path(f"/proc/{pid}"))[_CHILDREN_TIME])) / _TICKS
    children = 0.0
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if int(_fields(process)[1]) == pid:
                    children += used(int(process.name))
    return ended + used(pid) + children


def memory(pid: int) -> int:
    """Return the proportional set size (PSS) of a process, in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("smaps_rollup has no Pss")


def _tasks(pid: int) -> Iterator[Path]:
    yield from Path(f"/proc/{pid}/task").iterdir()


def _fields(process: Path) -> list[str]:
    """Return the fields of `stat` after the name of the program: the state, the parent, …"""
    return (process / "stat").read_text("ascii").rpartition(")")[2].split()
