"""Check each listener of the configuration: free, in use by posd, or in use by another program."""

from __future__ import annotations

import errno
import http.client
import os
import re
import socket
import ssl
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.endpoints import serverFromString

from posd import __version__
from posd.config import endpoints as endpoint_syntax
from posd.config.endpoints import OtherListener, TCP6Listener, TCPListener, UnixListener
from posd.config.model import Config, ListenerConfig
from posd.errors import InvalidMessage
from posd.maintenance.doctor import CheckResult, fault, ok, unknown, warning
from posd.protocol import jsontext
from posd.security import pem

_SECONDS: Final = 3.0
_LONGEST_SOCKET_PATH: Final = 107
"""Bytes: `sun_path` of Linux's sockaddr_un, without the NUL at its end (unix(7))."""
_CERTIFICATE_REQUIRED: Final = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
"""OpenSSL's name for the alert of RFC 8446, section 4.4.2.4, which posd sends in TLS 1.3."""
_RUNTIME: Final = Path("/run")
"""Where systemd creates the RuntimeDirectory of a unit that starts, and removes it (systemd.exec(5))."""
_SERVER: Final = re.compile(r"posd/(\S+)")


@frozen
class _ListenerAnswered:
    """The HTTP response of a listener.

    `server` is the value of the `Server` field, and `certificate` the server's certificate in DER.
    """

    server: str
    status: int
    body: bytes
    certificate: bytes | None


class _ListenerSilent(Exception):
    """The connection was accepted, but no HTTP response came. The text gives the reason."""


class _ClientCertificateRequired(_ListenerSilent):
    """The listener requires a client certificate."""


def examine(
    settings: Config, *, asleep: bool = False, running: bool = False
) -> Iterator[CheckResult]:
    """Check each listener. A TLS listener must use the certificate that is in the file now.

    `asleep`: systemd listens for a stopped daemon; the check must not connect, because that starts posd.
    `running`: a daemon runs, so a listener that does not answer in time may be the daemon under load.
    """
    chain = pem.PEMReading().certificates("certificate", settings.tls.certificate)
    for listener in settings.listen:
        part = f"listener {listener.name}"
        endpoint = endpoint_syntax.read(listener.endpoint)
        if asleep:
            yield unknown(part, "systemd listens for posd; a connection would start posd")
            continue
        match endpoint:
            case TCPListener() | TCP6Listener():
                yield from _examine_listener(part, listener, endpoint, settings, chain, running)
            case UnixListener():
                yield from _examine_listener(part, listener, endpoint, settings, chain, running)
            case OtherListener(inner=TCPListener() | TCP6Listener() | UnixListener() as inner):
                yield _examine_proxied(part, listener, inner)
            case OtherListener():
                yield _examine_plugin(part, listener)
            case _:
                yield unknown(part, f"{listener.endpoint} can be checked only by starting posd")


def _examine_listener(
    part: str,
    listener: ListenerConfig,
    endpoint: TCPListener | TCP6Listener | UnixListener,
    settings: Config,
    chain: Sequence[x509.Certificate] | None,
    running: bool,
) -> Iterator[CheckResult]:
    try:
        connection = _connect(endpoint)
    except PermissionError:
        yield unknown(part, f"no permission to connect to {listener.endpoint}; try again as root")
        return
    except OSError:
        yield _examine_unused(part, listener, endpoint)
        return
    with connection:
        try:
            answered = _ask(connection, tls=listener.tls)
        except _ListenerSilent as error:
            if isinstance(error, _ClientCertificateRequired) and settings.tls.client_ca is not None:
                yield ok(part, "a server listens that requires a client certificate, as configured")
                return
            if running and isinstance(error.__cause__, TimeoutError):
                what = f"{listener.endpoint} does not answer within {_SECONDS:g} seconds"
                yield fault(part, what, "see `journalctl -u posd` and the load", passing=True)
                return
            remedy = "find the program with `ss -ltnp`; stop it, or configure another port"
            what = f"{listener.endpoint} is in use by another program: {error}"
            yield fault(part, what, remedy, stops=True)
            return
    yield from _judge(part, answered, chain)


def _judge(
    part: str, answered: _ListenerAnswered, chain: Sequence[x509.Certificate] | None
) -> Iterator[CheckResult]:
    """Report the state that posd answers, or that another program answers."""
    running = _SERVER.match(answered.server)
    if running is None:
        name = answered.server[:60] or "an unknown server"
        remedy = "find the program with `ss -ltnp`; stop it, or configure another port"
        what = f"it is in use by another program: {name} answers"
        yield fault(part, what, remedy, stops=True)
        return
    if answered.status == 200:
        yield ok(part, f"posd {running[1]} answers that it is ready")
    else:
        missing = ", ".join(_missing(answered.body)) or f"it answers {answered.status}"
        what = f"posd {running[1]} runs but is not ready: {missing}"
        yield fault(part, what, "see `journalctl -u posd`", passing=True)
    if running[1] != __version__:
        what = f"posd {running[1]} runs, but posd {__version__} is installed"
        yield warning(part, what, "systemctl restart posd", passing=True)
    in_file = chain[0].public_bytes(Encoding.DER) if chain else None
    if in_file is not None and answered.certificate not in (None, in_file):
        what = "posd uses another certificate than the file contains"
        remedy = "systemctl reload posd, and see `journalctl -u posd`"
        yield warning(part, what, remedy, passing=True)


