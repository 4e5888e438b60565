"""Check the machine and its service manager: clock, systemd unit, limit of open files, and disk."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from attrs import evolve

from posd.config.model import Config
from posd.maintenance.doctor import CheckResult, fault, ok, unknown, warning

UNIT: Final = "posd.service"
_UNITS: Final = (UNIT, "posd@*.service", "posd.socket", "posd@*.socket")

_PROPERTIES: Final = (
    *("Id", "LoadState", "ActiveState", "UnitFileState", "StatusText", "NeedDaemonReload"),
    *("LimitNOFILE", "Result"),
)
_BEFORE: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""posd is newer than this date, so a clock that shows an earlier date is wrong."""

_SPARE_FILES: Final = 200
"""Files that posd opens besides the connections of tills: database, logs, modules, listening sockets."""

_SCARCE, _FULL = 0.10, 0.02
_GIB: Final = 1 << 30

_Run = Callable[[Sequence[str]], str | None]


def examine_clock(
    now: datetime, state: Callable[[], int | None] | None = None
) -> Iterator[CheckResult]:
    """Check that the clock is plausible and synchronised. `state` replaces adjtimex(2) in tests."""
    if now < _BEFORE:
        what = f"the clock shows {now:%Y-%m-%d %H:%M} UTC, so posd rejects all certificates"
        yield fault("clock", what, "timedatectl set-ntp true, or set the clock by hand")
        return
    match (state or _kernel_clock)():
        case None:
            yield unknown("clock", "the kernel does not say whether the clock is synchronised")
        case 5:  # TIME_ERROR of adjtimex(2)
            what = "the kernel's clock is not synchronised"
            yield warning("clock", what, "timedatectl set-ntp true, or install chrony")
        case _:
            yield ok("clock", "the kernel's clock is synchronised")


def _kernel_clock() -> int | None:
    """Return the clock state of adjtimex(2), or None if the system has no such call. Changes nothing."""
    try:
        # A zeroed struct timex: `modes` 0 changes nothing. The struct has about 200 bytes.
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024)))
    except (AttributeError, OSError):
        return None


def compare_clocks(local: datetime, database: datetime, took: timedelta) -> CheckResult:
    """Compare this machine's clock with the database's. The query began at `local` and lasted `took`."""
    off = abs(database - local)
    seconds = max(0.0, (off - took).total_seconds())
    if seconds >= 60:
        what = f"this machine and the database are {seconds:.0f} seconds apart"
        return fault("clock", what, "synchronise both with the same time servers")
    if seconds >= 2:
        what = f"this machine and the database are {seconds:.1f} seconds apart"
        return warning("clock", what, "synchronise both with the same time servers")
    return ok("clock", "this machine and the database agree about the time")


def examine_unit(settings: Config | None, run: _Run | None = None) -> Iterator[CheckResult]:
    """Check the state of the systemd unit, or of each used instance if there are several."""
    states = _states(run)
    if states is None:
        yield unknown("daemon", "systemd does not run on this machine")
        return
    services = [each for each in states if each["Id"].endswith(".service")]
    used = [each for each in services if each.get("ActiveState") != "inactive"]
    used = used or [each for each in services if each["Id"] == UNIT]
    at_boot = any(each.get("UnitFileState") == "enabled" for each in states)
    for state in used:
        yield from _judge(state, settings, at_boot=at_boot)


def is_socket_activated(run: _Run | None = None) -> bool:
    """Return whether systemd listens for a stopped daemon, so that a connection would start it."""
    active = [each["Id"] for each in _states(run) or () if each.get("ActiveState") == "active"]
    return bool(active) and all(name.endswith(".socket") for name in active)


def is_running(run: _Run | None = None) -> bool:
    """Return whether systemd says that a daemon runs, so that a slow listener may be the daemon's."""
    return any(
        each["Id"].endswith(".service") and each.get("ActiveState") in ("active", "reloading")
        for each in _states(run) or ()
    )


