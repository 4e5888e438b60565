"""A till in a machine: `posctl listen`, and the events that it has received."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any, Final, Self

from attrs import define, field

_SECONDS: Final = 60.0


@define(eq=False)
class Till:
    """A till that runs until `stop`. It reconnects by itself, and resumes after its last event."""

    _process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(init=False, factory=list)
    said: list[str] = field(init=False, factory=list)
    """Its messages about the connection."""
    _changed: threading.Condition = field(init=False, factory=threading.Condition)

    @classmethod
    def start(cls, command: Sequence[str]) -> Self:
        """Start the till, and wait until it is connected."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # The till is a child of the program that enters the machine, so signal the process group.
            start_new_session=True,
        )
        till = cls(process)
        assert process.stdout is not None and process.stderr is not None
        for stream, took in (
            (process.stdout, lambda line: till.events.append(json.loads(line))),
            (process.stderr, till.said.append),
        ):
            threading.Thread(target=till._read, args=(stream, took), daemon=True).start()
        till.await_connections(1)
        return till

    @property
    def connections(self) -> int:
        """Return how often the till has connected."""
        return sum(line.startswith("connected") for line in self.said)

    @property
    def orders(self) -> list[str]:
        """Return the numbers of the received orders, with repetitions."""
        return [each["data"]["orderNumber"] for each in self.events if each["type"] == "new_order"]

    def orders_like(self, beginning: str) -> list[str]:
        return [number for number in self.orders if number.startswith(beginning)]

    def await_order(self, number: str) -> None:
        self._await(lambda: number in self.orders, f"order {number}")

    def await_connections(self, count: int) -> None:
        self._await(lambda: self.connections >= count, f"{count} connections")

    def await_said(self, text: str) -> None:
        self._await(lambda: any(text in line for line in self.said), repr(text))

    def stop(self) -> None:
        """Stop the till with a signal, and wait for its end."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(_SECONDS)

    def _await(self, happened: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(happened, _SECONDS):
                raise AssertionError(f"the till has no {what}: {self.orders} {self.said}")

    def _read(self, stream: IO[str], took: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    took(line)
                    self._changed.notify_all()
