"""A machine with its own systemd, booted within a second in Linux namespaces; needs root.

Its file system is that of this machine, or a tree of `debootstrap`. All changes in the machine are
discarded at its end. It has its own processes, a network with only a loopback, a journal and cgroups.
Limits of memory and tasks have no effect in it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self
from unittest import SkipTest

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

_INIT: Final = Path(__file__).with_name("machine.sh")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TOOLS: Final = ("unshare", "nsenter", "setpriv", "mount", "ip")
_CGROUP: Final = "posd-machine-"
_BOOT_SECONDS: Final = 60.0
_RUN_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.02


def let_readers_in(data: str) -> tuple[str, ...]:
    """Return the command that permits the user posd to log in as posd_reader, as docs/install.md does."""
    hba = f"sed -i '1i local posd posd,posd_reader peer map=posd' {data}/pg_hba.conf"
    ident = f"printf 'posd posd posd\\nposd posd posd_reader\\n' >> {data}/pg_ident.conf"
    return "/bin/sh", "-c", f"{hba} && {ident}"


class CommandFailed(Exception):
    """A command in a machine ended with a status other than 0. The text has its output."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(command)}: status {status}\n{output}")
        self.status = status
        self.output = output


@define(eq=False)
class Machine:
    """A booted machine. `boot` makes one for a test, and `close` ends all its processes."""

    pid: int
    """The process id of its first process, outside of the machine."""
    _outer: subprocess.Popen[bytes]
    _cgroup: Path
    _closed: bool = field(init=False, default=False)

    @classmethod
    def start(cls, tree: Path = Path("/"), bound: Sequence[Path] = ()) -> Self:
        """Boot, and wait until systemd has started all units. `bound` are paths to share."""
        cgroup = _make_cgroup()
        outer = subprocess.Popen(
            (
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc"),
                *("--net", "--cgroup", "--propagation", "private"),
                *("bash", str(_INIT), str(tree), *map(str, bound)),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: _enter(cgroup),
        )
        machine = cls(0, outer, cgroup)
        try:
            machine._await_systemd()
        except BaseException:
            machine.close()
            raise
        return machine

    def run(
        self,
        *command: str,
        user: str | None = None,
        stdin: str = "",
        environ: Mapping[str, str] = {},
        seconds: float = _RUN_SECONDS,
    ) -> str:
        """Run a command in the machine, as root or another user. Return its output.

        Raises `CommandFailed`, with the output and standard error.
        """
        done = subprocess.run(
            self.entering(*command, user=user, environ=environ),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode:
            raise CommandFailed(command, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def entering(
        self, *command: str, user: str | None = None, environ: Mapping[str, str] = {}
    ) -> list[str]:
        """Return the command prefix that runs a process in the machine, for `subprocess.Popen`."""
        home = "/root" if user is None else "/"
        variables = {"PATH": _PATH, "HOME": home, "LANG": "C.UTF-8", **environ}
        return [
            *("nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--ipc", "--net"),
            *("--cgroup", "--root", "--wdns=/"),
            *("env", "-i", *(f"{name}={value}" for name, value in variables.items())),
            *(() if user is None else _as_user(user)),
            *command,
        ]

    def path(self, inside: str) -> Path:
        """Return the path of a file of the machine, outside of the machine."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def journal(self, unit: str, *options: str) -> str:
        """Return the journal of a unit, without times."""
        return self.run("journalctl", "--unit", unit, "--output=cat", "--no-pager", *options)

    def await_(self, happened: Callable[[], bool], what: str, seconds: float = 60.0) -> float:
        """Wait until a condition in the machine holds. Return the seconds that this took."""
        began = time.monotonic()
        while not happened():
            if time.monotonic() - began > seconds:
                raise AssertionError(f"not within {seconds:.0f} s: {what}")
            time.sleep(_LOOK_SECONDS)
        return time.monotonic() - began

    def close(self) -> None:
        """End the machine and all its processes."""
        if self._closed:
            return
        self._closed = True
        self._outer.send_signal(signal.SIGKILL)
        assert self._outer.stdout is not None
        self._outer.stdout.close()
        self._outer.wait(_RUN_SECONDS)
        _remove_cgroup(self._cgroup)

    def _await_systemd(self) -> None:
        deadline = time.monotonic() + _BOOT_SECONDS
        while time.monotonic() < deadline:
            if self._outer.poll() is not None:
                assert self._outer.stdout is not None
                raise AssertionError(f"no machine: {self._outer.stdout.read().decode()}")
            self.pid = self.pid or _only_child(self._outer.pid)
            # Before the change of the root, the old /run is still visible.
            if self.pid and self.path("/run/systemd/private").is_socket():
                with suppress(CommandFailed):
                    self.run("systemctl", "is-active", "machine.target")
                    self._bring_loopback_up()
                    return
            time.sleep(_LOOK_SECONDS)
        raise AssertionError(f"no machine within {_BOOT_SECONDS:.0f} s")

    def _bring_loopback_up(self) -> None:
        """Use the tool of this machine, because a bare tree has none."""
        entering = ("nsenter", "--target", str(self.pid), "--net")
        subprocess.run((*entering, "ip", "link", "set", "lo", "up"), check=True)


def boot(test: SynchronousTestCase, tree: Path = Path("/"), bound: Sequence[Path] = ()) -> Machine:
    """Return a machine for the duration of a test. Skip the test if there cannot be one."""
    reason = missing()
    if reason is not None:
        raise SkipTest(f"not run: {reason}")
    machine = Machine.start(tree, bound)
    test.addCleanup(machine.close)
    return machine


def missing() -> str | None:
    """Return why no machine can be booted here, or None."""
    if os.geteuid() != 0:
        return "booting a machine needs root"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd is not installed"
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if _cgroups() is None:
        return "no cgroup2 hierarchy can be written"
    mounting = ("mount", "-t", "tmpfs", "tmpfs", "/mnt")
    tried = subprocess.run(
        ("unshare", "--mount", "--pid", "--fork", "--net", "--cgroup", *mounting),
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else None


def _cgroups() -> Path | None:
    """Return the path of cgroup v2, if it is writable."""
    for folder in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (folder / "cgroup.procs").exists() and (folder / "cgroup.subtree_control").exists():
            return folder if os.access(folder, os.W_OK) and not _read_only(folder) else None
    return None


def _read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _make_cgroup() -> Path:
    folder = _cgroups()
    assert folder is not None
    for old in folder.glob(f"{_CGROUP}*"):
        # A test that was killed may have left it, unless its machine still runs.
        if not Path("/proc", old.name.removeprefix(_CGROUP).split("-")[0]).exists():
            _remove_cgroup(old)
    cgroup = folder / f"{_CGROUP}{os.getpid()}-{time.monotonic_ns()}"
    cgroup.mkdir()
    return cgroup


def _enter(cgroup: Path) -> None:
    """Join the cgroup before the namespaces are made, so that it becomes the root in the machine."""
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def _remove_cgroup(cgroup: Path) -> None:
    deadline = time.monotonic() + 10.0
    while cgroup.exists():
        for folder, _, _ in os.walk(cgroup, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK_SECONDS)


def _only_child(pid: int) -> int:
    """Return the process that `unshare --fork` has made, or 0 if there is none yet."""
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else 0
    return 0


def _as_user(user: str) -> tuple[str, ...]:
    return ("setpriv", "--reuid", user, "--regid", user, "--init-groups")
