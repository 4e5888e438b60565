"""The exceptions of posd.

A `Refusal` is an error response: it has the HTTP status, the machine-readable code and the message that
a client receives. Clients receive nothing of any other exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

_ABOUT_NAMES: Final = (
    *("08", "0A", "23", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX"),
    # invalid_parameter_value, which also reports a missing role; and the codes that `sql/` raises itself.
    *("22023", "PD"),
)
"""The SQLSTATEs and their classes whose messages name objects of the database, and quote no data."""
_QUOTES: Final = ("42601",)
"""syntax_error: its message quotes the unexpected text."""
_ABOUT_DATA: Final = ("22", "23", "54")
"""data_exception, integrity_constraint_violation, program_limit_exceeded."""


class PosdError(Exception):
    """The base class of the exceptions that posd raises."""


class ConfigError(PosdError):
    """The configuration is invalid. `problems` has one line for each problem."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StartError(PosdError):
    """The daemon cannot start, and a retry would not help. The message is one line."""


class SchemaError(PosdError):
    """A database schema is older or newer than this version of posd supports."""


class SchemaBusy(SchemaError):
    """Another session is changing the schemas. A retry after a moment succeeds."""


class InvalidMessage(PosdError):
    """Bytes that are not a message of the protocol. The text of the error may be sent to the client."""


class NumberOutOfRange(InvalidMessage):
    """A number in a message has more digits than posd reads."""


class EventsPruned(PosdError):
    """The events after a position have been deleted, so they cannot be replayed."""


class StreamRenamed(PosdError):
    """The `stream_id` of a position is not the present name of the stream, which the caller has to use."""


class Refusal(PosdError):
    """An error response to a request.

    `status` is the HTTP status, `code` the stable name in snake_case, and `message` a sentence for a person.
    `headers` and `details` are added to the response. Subclasses set the status, the code and the headers.
    """

    status: ClassVar[int] = 400
    headers: ClassVar[Mapping[str, str]] = {}
    code: str = "bad_request"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retry_after: int | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.details: Mapping[str, object] = details or {}
        if code is not None:
            self.code = code


class BadRequest(Refusal):
    status = 400


class Unauthorized(Refusal):
    """The request has no valid key of the tenant.

    All causes have the same response, so that clients cannot find out which tenants exist.
    """

    status = 401
    code = "unauthorized"
    headers = {"WWW-Authenticate": "Bearer"}

    def __init__(self) -> None:
        super().__init__("A valid API key of this tenant is required.")


class Forbidden(Refusal):
    status = 403
    code = "forbidden"


class NotFound(Refusal):
    status = 404
    code = "not_found"


class Conflict(Refusal):
    status = 409
    code = "conflict"


class TooLarge(Refusal):
    status = 413
    code = "too_large"


class UnsupportedMediaType(Refusal):
    status = 415
    code = "unsupported_media_type"


class Unprocessable(Refusal):
    """The request is well-formed, but its content is invalid, such as an event without an order id."""

    status = 422
    code = "unprocessable"


class TooManyRequests(Refusal):
    status = 429
    code = "too_many_requests"


class Unavailable(Refusal):
    """The database cannot be reached, posd is stopping, or the outcome of a COMMIT is unknown."""

    status = 503
    code = "unavailable"


class Busy(Unavailable):
    """A statement or a lock has exceeded its time limit, or two transactions have conflicted. Try again."""

    code = "busy"


class OutcomeUnknown(Unavailable):
    """The connection was lost during COMMIT, so the transaction may or may not have been committed."""

    code = "outcome_unknown"


class StatementFailed(PosdError):
    """PostgreSQL has refused a statement because of a constraint, a missing privilege, or a bug in posd.

    `sqlstate` is the five-character code
    (https://www.postgresql.org/docs/current/errcodes-appendix.html). `constraint` is the name of the
    violated constraint, if any. The text of the error is `loggable_message`.
    """

    def __init__(self, message: str, sqlstate: str, constraint: str | None = None) -> None:
        super().__init__(loggable_message(sqlstate, message))
        self.sqlstate = sqlstate
        self.constraint = constraint

    @property
    def about_data(self) -> bool:
        """Whether the data of the statement is at fault, and not a missing privilege or table."""
        return self.sqlstate.startswith(_ABOUT_DATA)


def is_about_data(error: Exception) -> bool:
    """Whether `error` is a `StatementFailed` because of the data of the statement."""
    return isinstance(error, StatementFailed) and error.about_data


def loggable_message(sqlstate: str, message: str) -> str:
    """Return PostgreSQL's message if it quotes no data, and otherwise a text with the SQLSTATE only.

    Errors about data quote the data ("invalid input syntax for type date: …"), and the errors of a shop's
    own triggers may contain whole rows. The SQLSTATE is enough to find the cause in the shop's code.
    """
    named = sqlstate.startswith(_ABOUT_NAMES) and sqlstate not in _QUOTES
    return message if named else f"SQLSTATE {sqlstate or 'unknown'} (its text is not logged)"


def returned(failure: str) -> str:
    """Return `loggable_message` of an error that a function of `sql/` has caught and returned.

    `failure` is the SQLSTATE, a space and the message.
    """
    return loggable_message(failure[:5], failure)
