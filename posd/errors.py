"""What can go wrong, and the one table that says how each of it looks from outside.

A `Refusal` is an answer, not a fault: it has the HTTP status, the machine-readable code and the
sentence that a client sees. Nothing else of an exception ever leaves the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

_ABOUT_NAMES: Final = (
    *("08", "0A", "23", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX"),
    # Settings, of which a missing role is one; and posd's own, of `sql/`.
    *("22023", "PD"),
)
_QUOTES: Final = ("42601",)
"""syntax_error, which repeats what it did not expect."""
_ABOUT_DATA: Final = ("22", "23", "54")
"""data_exception, integrity_constraint_violation, program_limit_exceeded."""


class PosdError(Exception):
    """The base of all exceptions that posd raises on purpose."""


class ConfigError(PosdError):
    """The configuration cannot be used; `problems` has every reason, one line each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StartError(PosdError):
    """The daemon cannot start and a retry would not help: one line says why."""


class SchemaError(PosdError):
    """A database schema is older or newer than this posd can work with."""


class SchemaBusy(SchemaError):
    """Somebody else is changing the schemas; in a moment they will be done."""


class InvalidMessage(PosdError):
    """Bytes that are not a message of the protocol; the text may be shown to who sent them."""


class NumberOutOfRange(InvalidMessage):
    """A number in a message has more digits than posd reads."""


class EventsPruned(PosdError):
    """The events after a position are kept no more: who wants them is too far behind."""


class StreamRenamed(PosdError):
    """A stream has another name: what follows a position is to be asked of that one."""


class Refusal(PosdError):
    """A request that is answered with an error.

    `status` is the HTTP status, `code` the stable snake_case name, `message` the sentence for a
    person, `headers` and `details` what goes out besides. Subclasses fix status, code and headers.
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
    """One answer for every credential that does not fit, so that tenants cannot be enumerated."""

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
    """Understood, but impossible: also what a publisher gets for an event that cannot be one."""

    status = 422
    code = "unprocessable"


class TooManyRequests(Refusal):
    status = 429
    code = "too_many_requests"


class Unavailable(Refusal):
    """The database is away, posd is draining, or the outcome of a commit is unknown."""

    status = 503
    code = "unavailable"


class Busy(Unavailable):
    """A statement or a lock ran into its time limit, or two transactions collided: try again."""

    code = "busy"


class OutcomeUnknown(Unavailable):
    """The connection was lost during COMMIT: the effect may or may not be there."""

    code = "outcome_unknown"


class StatementFailed(PosdError):
    """PostgreSQL refused a statement: a constraint, a right, or a bug of ours.

    `sqlstate` is its five-character code
    (https://www.postgresql.org/docs/current/errcodes-appendix.html), `constraint` the name of the
    constraint that was violated, if it was one. Its text is as much of the message as may be logged.
    """

    def __init__(self, message: str, sqlstate: str, constraint: str | None = None) -> None:
        super().__init__(loggable_message(sqlstate, message))
        self.sqlstate = sqlstate
        self.constraint = constraint

    @property
    def about_data(self) -> bool:
        """Whether the data is at fault, and not a missing right or table: without it others succeed."""
        return self.sqlstate.startswith(_ABOUT_DATA)


def is_about_data(error: Exception) -> bool:
    """Whether PostgreSQL has refused what it was given, and would take something else."""
    return isinstance(error, StatementFailed) and error.about_data


def loggable_message(sqlstate: str, message: str) -> str:
    """What of an error of PostgreSQL's may be logged: its message, where it quotes no data.

    Errors about data quote them ("invalid input syntax for type date: …"), and what a shop's own
    triggers raise has whole rows in it. Of those there remains the code, by which it can be found in
    the shop's code.
    """
    named = sqlstate.startswith(_ABOUT_NAMES) and sqlstate not in _QUOTES
    return message if named else f"SQLSTATE {sqlstate or 'unknown'} (its text is not logged)"


def returned(failure: str) -> str:
    """The same of an error that a function of `sql/` caught and returned: its code, then its message."""
    return loggable_message(failure[:5], failure)
