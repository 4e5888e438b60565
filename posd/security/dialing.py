"""Shared parts of posd's own clients: the URL of a server, pauses between attempts, TLS errors.

The clients send a key, so they refuse to connect to another machine without TLS. Pauses have jitter, so that
clients do not reconnect all at once after a restart of the server.
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
    "alert handshake failure": "it has no certificate, or shares no version or cipher suite of TLS",
    "alert unknown ca": "its certificate is signed by another authority",
    "alert certificate expired": "its certificate has expired",
    "alert bad certificate": "its certificate is broken or not valid yet",
    "alert unsupported certificate": "its certificate is not a client certificate",
    "alert certificate unknown": "its certificate cannot be used",
}
"""Meanings of the alerts of a server (RFC 8446 §6.2), by the end of OpenSSL's reason."""


_NO_TLS = (
    *("wrong version number", "http request", "packet length too long", "unexpected eof"),
    *("record layer failure", "unknown protocol", "unsupported protocol"),
)
"""OpenSSL's reasons for an answer that is not TLS, or not a version that OpenSSL speaks."""

_UNTRUSTED = {
    9: "the server's certificate is not valid yet; check the clock of this machine",
    10: "the server's certificate has expired",
    18: "the server's certificate is self-signed and not trusted here",
    19: "the authority of the server's certificate is not trusted here",
    20: "the authority of the server's certificate is not known here",
    21: "the authority of the server's certificate is not known here",
    26: "the server's certificate is not a server certificate",
    23: "the server's certificate was revoked",
}
"""Meanings of OpenSSL's verification errors, by number (x509_vfy.h, openssl-verify(1))."""


class UntrustedCertificate(Exception):
    """The server's certificate could not be verified. `code` is OpenSSL's number of the error."""

    def __init__(self, code: int) -> None:
        default = "the server's certificate cannot be verified"
        super().__init__(_UNTRUSTED.get(code, f"{default} (OpenSSL's error {code})"))


@frozen
class Credentials:
    """The certificate of a client: PEM files. `certificate` may have the issuers after the certificate."""

    certificate: Path
    private_key: Path


@frozen
class BaseUrl:
    """The base URL of a posd. `prefix` is the path that a proxy adds before the paths of posd, or empty."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @classmethod
    def parse(cls, url: str, *schemes: str) -> BaseUrl:
        """Parse a base URL of one of these schemes, such as `wss://pos.example.com:9010`.

        Raises ValueError for another scheme, for credentials or parameters in the URL, and for a scheme
        without TLS unless the host is this machine.
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
        """Whether the host is this machine, so that TLS is not required."""
        return _is_loopback(self.host)

    @property
    def authority(self) -> str:
        """Host and port as in a URL, with an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def path(self, *segments: str) -> str:
        """Return the path of these segments below the prefix. Each segment is percent-encoded."""
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
    """Exponential pauses in seconds, with jitter.

    A pause is drawn uniformly from the upper half of its full length. Clients that have lost their server
    at the same time come back at different times, and none at once.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 60.0

    def pause(self, failures: int, random: Random) -> float:
        """Return the pause in seconds after so many failures in a row, at least 1."""
        exponent = min(max(failures, 1) - 1, 100)
        full = min(self.initial * self.factor**exponent, self.maximum)
        return full * (0.5 + random() / 2)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds of a `Retry-After` header, a number or a date (RFC 9110 §10.2.3).

    At least 0. None if the header is absent or invalid.
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
    """Return a description of a TLS error. None if `error` is not about TLS.

    A retry does not help: a certificate or the configuration must be corrected.
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
        case ([(*_, str() as text), *_],):  # pyOpenSSL: a list of (library, function, reason)
            return _alert_meaning(text) or f"TLS: {text}"
    return None


def speaks_no_tls(error: BaseException | None) -> bool:
    """Return whether the TLS handshake failed because the peer does not speak TLS."""
    match error.args if error is not None else ():
        case ([(*_, str() as text), *_],):
            return any(words in text for words in _NO_TLS)
    return False


def _alert_meaning(text: str) -> str | None:
    """Return why the server refuses this client, if OpenSSL's reason is a known alert."""
    for alert, meaning in _ALERTS.items():
        if text.endswith(alert):
            return f"TLS: the server refuses this client: {meaning}"
    return None


def explain(error: BaseException | None) -> str:
    """Describe an error for a person. An error without text is described by its class name."""
    return tls_failure(error) or str(error) or error.__class__.__name__