def _states(run: _Run | None) -> list[dict[str, str]] | None:
    """Return the properties of the daemon's units and loaded instances; None if systemd does not answer."""
    asked = [*_UNITS, f"--property={','.join(_PROPERTIES)}"]
    shown = (run or _systemctl)(["show", *asked])
    if shown is None:
        return None
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in shown.split("\n\n")
    ]
    return [block for block in blocks if "Id" in block]


def _judge(
    state: Mapping[str, str], settings: Config | None, *, at_boot: bool
) -> Iterator[CheckResult]:
    name = state["Id"]
    part = "daemon" if name == UNIT else f"daemon {name.removesuffix('.service')}"
    if state.get("LoadState") == "not-found":
        yield unknown(part, f"systemd has no unit {name}")
        return
    yield evolve(_activity(state), part=part)
    if state.get("NeedDaemonReload") == "yes":
        what = f"{name} has changed since systemd loaded it"
        yield warning(part, what, "systemctl daemon-reload")
    if not at_boot:
        yield warning(part, f"{name} is not started at boot", f"systemctl enable {name}")
    if settings is not None:
        yield _open_files(settings, state)


def _activity(state: Mapping[str, str]) -> CheckResult:
    status = state.get("StatusText", "")
    match state.get("ActiveState"):
        case "active" | "reloading":
            if status.startswith("waiting for"):
                return fault(
                    "daemon", f"it runs, {status}", "see `journalctl -u posd`", passing=True
                )
            return ok("daemon", f"it runs{': ' + status if status else ''}")
        case "activating":
            what = f"it is starting{': ' + status if status else ''}"
            return warning("daemon", what, "see `journalctl -u posd`")
        case "failed":
            what = f"it has failed ({state.get('Result', 'unknown result')})"
            return fault("daemon", what, "see `journalctl -u posd`, then systemctl start posd")
        case _:
            return warning("daemon", "it does not run", "systemctl start posd")


def _open_files(settings: Config, state: Mapping[str, str]) -> CheckResult:
    """Check that the limit of open files allows `limits.connections`: each connection is an open file."""
    allowed = state.get("LimitNOFILE", "")
    wanted = settings.limits.connections + settings.database.pool_size + _SPARE_FILES
    if not re.fullmatch("[0-9]+", allowed) or int(allowed) >= wanted:
        return ok("open files", f"the limit is {allowed or 'unknown'}, and posd needs {wanted}")
    what = f"the limit is {allowed}, and posd needs {wanted} for limits.connections"
    remedy = f"LimitNOFILE={wanted} with `systemctl edit posd`, or lower limits.connections"
    return fault("open files", what, remedy)


def examine_disk(part: str, path: Path) -> CheckResult:
    """Check the free space at `path`, or at its nearest parent folder that can be examined."""
    place = path
    while True:
        try:
            usage = shutil.disk_usage(place)
            break
        except OSError as error:
            if place == place.parent:
                return unknown(part, f"{path}: {error.strerror}")
            place = place.parent
    free = usage.free / usage.total if usage.total else 1.0
    what = f"{usage.free / _GIB:.1f} GiB are free at {place}, {free:.0%}"
    if free < _FULL:
        return fault(part, what, "free disk space: a full disk stops the database and all tills")
    if free < _SCARCE and usage.free < 10 * _GIB:
        return warning(
            part, what, "free disk space, or keep events for a shorter time: delivery.retention"
        )
    return ok(part, what)


def _systemctl(arguments: Sequence[str]) -> str | None:
    """Return the output of systemctl, or None if systemd does not run or does not answer in 5 seconds."""
    program = shutil.which("systemctl")
    if program is None or not Path("/run/systemd/system").is_dir():
        return None
    environ = {**os.environ, "LC_ALL": "C", "SYSTEMD_PAGER": ""}
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            env=environ,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
