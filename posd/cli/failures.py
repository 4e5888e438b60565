"""What can be expected to go wrong in `posctl`: one line on standard error and an exit code.

The codes are those of sysexits(3). Whatever is not expected here keeps its traceback: it is a bug.
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
"""Characters of a line that are told: an argument that it quotes may be a whole file."""

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

_DATA_EXCEPTION: Final = "22"
"""The class of SQLSTATEs for a value that a type cannot have, such as a date in the year 99999."""

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
    """An expected failure of a command: the line that a person reads, the code for a program."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def report_failures() -> Iterator[None]:
    """Tell expected failures in a line, and end with their exit code."""
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
        click.echo(err=True)  # the question is on this line
        _write_error("not confirmed, so nothing was changed; --yes confirms without a question")
        raise click.exceptions.Exit(os.EX_USAGE) from error
    except KeyboardInterrupt as error:
        raise click.exceptions.Exit(INTERRUPTED) from error
    except ConfigError as error:
        # Each problem names its file; together they are what `check-config` prints.
        click.echo("\n".join(error.problems), err=True)
        raise click.exceptions.Exit(os.EX_CONFIG) from error
    except (PosdError, psycopg2.Error, OSError) as error:
        failure = explain(error)
        if failure is None:
            raise
        _write_error(str(failure))
        raise click.exceptions.Exit(failure.exit_code) from error


def explain(error: BaseException) -> CommandFailure | None:
    """The failure that an exception means to somebody at a terminal; None for a bug."""
    match error:
        case CommandFailure():
            return error
        case BrokenPipeError():
            # Nobody reads the output any more: click ends the process without a word.
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
        lacks = f"the database lacks what this posd needs ({first_line(error)})"
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
    return f"{reason}; `posctl bootstrap` makes it" if missing else reason


def _about_file(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{error.filename}: {reason}"


def _write_error(message: str) -> None:
    """Write one line, or the lines of a message that has several, such as statements to execute."""
    lines = (printable(each) for each in message.splitlines())
    click.echo("posctl: " + "\n".join(map(_truncate, lines)), err=True)


def _truncate(text: str) -> str:
    if len(text) <= _MAX_MESSAGE_LENGTH:
        return text
    return f"{text[: _MAX_MESSAGE_LENGTH // 2]} … {text[-_MAX_MESSAGE_LENGTH // 2 :]}"
