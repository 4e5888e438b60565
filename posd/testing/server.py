"""A temporary PostgreSQL server in a folder of its own, on a unix socket.

The server listens on a network address only if its settings say so. It ends with the process that started
it, even if that process is killed. `PostgresServer.standby` makes a standby of it. Unless the server is
durable, its files are in memory if there is enough: to copy and drop a database of 10 MB took 36 ms in
memory and 218 ms on a disk, both without fsync.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from attrs import define, field

from posd.errors import PosdError
from posd.testing.account import SystemAccount, accessible_binaries, environment
from posd.testing.binaries import Binaries, preferred_binaries
from posd.testing.kept import KeptProcess

_START_SECONDS = 60.0
_PROMOTE_SECONDS = "60"
_POLL_SECONDS = 0.01
_FOLDER = "posd-pg-"
_FRESH = "fresh"
_COPY = "/bin/cp"

_SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "max_connections": "400",
    "shared_buffers": "32MB",
    "log_line_prefix": "%m [%p] %q%d ",
}
_NOT_DURABLE = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_wal_size": "128MB",
}

# Linux has a file system in memory here that all users may use (shm_overview(7)).
_MEMORY = Path("/dev/shm")  # nosec B108
_ROOM = 2**30
"""Bytes that must be free there. In a container it may have only 64 MB."""


class ServerFailed(PosdError):
    """PostgreSQL did not start or stop. The text ends with the last lines of its log."""


@define(eq=False)
class PostgresServer:
    """A running PostgreSQL server. `start` makes one. The end of its context stops and removes it."""

    binaries: Binaries
    folder: Path
    _settings: Mapping[str, str]
    _account: SystemAccount
    pid: int = field(init=False, default=0)
    """The process id of the postmaster, or 0 if it does not run."""
    _kept: KeptProcess | None = field(init=False, default=None)

    @classmethod
    def start(
        cls,
        binaries: Binaries | None = None,
        *,
        durable: bool = False,
        settings: Mapping[str, str] = {},
        keep_fresh: bool = False,
    ) -> PostgresServer:
        """Make a cluster and start it. This takes about half a second.

        Without `binaries` the first that can be found on this machine are used. `durable` keeps
        fsync on and the files on a disk, for tests of what a crash leaves. `settings` are
        configuration parameters on top. `keep_fresh` keeps a copy of the new cluster for `another`.
        Raises `NoServer` and `ServerFailed`.
        """
        if binaries is None:
            binaries = preferred_binaries(os.environ)
        return cls._start(binaries, None, durable, settings, keep_fresh)

    def another(self, *, durable: bool = False, settings: Mapping[str, str] = {}) -> PostgresServer:
        """Start one more server on a copy of the new cluster that this one began with.

        initdb takes most of the time of a start, and a copy a tenth of that. Both servers have the same
        system identifier. This one was started with `keep_fresh`. Raises `ServerFailed`.
        """
        return self._start(self.binaries, self.folder / _FRESH, durable, settings, False)

    @classmethod
    def _start(
        cls,
        binaries: Binaries,
        fresh: Path | None,
        durable: bool,
        settings: Mapping[str, str],
        keep_fresh: bool,
    ) -> PostgresServer:
        account = SystemAccount.for_postgresql()
        private = not account.can_enter(binaries.path.resolve().parent)
        in_memory = not durable and _has_room(_MEMORY, for_programs=private)
        place = _MEMORY if in_memory else Path(tempfile.gettempdir())
        folder = account.temporary_folder(place, _FOLDER)
        with _removed_on_failure(folder):
            if private:
                binaries = accessible_binaries(binaries, folder)
            chosen = {**_SETTINGS, **({} if durable else _NOT_DURABLE), **settings}
            server = cls(binaries, folder, chosen, account)
            if fresh is None:
                server._run(
                    *("initdb", "-D", str(folder / "data")),
                    *("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"),
                )
            else:
                server._run(_COPY, "-a", str(fresh), str(folder / "data"))
            if keep_fresh:
                server._run(_COPY, "-a", str(folder / "data"), str(folder / _FRESH))
            server._launch()
        return server

    def standby(self, settings: Mapping[str, str] = {}) -> PostgresServer:
        """Copy this server with pg_basebackup, and start the copy as a streaming hot standby.

        The standby has the settings of this server and `settings`. If it listens on TCP, it needs
        another port. Replication is asynchronous unless `synchronous_standby_names` of this server is
        set. Raises `ServerFailed`.
        """
        folder = self._account.temporary_folder(self.folder.parent, _FOLDER)
        with _removed_on_failure(folder):
            binaries = self.binaries
            if binaries.path.is_relative_to(self.folder):
                # The programs are removed with this server's folder, but the standby may outlive it.
                binaries = accessible_binaries(binaries, folder)
            copy = PostgresServer(binaries, folder, {**self._settings, **settings}, self._account)
            copy._run(
                *("pg_basebackup", "-D", str(folder / "data"), "-d", self.dsn()),
                *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
            )
            copy._launch()
        return copy

    def promote(self) -> None:
        """Promote a standby, and return when it accepts writes. Raises `ServerFailed`."""
        self._run("pg_ctl", "promote", "-D", str(self.folder / "data"), "-t", _PROMOTE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """Return a libpq connection string. `postgres` is the superuser. No role needs a password."""
        return " ".join(
            f"{key}={_quoted(value)}"
            for key, value in (
                ("host", str(self.folder)),
                ("port", self._settings["port"]),
                ("dbname", dbname),
                ("user", user),
            )
        )

    def log(self) -> str:
        """Return the log so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """Stop at once, without a checkpoint, and remove the folder. May be called twice."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and start it on the same data. After `kill`, only start it.

        `fast` closes the sessions and shuts down cleanly; `immediate` makes the next start recover
        from the write-ahead log, as after a crash.
        """
        self._end(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        self._launch()

    def kill(self) -> None:
        """Send SIGKILL to the postmaster, as the kernel does if memory is short."""
        self._end(signal.SIGKILL)

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs, or another by its path, as the server's account, to its end."""
        other = not self._account.is_ours
        ran = subprocess.run(
            [str(self.binaries.path / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            cwd=self.folder,
            env=environment(),
            user=self._account.uid if other else None,
            group=self._account.gid if other else None,
            extra_groups=[] if other else None,
        )
        if ran.returncode:
            raise ServerFailed(f"{program} of {self.binaries.path} failed:\n{ran.stdout}")

    def _launch(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        # After a kill, backends keep the old shared memory until they notice the end of the postmaster.
        while not self._try_launch(deadline):
            if "still in use" not in _tail(self.log()) or time.monotonic() > deadline:
                raise ServerFailed(f"PostgreSQL did not start:\n{_tail(self.log())}")
            time.sleep(_POLL_SECONDS)

    def _try_launch(self, deadline: float) -> bool:
        """Start a postmaster and wait until it accepts connections. Return False if it ended."""
        command = [str(self.binaries.path / "postgres"), "-D", str(self.folder / "data")]
        for name, value in {"unix_socket_directories": str(self.folder), **self._settings}.items():
            command += ["-c", f"{name}={value}"]
        self._kept = kept = KeptProcess.start(self.folder, self._account, "QUIT", command)
        self.pid = kept.pid
        while not self._ready():
            if not kept.running or time.monotonic() > deadline:
                self.kill()
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _ready(self) -> bool:
        """Return whether postmaster.pid says "ready", as pg_ctl does. A stale file has another pid."""
        try:
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _end(self, how: signal.Signals) -> None:
        if self._kept is not None and not self._kept.end(how):
            raise ServerFailed(f"PostgreSQL did not stop:\n{_tail(self.log())}")
        self._kept = None
        self.pid = 0


def _has_room(place: Path, *, for_programs: bool) -> bool:
    """Return whether a folder is writable, has space for a cluster, and, if needed, permits programs."""
    try:
        found = os.statvfs(place)
    except OSError:
        return False
    if not os.access(place, os.W_OK | os.X_OK) or (for_programs and found.f_flag & os.ST_NOEXEC):
        return False
    return found.f_bavail * found.f_frsize >= _ROOM


@contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _quoted(value: str) -> str:
    """Quote a value for a keyword/value connection string (PostgreSQL manual, libpq-connect)."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _tail(log: str) -> str:
    return "\n".join(log.splitlines()[-20:])
