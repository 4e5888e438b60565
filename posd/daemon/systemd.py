"""The service manager's side of posd: telling systemd how it goes, and taking over its sockets.

The protocol is that of sd_notify(3): datagrams of `NAME=value` lines to a unix socket named by
`$NOTIFY_SOCKET`. Without that variable, on a terminal or under another supervisor, everything
here does nothing.
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
"""Seconds that a notification may wait for room in systemd's queue before it is given up.

Dropping READY at once because the queue is full for a moment would cost the start; waiting without
end for a hung manager would cost the service.
"""

_DOMAINS = {socket.AF_INET: "INET", socket.AF_INET6: "INET6", socket.AF_UNIX: "UNIX"}
"""The families that Twisted can adopt, by the names that it has for them."""


class Notifier:
    """Tells systemd what state the daemon is in; see sd_notify(3) for what each message does.

    A notification that cannot be delivered is logged and forgotten: the tills matter more.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _socket_address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        if self._address is not None:
            # Kept open: with no descriptor left, a sign of life could not be given otherwise.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(_SEND_TIMEOUT)

    @property
    def enabled(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    def ready(self) -> None:
        """Start-up, or the reload last announced, is complete."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show one line to people who ask `systemctl status`."""
        self._send(f"STATUS={_one_line(text)}")

    def reloading(self, monotonic_usec: int) -> None:
        """A reload begins, at this reading of CLOCK_MONOTONIC in µs; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_usec}")

    def stopping(self) -> None:
        """A shutdown has begun."""
        self._send("STOPPING=1")

    def extend_timeout(self, usec: int) -> None:
        """Ask for so many µs from now, beyond the unit's own limit, to start, run or stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={usec}")

    def watchdog(self) -> None:
        """Prove to be alive."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._address is None or self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(errors="replace"), self._address)
        except OSError as error:
            _log.warn("systemd was not told {message!r}: {error}", message=message, error=error)


def _socket_address(value: str) -> str | None:
    """The address in the form that `socket` takes; None for none, or one that is no unix socket.

    A leading `@` stands for the NUL byte of an abstract address. systemd also knows `vsock:`,
    through which a virtual machine tells its host, and which is not for a service in it.
    """
    if value.startswith("@"):
        return "\0" + value[1:]
    return value if value.startswith("/") else None


def _one_line(text: str) -> str:
    """Keep a line break in a text from beginning another assignment."""
    return " ".join(text.splitlines())


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """The seconds within which systemd wants a sign of life, or None where it wants none.

    See sd_watchdog_enabled(3): the variables may be another process's, inherited.
    """
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    usec = environ.get("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if usec.isdecimal() and int(usec) > 0 else None


def is_journal(environ: Mapping[str, str], stream: TextIO) -> bool:
    """Whether what is written there goes to the journal, which then reads priorities, sd-daemon(3).

    `$JOURNAL_STREAM` names the file that it was, and may have been inherited; see systemd.exec(5).
    """
    try:
        file = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{file.st_dev}:{file.st_ino}"


class Watchdog(Service):
    """Gives a sign of life twice per interval while the reactor turns and `alive` says so.

    A lost database is not a reason for systemd to kill the daemon. A reactor that is stuck is one, and
    so is a loop that no longer tries. `interval` is in seconds, from `watchdog_interval`.
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
        done.addErrback(lambda failure: _log.failure("The watchdog stopped.", failure))

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._loop.running:
            self._loop.stop()

    def _notify(self) -> None:
        if self._alive():
            self._notifier.watchdog()


def inherited_names(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the sockets that systemd handed to this process, in order of descriptors.

    A name is the FileDescriptorName= of a socket unit and comes once for each of its
    ListenStream= lines.
    """
    if environ.get("LISTEN_PID", str(os.getpid())) != str(os.getpid()):
        return ()
    names = environ.get("LISTEN_FDNAMES", "")
    return tuple(names.split(":")) if names else ()


def inherited_endpoints(
    reactor: IReactorSocket, environ: Mapping[str, str]
) -> dict[str, tuple[IStreamServerEndpoint, ...]]:
    """The sockets that systemd handed to this process, by name, as endpoints to listen on.

    Each may be listened on once. A name has several endpoints where its socket unit has several
    addresses. Raises `StartError` for a socket that no till could connect to.
    """
    endpoints: dict[str, tuple[IStreamServerEndpoint, ...]] = {}
    for index, name in enumerate(inherited_names(environ)):
        try:
            endpoint = _adopted(reactor, name, index)
        except IndexError:
            # LISTEN_PID is no help: Twisted deletes it, and LISTEN_FDS, when its endpoints are
            # imported. What it then knows is what was really handed to this process; the names
            # alone may have been left to us by a parent.
            return {}
        endpoints[name] = (*endpoints.get(name, ()), endpoint)
    return endpoints


def _adopted(reactor: IReactorSocket, name: str, index: int) -> IStreamServerEndpoint:
    """The inherited socket at this place as an endpoint; IndexError where there is none.

    Twisted must be told the address family and believes what it is told, so the socket is asked.
    """
    probe = serverFromString(reactor, f"systemd:domain=UNIX:index={index}")
    assert isinstance(probe, AdoptedStreamServerEndpoint)
    with socket.socket(fileno=os.dup(probe.fileno)) as inherited:
        listening = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        domain = _DOMAINS.get(inherited.family)
        if not listening or inherited.type != socket.SOCK_STREAM or domain is None:
            raise errors.StartError(
                f"The inherited socket {name!r} does not accept connections: "
                "its unit must have ListenStream= and Accept=no."
            )
    endpoint: IStreamServerEndpoint = serverFromString(
        reactor, f"systemd:domain={domain}:index={index}"
    )
    return endpoint
