"""What posd's own clients agree on when they call a server: where it is, and when to try again.

Both the till and the broadcaster carry a key, so both refuse to send it in clear text over a
network, and both must not come back in step after a restart, so every pause has jitter.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ssl import SSLCertVerificationError
from urllib.parse import quote, urlsplit

from attrs import frozen
from service_identity import VerificationError

Random = Callable[[], float]
"""A source of jitter: uniform in [0, 1), like `random.random`."""

_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


@frozen
class Server:
    """Where a posd answers. `prefix` is a path that a proxy in front of it has added, or empty."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @classmethod
    def at(cls, url: str, *schemes: str) -> Server:
        """Read a base URL of one of these schemes, such as `wss://pos.example.com:9010`.

        Raises ValueError for any other scheme, for credentials or parameters in the URL, and for
        a scheme without TLS unless the host is this machine.
        """
        parts = urlsplit(url)
        if parts.scheme not in schemes:
            raise ValueError(f"the URL must begin with {' or '.join(f'{s}://' for s in schemes)}")
        if not parts.hostname:
            raise ValueError("the URL names no host")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("the URL must have no user, no parameters and no fragment")
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
        server = cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))
        if not server.secure and not _is_loopback(server.host):
            raise ValueError(f"a key is sent to another machine only over TLS: {schemes[0]}://")
        return server

    @property
    def secure(self) -> bool:
        """Whether the scheme means TLS."""
        return self.scheme in ("https", "wss")

    @property
    def authority(self) -> str:
        """Host and port as a URL writes them, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def path(self, *segments: str) -> str:
        """The path of these segments under the prefix, each percent-encoded as one segment."""
        return "/".join((self.prefix, *(quote(segment, safe="") for segment in segments)))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@frozen
class Backoff:
    """Exponential pauses in seconds, each drawn evenly from its upper half.

    Half of a pause is certain and half is chance: a crowd that lost its server in one moment
    spreads out, and none of it comes back at once.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 60.0

    def pause(self, failures: int, random: Random) -> float:
        """The pause after so many failures in a row; the first is number 1."""
        exponent = min(max(failures, 1) - 1, 100)
        full = min(self.initial * self.factor**exponent, self.maximum)
        return full * (0.5 + random() / 2)


def retry_after(value: str | None, now: datetime) -> float | None:
    """The seconds that a `Retry-After` header asks for (RFC 9110 §10.2.3).

    It may have a number of seconds or a date. None for a header that is absent or unreadable,
    and never less than 0.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


def distrust(error: BaseException | None) -> str | None:
    """Why TLS came to nothing, if `error` is about that; None if it is about something else.

    Trying again does not help then: somebody has to mend a certificate or a configuration.
    """
    if isinstance(error, VerificationError):
        return "TLS: the server's certificate is for another name"
    if isinstance(error, SSLCertVerificationError):
        return f"TLS: {error.verify_message}"
    match error.args if error is not None else ():
        case ([(*_, str() as text), *_],):  # OpenSSL's errors are tables of library, function, text
            return f"TLS: {text}"
    return None


def explain(error: BaseException | None) -> str:
    """What went wrong, in a sentence for a person; for want of one, the error's name."""
    return distrust(error) or str(error) or error.__class__.__name__
