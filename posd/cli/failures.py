"""What can be expected to go wrong in `posctl`: one line on standard error and an exit code.

The codes are those of sysexits(3). Whatever is not expected here keeps its traceback: it is a bug.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click
import psycopg2

from posd.database.migrations import line
from posd.errors import (
    Busy,
    ConfigError,
    InvalidMessage,
    PosdError,
    Refusal,
    SchemaBusy,
    SchemaError,
    StartError,
    StatementFailed,
)

INTERRUPTED: Final = 128 + 2
"""What a shell reports of a program that Ctrl-C has ended (SIGINT is 2)."""

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_OF_SQLSTATE: Final = {
    "23505": os.EX_CANTCREAT,  # unique_violation
    "23514": os.EX_DATAERR,  # check_violation
    "42501": os.EX_NOPERM,  # insufficient_privilege
    "57014": os.EX_TEMPFAIL,  # query_canceled
    "55P03": os.EX_TEMPFAIL,  # lock_not_available
    "40P01": os.EX_TEMPFAIL,  # deadlock_detected
}
_LACKS_SCHEMA: Final = {"42P01", "3F000", "42883", "42703"}
"""undefined_table, invalid_schema_name, undefined_function, undefined_column"""

_OF_STATUS: Final = {
    401: os.EX_NOPERM,
    403: os.EX_NOPERM,
    409: os.EX_CANTCREAT,
    429: os.EX_TEMPFAIL,
    503: os.EX_UNAVAILABLE,
}


class Failure(PosdError):
    """An expected failure of a command: the line that a person reads, the code for a program."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def told() -> Iterator[None]:
    """Tell expected failures in a line, and end with their exit code."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        raise click.exceptions.Exit(os.EX_USAGE) from error
    except click.UsageError as error:
        told_by = error.ctx.command_path if error.ctx else "posctl"
        said = " ".join(error.format_message().split())
        _tell(f"{said} See `{told_by} --help`.")
        raise click.exceptions.Exit(os.EX_USAGE) from error
    except click.FileError as error:
        _tell(error.format_message())
        raise click.exceptions.Exit(os.EX_NOINPUT) from error
    except KeyboardInterrupt as error:
        raise click.exceptions.Exit(INTERRUPTED) from error
    except ConfigError as error:
        # Each problem names its file; together they are what `check-config` prints.
        click.echo("\n".join(error.problems), err=True)
        raise click.exceptions.Exit(os.EX_CONFIG) from error
    except (PosdError, psycopg2.Error) as error:
        failure = explained(error)
        if failure is None:
            raise
        _tell(str(failure))
        raise click.exceptions.Exit(failure.exit_code) from error


def explained(error: BaseException) -> Failure | None:
    """The failure that an exception means to somebody at a terminal; None for a bug."""
    match error:
        case Failure():
            return error
        case SchemaBusy():
            return Failure(str(error), os.EX_TEMPFAIL)
        case SchemaError():
            code = _OF_SQLSTATE.get(_sqlstate(error.__cause__) or "", os.EX_CONFIG)
            return Failure(str(error), code)
        case StartError():
            return Failure(str(error), os.EX_CONFIG)
        case InvalidMessage():
            return Failure(str(error), os.EX_DATAERR)
        case Busy():
            return Failure(error.message, os.EX_TEMPFAIL)
        case Refusal():
            return Failure(error.message, _OF_STATUS.get(error.status, os.EX_DATAERR))
    sqlstate = _sqlstate(error)
    if sqlstate in _LACKS_SCHEMA:
        lacks = f"the database lacks what this posd needs ({line(error)})"
        return Failure(f"{lacks}: run `posctl bootstrap`, then `posctl migrate`", os.EX_CONFIG)
    if sqlstate in _OF_SQLSTATE:
        return Failure(line(error), _OF_SQLSTATE[sqlstate])
    if isinstance(error, psycopg2.OperationalError):
        return Failure(_no_database(line(error)), os.EX_UNAVAILABLE)
    return None


def _sqlstate(error: BaseException | None) -> str | None:
    match error:
        case StatementFailed():
            return error.sqlstate
        case psycopg2.Error():
            code = error.pgcode
            return None if code is None else str(code)
    return None


def _no_database(reason: str) -> str:
    missing = reason.endswith("does not exist") and "database" in reason
    return f"{reason}; `posctl bootstrap` makes it" if missing else reason


def _tell(message: str) -> None:
    click.echo(f"posctl: {message}", err=True)
