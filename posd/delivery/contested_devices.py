"""Detects contested devices: two machines whose connections supersede each other again and again.

If a till was copied with its key and its device name, the copy connects beside the original. Each new
connection supersedes the connection of the other machine, which reconnects at once. A client that respects
close code 4009 stops. Many libraries reconnect whatever the code is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

from twisted.logger import Logger

from posd.values import Terminal

_DISPLACEMENTS: Final = 5
_WINDOW_SECONDS: Final = 60.0
"""A device is contested after so many displacements within so many seconds.

A till with a poor network also displaces its own dead connections, but less often.
"""


class ContestedDevices:
    """Counts displacements by device. `seconds` is a monotonic clock."""

    _log = Logger()

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._times: dict[Hashable, deque[float]] = {}
        self._warned: dict[Hashable, float] = {}

    def __contains__(self, device: Hashable) -> bool:
        times = self._times.get(device)
        return (
            times is not None
            and len(times) == _DISPLACEMENTS
            and self._seconds() - times[0] < _WINDOW_SECONDS
        )

    def displaced(self, device: Hashable, terminal: Terminal) -> None:
        """A connection of the device was superseded. Logs a warning once a minute while it is contested."""
        now = self._seconds()
        self._times.setdefault(device, deque(maxlen=_DISPLACEMENTS)).append(now)
        if device in self and device not in self._warned:
            self._warned[device] = now
            self._log.warn(
                "a device is contested: tenant={tenant} device={device}. Its connections superseded each"
                " other {count} times within {seconds} s: two machines use its key, or one machine connects"
                " twice. posd lets a new connection take the device only after ten seconds. Give each"
                " machine a key of its own",
                tenant=terminal.tenant.slug,
                device=terminal.device_id,
                count=_DISPLACEMENTS,
                seconds=round(_WINDOW_SECONDS),
            )

    def forget(self) -> None:
        """Delete entries that are older than a minute."""
        before = self._seconds() - _WINDOW_SECONDS
        for device in [each for each, times in self._times.items() if times[-1] < before]:
            del self._times[device]
        for device in [each for each, time in self._warned.items() if time < before]:
            del self._warned[device]
