"""Why a connection is over, and what a till does then: the table of close codes, as code.

Pure: no clock, no socket. `Outcome` is made from a Close frame, an HTTP answer or an error, and
`reconnect_pause` turns a row of them into seconds.
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
    """What follows an ending."""

    AT_ONCE = "at once"
    """The server is restarting and asked for it: only jitter in between."""

    RETRY = "retry"
    """An accident: back off from a second to a minute."""

    WAIT = "wait"
    """Trying again will probably not help until somebody has mended something: minutes."""

    STOP = "stop"
    """Trying again would do harm or never help: an operator is needed."""


class Fault(enum.Enum):
    """What has to be mended before any attempt can succeed, where that is known."""

    NO_HOST = "the name of the host leads nowhere"
    UNTRUSTED = "the server's certificate, or ours, is not believed"
    NO_TLS = "TLS was spoken to a port that does not speak it"
    NO_ANSWER = "the port speaks something else, perhaps TLS, or nothing"
    NO_POSD = "another program answers, or a proxy in front of posd"
    NO_SUCH = "posd does not know what was asked for"


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
    1003: "the server does not support what was sent",
    1008: "the server's policy was violated",
    1009: "the server found a message too big",
    1013: "this till fell too far behind",
    4001: "the key was revoked or has expired",
    4009: "a newer connection of the same device took over",
}

_RETRY = Backoff(initial=1, maximum=60)
_WAIT = Backoff(initial=60, maximum=900)
_RESTART_JITTER = 1.0
_LONGEST_ASKED = 3600.0


@frozen
class Outcome:
    """The end of a connection, or of an attempt at one.

    `code` is a close code (RFC 6455 §7.4) and `status` an HTTP status, where there was one.
    `name` is the server's machine-readable word for a refusal, such as `device_key_required`.
    `asked` is the number of seconds the server asked to be left alone. `fault` tells why an attempt
    failed that will fail again; a till tries again all the same, since somebody may mend it.
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
        """The server closed the connection with this code, or with none."""
        said = reason or (_MEANINGS.get(code) if code is not None else None)
        text = f"closed with {code if code is not None else 'no code'}"
        following = NextStep.RETRY if code is None else _BY_CLOSE_CODE.get(code, NextStep.RETRY)
        return cls(f"{text}: {said}" if said else text, following, code=code)

    @classmethod
    def refused(
        cls, status: int, headers: Mapping[str, str], body: bytes, now: datetime
    ) -> Outcome:
        """The server answered the opening handshake with something other than 101.

        Names of `headers` are in lower case. A `body` in posd's form adds the reason and its name;
        any other (a proxy's page) is ignored.
        """
        following = NextStep.RETRY if status >= 500 else _BY_STATUS.get(status, NextStep.WAIT)
        name, sentence = _explanation(body)
        text = f"refused with HTTP {status}"
        if 300 <= status < 400 and "location" in headers:
            text += f", which leads to {headers['location']}"
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
        """The connection could not be made, or broke without a Close frame."""
        error, fault = failure.value, None
        if failure.check(DNSLookupError):
            fault = Fault.NO_HOST
        elif speaks_no_tls(error):
            fault = Fault.NO_TLS
        elif tls_failure(error) is not None:
            fault = Fault.UNTRUSTED
        return cls(explain(error), NextStep.RETRY, fault=fault)


def _explanation(body: bytes) -> tuple[str | None, str | None]:
    """The `code` and the `error` of a refusal's body, each None where it is missing."""
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
    """The seconds to wait after `outcome`.

    `failures` counts the endings in a row, this one included, without a steady connection between
    them. A server that asks for patience gets at least as much, up to an hour, and a crowd it told
    the same comes back spread over a quarter more. Raises ValueError for `NextStep.STOP`.
    """
    if outcome.next_step is NextStep.STOP:
        raise ValueError("after this ending there is no other attempt")
    if outcome.next_step is NextStep.AT_ONCE and failures <= 1:
        wait = random() * _RESTART_JITTER
    elif outcome.next_step is NextStep.WAIT:
        wait = _WAIT.pause(failures, random)
    else:
        wait = _RETRY.pause(failures, random)
    if outcome.asked is None:
        return wait
    return max(wait, min(outcome.asked, _LONGEST_ASKED) * (1 + random() / 4))
