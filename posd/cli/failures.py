"""Expected failures of `posctl`: one line on standard error and an exit code of sysexits(3).

An exception that is not expected here is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click
import psycopg2

from posd.cli.output import printable
from posd.database.migrations import first_line
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

_MAX_MESSAGE_LENGTH: Final = 500
"""Characters of a line. A message may quote an argument as long as a whole file."""

INTERRUPTED: Final = 128 + 2
"""The exit status that a shell reports for a program that Ctrl-C (SIGINT, 2) has ended."""

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

_DATA_EXCEPTION: Final = "22"
"""The class of SQLSTATEs for values out of range of their type, such as a date in the year 99999."""

_OF_ERRNO: Final = {
    errno.ENOENT: os.EX_NOINPUT,
    errno.ENOTDIR: os.EX_NOINPUT,
    errno.EISDIR: os.EX_NOINPUT,
    errno.ELOOP: os.EX_NOINPUT,
    errno.ENAMETOOLONG: os.EX_NOINPUT,
    errno.EACCES: os.EX_NOPERM,
    errno.EPERM: os.EX_NOPERM,
}

_OF_STATUS: Final = {
    401: os.EX_NOPERM,
    403: os.EX_NOPERM,
    409: os.EX_CANTCREAT,
    429: os.EX_TEMPFAIL,
    503: os.EX_UNAVAILABLE,
}


class CommandFailure(PosdError):
    """An expected failure of a command, with its message and its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def report_failures() -> Iterator[None]:
    """Print an expected failure in one line, and exit with its code."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        raise click.exceptions.Exit(os.EX_USAGE) from error
    except click.UsageError as error:
        told_by = error.ctx.command_path if error.ctx else "posctl"
        said = " ".join(error.format_message().split())
        _write_error(f"{said} See `{told_by} --help`.")
        raise click.exceptions.Exit(os.EX_USAGE) from error
    except click.FileError as error:
        _write_error(error.format_message())
        raise click.exceptions.Exit(os.EX_NOINPUT) from error
    except click.Abort as error:
        # Ctrl-C or the end of standard input at a question, or the answer "no".
        click.echo(err=True)  # end the line of the question
        _write_error("not confirmed: nothing was changed; --yes skips the question")
        raise click.exceptions.Exit(os.EX_USAGE) from error
    except KeyboardInterrupt as error:
        raise click.exceptions.Exit(INTERRUPTED) from error
    except ConfigError as error:
        # Print the same lines as `check-config`. Each one names its file.
        click.echo("\n".join(error.problems), err=True)
        raise click.exceptions.Exit(os.EX_CONFIG) from error
    except (PosdError, psycopg2.Error, OSError) as error:
        failure = explain(error)
        if failure is None:
            raise
        _write_error(str(failure))
        raise click.exceptions.Exit(failure.exit_code) from error


def explain(error: BaseException) -> CommandFailure | None:
    """Return the failure that an exception means for the user, or None if it is a bug."""
    match error:
        case CommandFailure():
            return error
        case BrokenPipeError():
            # The reader of the output has gone. click ends the process without a message.
            return None
        case OSError():
            return CommandFailure(_about_file(error), _OF_ERRNO.get(error.errno or 0, os.EX_IOERR))
        case SchemaBusy():
            return CommandFailure(str(error), os.EX_TEMPFAIL)
        case SchemaError():
            code = _OF_SQLSTATE.get(_sqlstate(error.__cause__) or "", os.EX_CONFIG)
            return CommandFailure(str(error), code)
        case StartError():
            return CommandFailure(str(error), os.EX_CONFIG)
        case InvalidMessage():
            return CommandFailure(str(error), os.EX_DATAERR)
        case Busy():
            return CommandFailure(error.message, os.EX_TEMPFAIL)
        case Refusal():
            return CommandFailure(error.message, _OF_STATUS.get(error.status, os.EX_DATAERR))
    sqlstate = _sqlstate(error)
    if sqlstate in _LACKS_SCHEMA:
        lacks = f"the schema is not that of this version of posd ({first_line(error)})"
        return CommandFailure(
            f"{lacks}: run `posctl bootstrap`, then `posctl migrate`", os.EX_CONFIG
        )
    if sqlstate in _OF_SQLSTATE:
        return CommandFailure(first_line(error), _OF_SQLSTATE[sqlstate])
    if sqlstate is not None and sqlstate.startswith(_DATA_EXCEPTION):
        return CommandFailure(first_line(error), os.EX_DATAERR)
    if isinstance(error, psycopg2.OperationalError):
        return CommandFailure(_no_database(first_line(error)), os.EX_UNAVAILABLE)
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
    return f"{reason}; `posctl bootstrap` creates it" if missing else reason


def _about_file(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{error.filename}: {reason}"


def _write_error(message: str) -> None:
    """Write the lines of a message to standard error, without control characters."""
    lines = (printable(each) for each in message.splitlines())
    click.echo("posctl: " + "\n".join(map(_truncate, lines)), err=True)


def _truncate(text: str) -> str:
    if len(text) <= _MAX_MESSAGE_LENGTH:
        return text
    return f"{text[: _MAX_MESSAGE_LENGTH // 2]} … {text[-_MAX_MESSAGE_LENGTH // 2 :]}"
