"""Three machines with etcd, Patroni and PostgreSQL, each at its own loopback address."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, Self

import psycopg2
from attrs import define, field
from psycopg2.extensions import make_dsn

from posd.testing.account import SystemAccount, environment
from posd.testing.kept import KeptProcess
from tests.failover.configuration import DIRECT, MACHINES, Place, shown, superuser
from tests.failover.programs import Programs

_START_SECONDS: Final = 180.0
_POLL_SECONDS: Final = 0.02


class ClusterFailed(Exception):
    """The cluster did not reach a state in time. The text ends with the logs."""


def _start(folder: Path, account: SystemAccount, *command: str, **environ: str) -> KeptProcess:
    """Start a program. `folder` is for its log."""
    # The account may not be able to read the files that libpq looks for in HOME.
    return KeptProcess.start(folder, account, "TERM", command, {"HOME": str(folder), **environ})


def _end(program: KeptProcess, how: signal.Signals = signal.SIGTERM) -> None:
    if not program.end(how):
        program.end(signal.SIGKILL)


@define(eq=False)
class Machine:
    """One of the three machines. Its PostgreSQL is a child of Patroni."""

    number: int
    place: Place
    folder: Path
    _programs: Programs
    _etcd: KeptProcess | None = None
    _patroni: KeptProcess | None = None

    @property
    def name(self) -> str:
        return f"db{self.number}"

    @property
    def settings(self) -> Path:
        return self.folder / "patroni.yml"

    def prepare(self) -> None:
        """Create its folder and its files."""
        account = self._programs.account
        for folder in (self.folder, self.folder / "log-etcd", self.folder / "log-patroni"):
            folder.mkdir()
            os.chown(folder, account.uid, account.gid)
        self.settings.write_text(self.place.patroni(self.number, self.folder), "utf-8")
        os.chown(self.settings, account.uid, account.gid)
        self.settings.chmod(0o600)

    def start_etcd(self) -> None:
        self._etcd = _start(
            self.folder / "log-etcd",
            self._programs.account,
            str(self._programs.etcd),
            **self.place.etcd(self.number, self.folder),
        )

    def start(self) -> None:
        """Start Patroni, which starts PostgreSQL."""
        command = (str(self._programs.patroni / "patroni"), str(self.settings))
        self._patroni = _start(self.folder / "log-patroni", self._programs.account, *command)

    def kill(self) -> None:
        """Send SIGKILL to Patroni and the postmaster, like a power failure."""
        if self._patroni is not None:
            _end(self._patroni, signal.SIGKILL)
        self._end_postgresql(signal.SIGKILL)

    def restart(self) -> None:
        """Stop Patroni and PostgreSQL as for an upgrade, and start them again."""
        assert self._patroni is not None
        _end(self._patroni)
        self.start()

    def stop(self) -> None:
        """Let Patroni stop PostgreSQL and end; then stop etcd."""
        if self._patroni is not None:
            _end(self._patroni)
        # After Patroni was killed, PostgreSQL may still run.
        self._end_postgresql(signal.SIGQUIT)
        if self._etcd is not None:
            _end(self._etcd)
        self._patroni = self._etcd = None

    def _end_postgresql(self, how: signal.Signals) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.folder / "data/postmaster.pid").read_text().split()[0]), how)

    def accepts_writes(self) -> bool:
        """Return whether its PostgreSQL is the leader."""
        dsn = make_dsn(
            host=self.place.address(self.number),
            dbname="postgres",
            connect_timeout=2,
            **superuser(),
        )
        try:
            with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT pg_is_in_recovery()")
                return bool(cursor.fetchall() == [(False,)])
        except psycopg2.Error:
            return False

    def members(self) -> list[Any]:
        """Return the state of the three machines according to its Patroni."""
        connection = http.client.HTTPConnection(self.place.address(self.number), 8008, timeout=2)
        with closing(connection):
            connection.request("GET", "/cluster")
            return list(json.loads(connection.getresponse().read())["members"])

    def log(self) -> str:
        lines = (self.folder / "log-patroni/log").read_text(errors="replace").splitlines()
        return "\n".join([f"--- {self.name}", *lines[-15:]])


@define(eq=False)
class Cluster:
    """The three machines, and HAProxy and PgBouncer in front of them, if these are available."""

    place: Place
    folder: Path
    machines: list[Machine]
    _programs: Programs
    _proxies: dict[str, KeptProcess] = field(init=False, factory=dict)

    @classmethod
    def start(cls, programs: Programs, folder: Path) -> Self:
        """Start all programs, and wait until two machines follow the third. Raises `ClusterFailed`."""
        # 127.0.0.0/8 is the loopback network. Its other addresses are rarely in use.
        place = Place(
            f"127.{random.randrange(64, 255)}.{random.randrange(255)}.", programs.postgresql
        )
        machines = [Machine(n, place, folder / f"db{n}", programs) for n in MACHINES]
        cluster = cls(place, folder, machines, programs)
        try:
            for machine in machines:
                machine.prepare()
                machine.start_etcd()
            for machine in machines:
                machine.start()
            cluster.wait_until_whole()
            cluster._start_proxies()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def _start_proxies(self) -> None:
        """PgBouncer asks HAProxy for the leader."""
        haproxy, pgbouncer = self._programs.haproxy, self._programs.pgbouncer
        if haproxy is not None:
            self._start_proxy("haproxy", haproxy, "-db", "-f")
            if pgbouncer is not None:
                self._start_proxy("pgbouncer", pgbouncer)

    def _start_proxy(self, name: str, program: Path, *options: str) -> None:
        folder = self.folder / name
        folder.mkdir()
        make = {"haproxy": self.place.haproxy, "pgbouncer": self.place.pgbouncer}[name]
        (folder / "configuration").write_text(make(folder), "utf-8")
        (folder / "userlist.txt").write_text(shown("text", "userlist"), "utf-8")
        command = (str(program), *options, str(folder / "configuration"))
        self._proxies[name] = _start(folder, self._programs.account, *command)

    def stop(self) -> None:
        for proxy in self._proxies.values():
            _end(proxy)
        with ThreadPoolExecutor() as threads:
            list(threads.map(Machine.stop, self.machines))

    def superuser_dsn(self, dbname: str) -> str:
        """Return a connection string of the superuser to the leader."""
        hosts = ",".join(self.place.address(machine.number) for machine in self.machines)
        return str(
            make_dsn(
                host=hosts,
                dbname=dbname,
                target_session_attrs="read-write",
                connect_timeout=3,
                **superuser(),
            )
        )

    def posd_dsns(self, folder: Path) -> dict[str, list[str]]:
        """Return the connection strings of posd: two direct ones, and one through each proxy."""
        passwords = folder / "pgpass"
        passwords.write_text(shown("text", "pgpass"), "utf-8")
        passwords.chmod(0o600)
        ways = {DIRECT: [DIRECT, DIRECT], "proxies": list(self._proxies)}
        return {
            name: [self.place.dsn(way, folder) for way in each]
            for name, each in ways.items()
            if each
        }

    def leader(self) -> Machine:
        """Return the leader according to both Patroni and PostgreSQL."""
        for machine in self.machines:
            if machine.accepts_writes():
                return machine
        raise ClusterFailed(f"nobody leads:\n{self._logs()}")

    def wait_until_whole(self) -> None:
        """Wait until there is a leader with two followers, one of them synchronous."""
        self.wait(self._is_whole, "one leader and two that confirm its commits", _START_SECONDS)

    def _is_whole(self) -> bool:
        members: list[Any] = []
        with suppress(OSError, http.client.HTTPException, ValueError, KeyError):
            members = self.machines[0].members()
        states = sorted((each["role"], each["state"]) for each in members)
        followers = [("quorum_standby", "streaming")] * (len(self.machines) - 1)
        return states == [("leader", "running"), *followers]

    def switch_over(self, leader: Machine) -> None:
        """Switch over, with the command of the page."""
        (line,) = shown("sh", "switchover").splitlines()
        _, _, _, *words = line.split()
        command = [str(self._programs.patroni / "patronictl"), "-c", str(leader.settings), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        # patronictl exits with 0 even if Patroni has refused.
        if done.returncode or "failed" in done.stdout:
            raise ClusterFailed(f"{line}: {done.stdout}{done.stderr}")

    def wait(self, look: Callable[[], object], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not look():
            if time.monotonic() > deadline:
                raise ClusterFailed(f"not within {seconds} s: {what}\n{self._logs()}")
            time.sleep(_POLL_SECONDS)

    def _logs(self) -> str:
        return "\n".join(machine.log() for machine in self.machines)
