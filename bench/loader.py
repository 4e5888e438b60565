"""Build and control the load client (bench/c), a process that takes commands. `c/jobs.c` describes them."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from attrs import define, field

ROOT: Final = Path(__file__).resolve().parents[1]
BUILD: Final = ROOT / "build" / "bench"
SOURCES: Final = {
    "loader": ("main", "jobs", "posters", "link", "tills", "figures"),
    "floor": ("floor",),
}
STAMP: Final = "@" * 19
"""The load client replaces this text in a request by CLOCK_MONOTONIC at sending, in nanoseconds."""
COUNTER: Final = "#" * 16
"""The load client replaces this text in a request by a unique number."""


class NotRun(Exception):
    """A program that is needed is not on this machine. The text names it."""


class Failed(Exception):
    """A job failed: events were missing or out of order, requests refused, or tills disconnected."""


def build(program: str) -> Path:
    """Compile a program if its sources are newer, and return its path. Raises `NotRun`."""
    folder = Path(__file__).parent / "c"
    sources = [folder / f"{name}.c" for name in SOURCES[program]]
    path = BUILD / program
    if path.exists() and all(
        source.stat().st_mtime < path.stat().st_mtime for source in folder.iterdir()
    ):
        return path
    BUILD.mkdir(parents=True, exist_ok=True)
    # Tests may build or run the program at the same time. So the new file replaces the old one at once.
    made = path.with_name(f"{program}.{os.getpid()}")
    command = ["cc", "-O2", "-Wall", "-Wextra", "-std=gnu11", "-o", str(made)]
    try:
        ran = subprocess.run(
            [*command, *map(str, sources), "-lssl", "-lcrypto"],
            check=False,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise NotRun("there is no C compiler (Debian: gcc)") from None
    if "openssl/ssl.h" in ran.stderr or "crt1.o" in ran.stderr or "-lssl" in ran.stderr:
        raise NotRun("the development files of OpenSSL are missing (Debian: libssl-dev)")
    if ran.returncode:
        raise AssertionError(f"bench/c does not compile:\n{ran.stderr}")
    made.replace(path)
    return path


@define(eq=False)
class Loader:
    """A load client of one server. The end of its context ends the client and its tills."""

    _process: subprocess.Popen[str]
    _folder: tempfile.TemporaryDirectory[str] = field(factory=tempfile.TemporaryDirectory)

    @classmethod
    def start(cls, port: int) -> Self:
        return cls(
            subprocess.Popen(
                [str(build("loader")), str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def open(
        self, openings: Sequence[bytes], *, at_once: int = 64, missed: int = 0
    ) -> dict[str, Any]:
        """Open tills, and wait until each has its `connected` message and `missed` events."""
        return self._run("open", openings, at_once, missed)

    def waves(self, requests: Sequence[bytes], seconds: float, events: int = 1) -> dict[str, Any]:
        """Send requests one by one, each when all tills have the `events` of the previous one."""
        return self._run("waves", requests, seconds, events)

    def load(
        self,
        requests: Sequence[bytes],
        seconds: float,
        *,
        posters: int,
        rate: float = 0.0,
        deliveries: int = 0,
    ) -> dict[str, Any]:
        """Send requests without a pause or at a rate, and wait for their messages at the tills.

        With 0 seconds each request is sent once.
        """
        return self._run("load", requests, seconds, posters, rate, deliveries)

    def churn(
        self, openings: Sequence[bytes], seconds: float, *, at_once: int = 16
    ) -> dict[str, Any]:
        """Open tills, and close each after its `connected` message."""
        return self._run("churn", openings, seconds, at_once)

    def wait(self, events: int, seconds: float) -> dict[str, Any]:
        """Wait until the tills have `events` events in all, which another client publishes."""
        return self._command(f"wait {events} {seconds}")

    def close(self) -> None:
        """Close the tills."""
        self._command("close")

    def _run(self, job: str, requests: Iterable[bytes], *arguments: float) -> dict[str, Any]:
        path = Path(self._folder.name) / "requests"
        path.write_bytes(b"".join(b"%d\n%s" % (len(each), each) for each in requests))
        return self._command(" ".join(map(str, (job, path, *arguments))))

    def _command(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Failed(f"the load client ended with {self._process.wait()} during: {line}")
        result: dict[str, Any] = json.loads(answer)
        if "error" in result:
            raise AssertionError(f"{line}: {result['error']}")
        wrong = [name for name in ("failed", "refused", "missing", "disorder") if result[name]]
        if wrong or result["complaint"]:
            counts = ", ".join(f"{name} {result[name]}" for name in wrong)
            raise Failed(f"{line.split()[0]}: {counts}; {result['complaint']}")
        return result
