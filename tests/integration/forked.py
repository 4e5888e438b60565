"""Run `twistd posd` and `posctl` as forks of a process that has imported them, which is ten times as fast.

Tests of the import of posd and of its environment start the programs themselves (tests/test_tap.py,
tests/cli/test_terminal.py, tests/system).

The forking process runs this file. It has a single thread and no reactor. Each process that it forks
becomes a child of the process that asked (prctl(2), PR_SET_CHILD_SUBREAPER), which waits for it and
signals it like any other child.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

from posd.security.key_index import KeyIndex

_PR_SET_CHILD_SUBREAPER: Final = 36

ROOT: Final = Path(__file__).resolve().parents[2]
PROGRAMS: Final = {
    "twistd": (str(Path(sys.executable).with_name("twistd")),),
    "posctl": (sys.executable, "-m", "posd.cli"),
}


class _Forked(subprocess.Popen[bytes]):
    """A child that another process has forked. To its parent it is like a spawned child."""

    def __init__(
        self, arguments: list[str], cwd: Path, log: Path, environ: Mapping[str, str]
    ) -> None:
        log.touch()
        # The attributes that Popen.__init__ sets, without its fork.
        self.args = arguments
        self.stdin = self.stdout = self.stderr = None
        self.encoding = self.errors = None
        self.text_mode = False
        self.returncode: Any = None
        self._waitpid_lock = threading.Lock()
        self._input = None
        self._communication_started = False
        self._child_created = False
        order = {
            "arguments": arguments,
            "cwd": str(cwd),
            "log": str(log),
            "environ": dict(environ),
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        }
        self.pid = _fork(json.dumps(order))
        self._child_created = True


def start(
    program: Literal["twistd", "posctl"],
    arguments: Sequence[str],
    *,
    cwd: Path,
    log: Path,
    environ: Mapping[str, str] = {},
) -> subprocess.Popen[bytes]:
    """Start a program: as a fork, or as a process on systems without prctl.

    Its output is appended to `log`. `environ` is added to its environment.
    """
    given = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environ}
    if sys.platform == "linux":
        return _Forked([program, *arguments], cwd, log, given)
    with log.open("ab") as opened:
        return subprocess.Popen(
            [*PROGRAMS[program], *arguments],
            cwd=cwd,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=opened,
            stderr=opened,
        )


_turn = threading.Lock()


def _fork(order: str) -> int:
    with _turn:
        forking = _forking()
        assert forking.stdin is not None
        assert forking.stdout is not None
        # Set the subreaper only for a moment, so that no other orphan becomes our child.
        _adopt_orphans(True)
        try:
            forking.stdin.write(f"{order}\n")
            forking.stdin.flush()
            answer = forking.stdout.readline()
        finally:
            _adopt_orphans(False)
    if not answer:
        raise AssertionError(f"the forking process ended with {forking.wait()}")
    return int(answer)


def _adopt_orphans(wanted: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


@functools.cache
def _forking() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )

    def end() -> None:
        process.communicate()

    atexit.register(end)
    return process


def _main() -> None:
    """Fork a process for each line of standard input, and print its id."""
    # Import all modules of the programs except the reactor.
    from twisted.scripts import twistd

    import posd.cli.listening
    import posd.daemon.service
    import posd.tap

    assert "twisted.internet.reactor" not in sys.modules
    # Ctrl-C in the terminal is for the tests, which then close standard input.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        answer, answering = os.pipe()
        between = os.fork()
        if between == 0:
            wanted = os.fork()
            if wanted == 0:
                signal.signal(signal.SIGINT, handler)
                os.close(answer)
                os.close(answering)
                order = json.loads(line)
                _become(order)
                _tell_looks(order["log"])
                program = twistd.run if order["arguments"][0] == "twistd" else posd.cli.main
                program()
                return
            os.write(answering, b"%d\n" % wanted)
            os._exit(0)
        os.close(answering)
        # After the end of this process, its child belongs to the tests.
        os.waitpid(between, 0)
        with open(answer) as told:  # noqa: PTH123
            print(told.readline(), end="", flush=True)


def _tell_looks(log: str) -> None:
    """Have the daemon write down when its last look for new keys began, once that look has ended."""
    look = KeyIndex._bring_up_to_date

    async def told(index: KeyIndex) -> None:
        began = time.monotonic()
        await look(index)
        # There may be no descriptor left.
        with suppress(OSError), open(looks_of(log), "w") as file:  # noqa: PTH123
            file.write(f"{began:.9f}\n")

    KeyIndex._bring_up_to_date = told  # type: ignore[method-assign, assignment]


def looks_of(log: Path | str) -> str:
    """Where a forked daemon with this log tells when it has looked for new keys."""
    return f"{log}.looks"


def _become(order: dict[str, Any]) -> None:
    """Reset what the child has inherited, and set its folder and log."""
    resource.setrlimit(resource.RLIMIT_NOFILE, order["files"])
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["cwd"])
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT),
        (2, order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        opened = os.open(path, flags, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = order["arguments"]


if __name__ == "__main__":
    _main()