def _missing(body: bytes) -> list[str]:
    try:
        answer = jsontext.decode(body.decode("utf-8", "replace"))
    except InvalidMessage:
        return []
    missing = answer.get("missing", []) if isinstance(answer, dict) else []
    return [str(each)[:60] for each in missing] if isinstance(missing, list) else []


def _connect(endpoint: TCPListener | TCP6Listener | UnixListener) -> socket.socket:
    """Connect to a listener of this machine. Raises `OSError`."""
    if isinstance(endpoint, UnixListener):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_SECONDS)
        try:
            connection.connect(endpoint.address)
        except OSError:
            connection.close()
            raise
        return connection
    return socket.create_connection((_reachable(endpoint.interface), endpoint.port), _SECONDS)


def _reachable(interface: str) -> str:
    """Return an address at which a listener on `interface` can be reached from this machine."""
    if interface in ("", "localhost"):
        return "127.0.0.1"
    address = ip_address(interface)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return interface


def _ask(connection: socket.socket, *, tls: bool) -> _ListenerAnswered:
    """Send `GET /health/ready`. The certificate is not verified, since the peer is on this machine.

    Raises `_ListenerSilent` if no HTTP response comes.
    """
    certificate = None
    spoken: socket.socket = connection
    try:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            secure = context.wrap_socket(connection)
            certificate = secure.getpeercert(binary_form=True)
            spoken = secure
        with spoken:
            request = "GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            with suppress(OSError):
                # The peer may have answered and closed already. The response can still be read.
                spoken.sendall(request.encode())
            answer = http.client.HTTPResponse(spoken)
            answer.begin()
            return _ListenerAnswered(
                answer.getheader("Server", ""), answer.status, answer.read(4096), certificate
            )
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, ssl.SSLError) and error.reason == _CERTIFICATE_REQUIRED:
            raise _ClientCertificateRequired(str(error)) from error
        raise _ListenerSilent(str(error) or type(error).__name__) from error


def _examine_unused(
    part: str, listener: ListenerConfig, endpoint: TCPListener | TCP6Listener | UnixListener
) -> CheckResult:
    """Check whether posd could listen at an endpoint that refuses connections."""
    if isinstance(endpoint, UnixListener):
        return _examine_unused_path(part, Path(endpoint.address))
    try:
        # Bind as the daemon would, and close at once.
        interface = endpoint.interface or "0.0.0.0"  # nosec B104
        with socket.create_server((interface, endpoint.port), family=_family(endpoint)):
            return ok(part, f"port {endpoint.port} is free")
    except OSError as error:
        match error.errno:
            case errno.EADDRNOTAVAIL:
                what = f"no interface of this machine has the address {endpoint.interface}"
                remedy = 'configure an address of this machine, or "interface=\\\\:\\\\:"'
                return fault(part, what, remedy, stops=True)
            case errno.EACCES:
                what = f"this user may not listen on port {endpoint.port}, which is below 1024"
                return warning(
                    part, what, "let posd.socket open the port: ListenStream= in that unit"
                )
            case errno.EADDRINUSE:
                what = f"port {endpoint.port} is in use by a program that does not answer"
                return fault(part, what, "find the program with `ss -ltnp`", stops=True)
        what = f"{listener.endpoint}: {error.strerror}"
        return fault(part, what, "configure another endpoint", stops=True)


def _examine_unused_path(part: str, path: Path) -> CheckResult:
    """Check whether posd could create a Unix socket at a path where no program listens."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        what = (
            f"{path} is longer than {_LONGEST_SOCKET_PATH} bytes, the maximum for a socket's path"
        )
        return fault(part, what, "configure a shorter path", stops=True)
    if not path.parent.is_dir():
        if _RUNTIME in path.parents:
            return unknown(part, f"systemd creates {path.parent} when it starts posd")
        what = f"{path.parent} is not a folder, so posd cannot create a socket in it"
        return fault(part, what, f"mkdir {path.parent}, or configure another path", stops=True)
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            return unknown(part, f"no permission to write to {path.parent}; try again as posd")
        return ok(part, f"{path} is free")
    except OSError as error:
        return unknown(part, f"{path}: {error.strerror}; try again as root")
    # Twisted replaces a socket of a process that has ended: the lock file beside it names the process.
    if is_socket and path.with_name(f"{path.name}.lock").is_symlink():
        return ok(part, f"{path} remains from a posd that has ended; posd will replace it")
    what = f"{path} exists, and no program listens on it"
    return fault(part, what, f"rm {path}, or configure another path", stops=True)


def _examine_proxied(
    part: str, listener: ListenerConfig, inner: TCPListener | TCP6Listener | UnixListener
) -> CheckResult:
    """Check a listener that expects a PROXY header, which this check does not send."""
    try:
        with _connect(inner):
            return unknown(
                part, f"a server listens at {listener.endpoint}, which only a proxy can use"
            )
    except PermissionError:
        return unknown(part, f"no permission to connect to {listener.endpoint}; try again as root")
    except OSError:
        return _examine_unused(part, listener, inner)


def _examine_plugin(part: str, listener: ListenerConfig) -> CheckResult:
    """Check that Twisted can parse an endpoint of another kind."""
    try:
        serverFromString(None, listener.endpoint)
    except Exception as error:
        what = f"{listener.endpoint} is not an endpoint of Twisted or of a plugin: {error}"
        return fault(part, what, "configure an endpoint such as tcp:port=9010", stops=True)
    return unknown(part, f"{listener.endpoint} can be checked only by starting posd")


def _family(endpoint: TCPListener | TCP6Listener) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in endpoint.interface else socket.AF_INET
