"""Why a connection ended, and what a till does next: the table of close codes, as code.

An `Outcome` is made from a Close frame, an HTTP response or an error. `reconnect_pause` returns how long
to wait after it. This module does no I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime

from attrs import frozen
from twisted.internet.error import DNSLookupError
from twisted.python.failure import Failure

from posd.errors import InvalidMessage
from posd.protocol.jsontext import decode
from posd.security.dialing import (
    Backoff,
    Random,
    explain,
    retry_after,
    speaks_no_tls,
    tls_failure,
)


class NextStep(enum.Enum):
    """What a till does after the end of a connection."""

    AT_ONCE = "at once"
    """Reconnect within a second, with jitter: the server restarts."""

    RETRY = "retry"
    """Reconnect with a back-off from a second to a minute: the failure is temporary."""

    WAIT = "wait"
    """Reconnect after minutes: the failure probably lasts until an operator removes its cause."""

    STOP = "stop"
    """Do not reconnect: an attempt would do harm or always fail, and an operator is needed."""


class Fault(enum.Enum):
    """A permanent cause of a failed attempt, if it is known."""

    NO_HOST = "the host name cannot be resolved"
    UNTRUSTED = "the certificate of the server, or of the client, is not trusted"
    NO_TLS = "the port does not use TLS"
    NO_ANSWER = "the port uses another protocol, perhaps TLS, or does not answer"
    NO_POSD = "the server is another program, or a proxy in front of posd"
    NO_SUCH = "posd does not know the tenant or resource"


_BY_CLOSE_CODE = {
    1001: NextStep.AT_ONCE,
    1002: NextStep.WAIT,
    1003: NextStep.WAIT,
    1007: NextStep.WAIT,
    1008: NextStep.WAIT,
    1009: NextStep.WAIT,
    1013: NextStep.RETRY,
    4001: NextStep.STOP,
    4009: NextStep.STOP,
}
_BY_STATUS = {
    401: NextStep.STOP,
    403: NextStep.STOP,
    408: NextStep.RETRY,
    425: NextStep.RETRY,
    429: NextStep.RETRY,
}

_MEANINGS = {
    1001: "the server is going away",
    1003: "the server does not support the message",
    1008: "a message violated the server's policy",
    1009: "a message was too big for the server",
    1013: "this till fell too far behind",
    4001: "the key was revoked or has expired",
    4009: "superseded by a newer connection of the same device",
}

_RETRY = Backoff(initial=1, maximum=60)
_WAIT = Backoff(initial=60, maximum=900)
_RESTART_JITTER = 1.0
_LONGEST_ASKED = 3600.0


@frozen
class Outcome:
    """The end of a connection, or of an attempt to connect.

    `code` is the close code (RFC 6455 §7.4) and `status` the HTTP status, if there is one. `name` is
    the server's error code for a refusal, such as `device_key_required`. `asked` is the number of
    seconds of `Retry-After`. `fault` is a permanent cause. A till reconnects nevertheless, because an
    operator may remove the cause.
    """

    reason: str
    next_step: NextStep
    code: int | None = None
    status: int | None = None
    name: str | None = None
    asked: float | None = None
    fault: Fault | None = None

    @classmethod
    def closed(cls, code: int | None, reason: str | None) -> Outcome:
        """Return the outcome of a Close frame with a code, or without one."""
        said = reason or (_MEANINGS.get(code) if code is not None else None)
        text = f"closed with {code if code is not None else 'no code'}"
        following = NextStep.RETRY if code is None else _BY_CLOSE_CODE.get(code, NextStep.RETRY)
        return cls(f"{text}: {said}" if said else text, following, code=code)

    @classmethod
    def refused(
        cls, status: int, headers: Mapping[str, str], body: bytes, now: datetime
    ) -> Outcome:
        """Return the outcome of a handshake that was not answered with 101.

        Names of `headers` are in lower case. A `body` in posd's form adds the reason and its name. Any
        other body, such as a proxy's page, is ignored.
        """
        following = NextStep.RETRY if status >= 500 else _BY_STATUS.get(status, NextStep.WAIT)
        name, sentence = _explanation(body)
        text = f"refused with HTTP {status}"
        if 300 <= status < 400 and "location" in headers:
            text += f", a redirect to {headers['location']}"
        fault = None
        if following is NextStep.WAIT:
            fault = Fault.NO_POSD if name is None else Fault.NO_SUCH
        return cls(
            f"{text}: {sentence}" if sentence else text,
            following,
            status=status,
            name=name,
            asked=retry_after(headers.get("retry-after"), now),
            fault=fault,
        )

    @classmethod
    def lost(cls, failure: Failure) -> Outcome:
        """Return the outcome of a failed attempt, or of a connection that ended without a Close frame."""
        error, fault = failure.value, None
        if failure.check(DNSLookupError):
            fault = Fault.NO_HOST
        elif speaks_no_tls(error):
            fault = Fault.NO_TLS
        elif tls_failure(error) is not None:
            fault = Fault.UNTRUSTED
        return cls(explain(error), NextStep.RETRY, fault=fault)


def _explanation(body: bytes) -> tuple[str | None, str | None]:
    """Return the members `code` and `error` of a refusal's body. A missing member is None."""
    try:
        answer = decode(body)
    except InvalidMessage:
        return None, None
    if not isinstance(answer, dict):
        return None, None
    name, sentence = answer.get("code"), answer.get("error")
    return (
        name if isinstance(name, str) else None,
        sentence if isinstance(sentence, str) else None,
    )


def reconnect_pause(outcome: Outcome, failures: int, random: Random) -> float:
    """Return the seconds to wait after `outcome`.

    `failures` is the number of consecutive failures, including this one, without a steady connection
    between them. The wait is at least that of `Retry-After`, up to an hour, plus up to a quarter at
    random so that tills with the same value do not reconnect together. Raises ValueError for
    `NextStep.STOP`.
    """
    if outcome.next_step is NextStep.STOP:
        raise ValueError("no attempt follows NextStep.STOP")
    if outcome.next_step is NextStep.AT_ONCE and failures <= 1:
        wait = random() * _RESTART_JITTER
    elif outcome.next_step is NextStep.WAIT:
        wait = _WAIT.pause(failures, random)
    else:
        wait = _RETRY.pause(failures, random)
    if outcome.asked is None:
        return wait
    return max(wait, min(outcome.asked, _LONGEST_ASKED) * (1 + random() / 4))
