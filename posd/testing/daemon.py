"""Run the daemon as a child process that does not outlive its parent.

The daemon is started as a service manager starts it: with a configuration file and `$NOTIFY_SOCKET`. It
is ready when it sends READY=1 (sd_notify(3)). If the parent dies, the daemon ends at once and its folder
is removed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from attrs import define, field

import posd
from posd.errors import PosdError
from posd.testing import keeper

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05

_TWISTD: Final = "from twisted.scripts.twistd import run; run()"


class DaemonFailed(PosdError):
    """The daemon did not start. The text ends with the last lines of its log."""


@define(eq=False)
class DaemonProcess:
    """A running posd. `start` makes one. The end of its context stops the daemon."""

    folder: Path
    """The folder of the log. It is removed if this process dies."""
    pid: int = field(init=False, default=0)
    """The process id, which is also in the file `posd.pid` of the folder."""
    _config: Path = field(init=False, factory=Path)
    _environ: Mapping[str, str] = field(init=False, factory=dict)
    _keeper: subprocess.Popen[bytes] | None = field(init=False, default=None)
    _manager: _ServiceManager | None = field(init=False, default=None)

    @classmethod
    def start(
        cls, config: Path, folder: Path, environ: Mapping[str, str] = os.environ
    ) -> DaemonProcess:
        """Start `twistd posd` with a configuration and wait until it is ready.

        `folder` is for its log and its notification socket. It is removed with its content if this
        process dies before the daemon is stopped. Raises `DaemonFailed`.
        """
        daemon = cls(folder)
        daemon._config = config
        daemon._environ = {**environ, "NOTIFY_SOCKET": str(folder / "notify")}
        daemon._manager = _ServiceManager(folder / "notify")
        try:
            daemon.run_again()
        except BaseException:
            daemon.stop()
            raise
        return daemon

    def run_again(self) -> None:
        """Stop the daemon if it runs, start it again, and wait until it is ready.

        Blocks. Raises `DaemonFailed`.
        """
        assert self._manager is not None
        if self._keeper is not None:
            self._end(self._keeper)
        self._manager.ready.clear()
        self._launch(self._config, self._environ)
        (self.folder / "posd.pid").write_text(f"{self.pid}\n")
        self._await(self._manager.ready)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def log(self) -> str:
        """Return the log so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def last_words(self) -> str:
        """Return the last 20 lines of the log, for an error message."""
        return "\n".join(self.log().splitlines()[-20:])

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._keeper is not None and self._keeper.poll() is None

    def stop(self) -> None:
        """Stop the daemon with SIGTERM, and with SIGKILL after a timeout."""
        process, self._keeper = self._keeper, None
        if process is not None:
            self._end(process)
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.kill(self.pid, signal.SIGKILL)
                process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _launch(self, config: Path, environ: Mapping[str, str]) -> None:
        # So a checkout that is not installed can run its daemon.
        paths = (str(Path(posd.__file__).parent.parent), environ.get("PYTHONPATH", ""))
        self._keeper = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", keeper.__file__),
                *(str(self.folder), str(os.geteuid()), str(os.getegid()), "QUIT"),
                *(sys.executable, "-c", _TWISTD),
                *("--nodaemon", "--pidfile=", "posd", "--config", str(config)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            # Ctrl-C in the terminal must reach only the parent, which then stops the daemon.
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        with self._keeper.stdout as answer:
            self.pid = int(answer.readline() or 0)

    def _await(self, ready: threading.Event) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while self.running and time.monotonic() < deadline:
            if ready.wait(_POLL_SECONDS):
                return
        how = "did not become ready" if self.running else "ended"
        raise DaemonFailed(f"posd {how}; last lines of its log:\n{self.last_words()}")


class _ServiceManager:
    """The service manager's end of sd_notify(3). It reads all messages, so that the daemon never blocks."""

    def __init__(self, address: Path) -> None:
        self.ready = threading.Event()
        self._address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._reading = threading.Thread(target=self._read, daemon=True)
        # The thread inherits the blocked signals. Otherwise the kernel could deliver to it a signal that the
        # main thread has blocked (see `posd.cli.reactor`), and Python would raise KeyboardInterrupt there.
        unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self._reading.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)

    def close(self) -> None:
        """Stop reading."""
        # An empty message ends the thread. A daemon never sends one.
        self._socket.sendto(b"", self._address)
        self._reading.join()
        self._socket.close()

    def _read(self) -> None:
        while message := self._socket.recv(4096):
            if b"READY=1" in message.split(b"\n"):
                self.ready.set()
