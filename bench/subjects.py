"""Start the servers that are measured: posd and its peers (bench/peers)."""

from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import define

from bench import processor
from bench.loader import BUILD, NotRun, build
from bench.world import World
from tests.integration.harness import TWISTD, free_port

PEERS: Final = Path(__file__).parent / "peers"
LIMITS: Final = """
[limits]
connections_per_tenant = 5000
publish_per_second_per_tenant = 1000000
requests_per_second_per_credential = 1000000
bytes_per_second_per_credential = "1GiB"
"""
"""Raised limits, because the benchmark is one client with one key."""
_START_SECONDS: Final = 20.0


@define(eq=False)
class Subject:
    """A running server."""

    name: str
    port: int
    pid: int
    world: World

    def processor(self) -> tuple[float, float]:
        """Return the seconds of processor time of the server and of PostgreSQL so far."""
        postgres = processor.used_with_children(self.world.server.pid)
        return processor.used(self.pid), postgres

    def memory(self) -> int:
        """Return the memory of the server in bytes."""
        return processor.memory(self.pid)


@contextmanager
def started(name: str, world: World, on: int | None) -> Iterator[Subject]:
    """Start a server on a processor, and stop it at the end. Raises `NotRun`."""
    with _posd(world) if name == "posd" else _peer(name, world) as (port, pid):
        processor.pin(pid, on)
        yield Subject(name, port, pid, world)


@contextmanager
def _posd(world: World) -> Iterator[tuple[int, int]]:
    daemon = world.shop.start(LIMITS, twistd=TWISTD)
    try:
        yield daemon.port, daemon.pid
    finally:
        daemon.stop()


@contextmanager
def _peer(name: str, world: World) -> Iterator[tuple[int, int]]:
    port = free_port()
    command, environment = _command(name, world, port)
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


def _command(name: str, world: World, port: int) -> tuple[Sequence[str], dict[str, str] | None]:
    arguments = (str(port), str(world.certificate), str(world.private_key))
    if name == "floor":
        return [str(build("floor")), *arguments], None
    if name == "autobahn":
        return [sys.executable, str(PEERS / "autobahn_tills.py"), *arguments], None
    mode = {"node-ws": "alone", "shop-pool": "pool", "deployed": "deployed"}[name]
    node, modules = _node()
    command = [node, str(PEERS / "shop.js"), mode, *arguments, world.peers_connection()]
    return command, {"NODE_PATH": str(modules), "NODE_ENV": "production"}


@functools.cache
def _node() -> tuple[str, Path]:
    """Return the path of Node and the folder of the peers' modules, which npm installs. Raises `NotRun`."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise NotRun("node or npm is not installed (Debian: nodejs, npm)")
    folder = BUILD / "node"
    wanted = (PEERS / "package.json").read_text()
    mark = folder / "installed.json"
    if not mark.exists() or mark.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(wanted)
        options = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
        ran = subprocess.run(
            [npm, "install", "--silent", *options],
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            last = (ran.stderr or ran.stdout).strip().splitlines()[-1:]
            raise NotRun(f"npm cannot install ws and pg: {' '.join(last)}")
        mark.write_text(wanted)
    return node, folder / "node_modules"


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"{process.args!r} ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"{process.args!r} does not listen")
