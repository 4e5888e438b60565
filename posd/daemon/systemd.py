"""Notifications to systemd, its watchdog, and the sockets that it hands over.

The protocol is sd_notify(3): datagrams of `NAME=value` lines to the unix socket `$NOTIFY_SOCKET`. Without
that variable, on a terminal or under another supervisor, a notification does nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

from twisted.application.service import Service
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from posd import errors

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorSocket, IReactorTime, IStreamServerEndpoint

_log = Logger()

_SEND_TIMEOUT = 1.0
"""Seconds that a notification waits for room in the queue of systemd, and blocks the reactor.

A notification that is dropped at once when the queue is full for a moment could be READY=1, and the start
would fail. Without a limit, a systemd that hangs would stop the service.
"""

_DOMAINS = {socket.AF_INET: "INET", socket.AF_INET6: "INET6", socket.AF_UNIX: "UNIX"}
"""The address families that Twisted can adopt, with Twisted's names."""


class Notifier:
    """Notifies systemd of the state of the daemon. sd_notify(3) describes the messages.

    A notification that cannot be sent is logged and dropped, and posd continues.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _socket_address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        if self._address is not None:
            # Kept open, so that the watchdog can be notified when no file descriptor is left.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(_SEND_TIMEOUT)

    @property
    def enabled(self) -> bool:
        """Whether `$NOTIFY_SOCKET` names a socket."""
        return self._address is not None

    def ready(self) -> None:
        """Report that the start, or the last announced reload, is complete."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Set the status line of `systemctl status`."""
        self._send(f"STATUS={_one_line(text)}")

    def reloading(self, monotonic_usec: int) -> None:
        """Report that a reload begins, at this time of CLOCK_MONOTONIC in µs. `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_usec}")

    def stopping(self) -> None:
        """Report that a shutdown has begun."""
        self._send("STOPPING=1")

    def extend_timeout(self, usec: int) -> None:
        """Extend the time limit of the unit for the present start, run or stop to `usec` µs from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={usec}")

    def watchdog(self) -> None:
        """Reset the watchdog timer."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._address is None or self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(errors="replace"), self._address)
        except OSError as error:
            _log.warn(
                "the notification {message!r} to systemd failed: {error}",
                message=message,
                error=error,
            )


def _socket_address(value: str) -> str | None:
    """Return the address in the form of the `socket` module. None if it is not that of a unix socket.

    A leading `@` stands for the NUL byte of an abstract address. systemd also knows `vsock:`, which a
    virtual machine uses to notify its host. Services do not use it.
    """
    if value.startswith("@"):
        return "\0" + value[1:]
    return value if value.startswith("/") else None


def _one_line(text: str) -> str:
    """Replace line breaks, because a line break would begin another assignment."""
    return " ".join(text.splitlines())


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Return the watchdog interval of systemd in seconds, or None if the watchdog is off.

    The variables may be inherited and meant for another process; see sd_watchdog_enabled(3).
    """
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    usec = environ.get("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if usec.isdecimal() and int(usec) > 0 else None


def is_journal(environ: Mapping[str, str], stream: TextIO) -> bool:
    """Return whether a stream goes to the journal, which reads priorities in its lines (sd-daemon(3)).

    `$JOURNAL_STREAM` may be inherited, so its device and inode are compared; see systemd.exec(5).
    """
    try:
        file = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{file.st_dev}:{file.st_ino}"


class Watchdog(Service):
    """Notifies the watchdog of systemd twice per interval while the reactor runs and `alive` returns True.

    systemd must kill the daemon if the reactor hangs or a loop makes no attempts any more, but not if the
    database cannot be reached. `interval` is in seconds, from `watchdog_interval`.
    """

    name = "watchdog"

    def __init__(
        self,
        reactor: IReactorTime,
        notifier: Notifier,
        interval: float,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        self._half_interval = interval / 2
        self._notifier = notifier
        self._alive = alive
        self._loop = LoopingCall(self._notify)
        self._loop.clock = reactor

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        done = self._loop.start(self._half_interval)
        done.addErrback(
            lambda failure: _log.failure(
                "the watchdog loop failed; systemd will restart posd", failure
            )
        )

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._loop.running:
            self._loop.stop()

    def _notify(self) -> None:
        if self._alive():
            self._notifier.watchdog()


def inherited_names(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the sockets that systemd has passed to this process, in order of descriptors.

    A name is the FileDescriptorName= of a socket unit. It occurs once for each ListenStream= line.
    """
    if environ.get("LISTEN_PID", str(os.getpid())) != str(os.getpid()):
        return ()
    names = environ.get("LISTEN_FDNAMES", "")
    return tuple(names.split(":")) if names else ()


def inherited_endpoints(
    reactor: IReactorSocket, environ: Mapping[str, str]
) -> dict[str, tuple[IStreamServerEndpoint, ...]]:
    """Return the sockets that systemd has passed to this process, by name, as endpoints.

    Each endpoint can be listened on once. A name has several endpoints if its socket unit has several
    addresses. Raises `StartError` for a socket that does not accept stream connections.
    """
    endpoints: dict[str, tuple[IStreamServerEndpoint, ...]] = {}
    for index, name in enumerate(inherited_names(environ)):
        try:
            endpoint = _adopted(reactor, name, index)
        except IndexError:
            # The names are inherited from a parent, and no socket was passed. LISTEN_PID cannot tell,
            # because Twisted deletes LISTEN_PID and LISTEN_FDS when its endpoints are imported.
            return {}
        endpoints[name] = (*endpoints.get(name, ()), endpoint)
    return endpoints


def _adopted(reactor: IReactorSocket, name: str, index: int) -> IStreamServerEndpoint:
    """Return the inherited socket with this index as an endpoint. Raises IndexError if there is none.

    Twisted does not check the address family that it is given, so the family is read from the socket.
    """
    probe = serverFromString(reactor, f"systemd:domain=UNIX:index={index}")
    assert isinstance(probe, AdoptedStreamServerEndpoint)
    with socket.socket(fileno=os.dup(probe.fileno)) as inherited:
        listening = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        domain = _DOMAINS.get(inherited.family)
        if not listening or inherited.type != socket.SOCK_STREAM or domain is None:
            raise errors.StartError(
                f"The inherited socket {name!r} does not accept connections: "
                "its socket unit needs ListenStream= and Accept=no."
            )
    endpoint: IStreamServerEndpoint = serverFromString(
        reactor, f"systemd:domain={domain}:index={index}"
    )
    return endpoint
