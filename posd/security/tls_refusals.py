"""Log lines about failed TLS handshakes.

twisted.web logs nothing, because there is no request, and clients often show only that the connection was
closed.
"""

from __future__ import annotations

from typing import Final

from OpenSSL import SSL
from twisted.logger import Logger

from posd.security.rate_limits import Clock, RefusalLogLimit

_log = Logger()

_FATAL: Final = 2
_ALERTS: Final = {
    42: "its certificate is broken or not valid yet",
    43: "its certificate is not a client certificate",
    44: "its certificate was revoked",
    45: "its certificate has expired",
    46: "its certificate cannot be used",
    48: "its certificate is not signed by an authority in tls.client_ca",
    51: "it cannot prove that it has the key of its certificate",
}
"""Meanings of the alerts that posd sends about a client's certificate (RFC 8446 §6.2).

OpenSSL's error says only that the verification failed.
"""
_ERRORS: Final = {
    "peer did not return a certificate": "it has no certificate",
    "no shared cipher": "it shares no cipher suite with posd; tls.legacy_ciphers allows older ones",
    "unsupported protocol": "it does not support tls.minimum_version",
    "alert unknown ca": "it does not trust the authority of tls.certificate",
    "alert bad certificate": "it does not accept tls.certificate, perhaps because of the host name",
    "alert certificate unknown": "it does not accept tls.certificate",
    "alert certificate expired": "it says that tls.certificate has expired",
}
"""Meanings of OpenSSL's reasons, by their end. The client has sent the alerts."""


class TLSRefusals:
    """Logs a line for each failed handshake, within the limits of `RefusalLogLimit`."""

    def __init__(self, seconds: Clock) -> None:
        self._limit = RefusalLogLimit(seconds)

    def info_callback(self, connection: SSL.Connection, where: int, what: int) -> None:
        """Log a fatal alert about a client's certificate. OpenSSL calls this at every step of a handshake."""
        if where & SSL.SSL_CB_WRITE_ALERT != SSL.SSL_CB_WRITE_ALERT or what >> 8 != _FATAL:
            return
        reason = _ALERTS.get(what & 0xFF)
        if reason is not None:
            peer = connection.get_app_data().getPeer()
            self._log_refusal(reason, getattr(peer, "host", "-"))

    def failed(self, error: BaseException, address: str) -> None:
        """Log the error that has ended a connection, if it is a known error of OpenSSL."""
        queue = error.args[0] if isinstance(error, SSL.Error) and error.args else ()
        for _library, _function, text in queue if isinstance(queue, list) else ():
            reason = next((why for end, why in _ERRORS.items() if str(text).endswith(end)), None)
            if reason is not None:
                self._log_refusal(reason, address)
                return

    def _log_refusal(self, reason: str, address: str) -> None:
        unsaid = self._limit.take(address)
        if unsaid is not None:
            _log.info(
                "not let in: reason={reason!r} address={address} unsaid={unsaid}",
                reason=reason,
                address=address,
                unsaid=unsaid,
            )
