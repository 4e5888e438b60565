"""What posd's own clients agree on when they call a server: where it is, and when to try again.

Both the till and the broadcaster carry a key, so both refuse to send it in clear text over a
network, and both must not come back in step after a restart, so every pause has jitter.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from ssl import SSLCertVerificationError, SSLError
from urllib.parse import quote, urlsplit

from attrs import frozen
from service_identity import CertificateError, VerificationError

Random = Callable[[], float]
"""A source of jitter: uniform in [0, 1), like `random.random`."""

_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}

_ALERTS = {
    "alert certificate required": "it has no certificate",
    "alert handshake failure": "it has no certificate, or speaks another TLS",
    "alert unknown ca": "its certificate is of another authority",
    "alert certificate expired": "its certificate has ended",
    "alert bad certificate": "its certificate is broken or has not begun",
    "alert unsupported certificate": "its certificate is not one for clients",
    "alert certificate unknown": "its certificate cannot be used",
}
"""What a server says (RFC 8446 §6.2), by how OpenSSL's words for it end."""


_NO_TLS = (
    *("wrong version number", "http request", "packet length too long", "unexpected eof"),
    *("record layer failure", "unknown protocol", "unsupported protocol"),
)
"""OpenSSL's words for an answer that is no TLS, or none that it speaks."""

_UNTRUSTED = {
    9: "the server's certificate is not valid yet; see whether this machine's clock is right",
    10: "the server's certificate has expired",
    18: "the server's certificate is signed by itself and not trusted here",
    19: "the authority of the server's certificate is not trusted here",
    20: "the authority of the server's certificate is not known here",
    21: "the authority of the server's certificate is not known here",
    26: "the server's certificate is not one for servers",
    23: "the server's certificate was revoked",
}
"""Results of a verification, by OpenSSL's number for them (x509_vfy.h, openssl-verify(1))."""


class UntrustedCertificate(Exception):
    """The server's certificate could not be verified; `code` is OpenSSL's number for the reason."""

    def __init__(self, code: int) -> None:
        default = "the server's certificate cannot be verified"
        super().__init__(_UNTRUSTED.get(code, f"{default} (OpenSSL's error {code})"))


@frozen
class Credentials:
    """A client's own certificate, for a server that asks for one: PEM files, the issuers' below it."""

    certificate: Path
    private_key: Path


@frozen
class BaseUrl:
    """Where a posd answers. `prefix` is a path that a proxy in front of it has added, or empty."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @classmethod
    def parse(cls, url: str, *schemes: str) -> BaseUrl:
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
        if not server.secure and not server.is_loopback:
            raise ValueError(f"a key is sent to another machine only over TLS: {schemes[0]}://")
        return server

    @property
    def secure(self) -> bool:
        """Whether the scheme means TLS."""
        return self.scheme in ("https", "wss")

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, so that TLS can be done without."""
        return _is_loopback(self.host)

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


def tls_failure(error: BaseException | None) -> str | None:
    """Why TLS came to nothing, if `error` is about that; None if it is about something else.

    Trying again does not help then: somebody has to mend a certificate or a configuration.
    """
    match error:
        case UntrustedCertificate():
            return f"TLS: {error}"
        case VerificationError():
            return "TLS: the server's certificate is for another name"
        case CertificateError():
            return f"TLS: the server's certificate names no server ({error})"
        case SSLCertVerificationError():
            return f"TLS: {error.verify_message}"
        case SSLError(reason=str() as name):
            return _alert_meaning(name.lower().replace("_", " "))
    match error.args if error is not None else ():
        case ([(*_, str() as text), *_],):  # OpenSSL's errors are tables of library, function, text
            return _alert_meaning(text) or f"TLS: {text}"
    return None


def speaks_no_tls(error: BaseException | None) -> bool:
    """Tell whether TLS came to nothing because the other side speaks something else."""
    match error.args if error is not None else ():
        case ([(*_, str() as text), *_],):
            return any(words in text for words in _NO_TLS)
    return False


def _alert_meaning(text: str) -> str | None:
    """What the server has against a certificate of ours, if that is what OpenSSL says."""
    for alert, meaning in _ALERTS.items():
        if text.endswith(alert):
            return f"TLS: the server refuses this client: {meaning}"
    return None


def explain(error: BaseException | None) -> str:
    """What went wrong, in a sentence for a person; for want of one, the error's name."""
    return tls_failure(error) or str(error) or error.__class__.__name__
