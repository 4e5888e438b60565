"""Expected failures become a line and an exit code; bugs keep their traceback."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr

import click
import psycopg2
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from posd.cli.database import run_to_completion
from posd.cli.failures import INTERRUPTED, CommandFailure, explain, report_failures
from posd.errors import (
    Busy,
    ConfigError,
    Conflict,
    Forbidden,
    InvalidMessage,
    NotFound,
    OutcomeUnknown,
    PosdError,
    SchemaError,
    StartError,
    StatementFailed,
    TooLarge,
    TooManyRequests,
)


def caused_by(cause: BaseException) -> SchemaError:
    error = SchemaError("why")
    error.__cause__ = cause
    return error


class ExplanationTests(SynchronousTestCase):
    """A command raises an exception."""

    def test_each_has_its_code(self) -> None:
        for error, code in (
            (CommandFailure("why", 42), 42),
            (StartError("why"), os.EX_CONFIG),
            (SchemaError("why"), os.EX_CONFIG),
            (caused_by(StatementFailed("denied", "42501")), os.EX_NOPERM),
            (InvalidMessage("why"), os.EX_DATAERR),
            (NotFound("why"), os.EX_DATAERR),
            (TooLarge("why"), os.EX_DATAERR),
            (Conflict("why"), os.EX_CANTCREAT),
            (Forbidden("why"), os.EX_NOPERM),
            (TooManyRequests("why"), os.EX_TEMPFAIL),
            (Busy("why"), os.EX_TEMPFAIL),
            (OutcomeUnknown("why"), os.EX_UNAVAILABLE),
            (StatementFailed("why", "42501"), os.EX_NOPERM),
            (StatementFailed("why", "55P03"), os.EX_TEMPFAIL),
            (psycopg2.OperationalError("why\n\tand where"), os.EX_UNAVAILABLE),
        ):
            with self.subTest(error=error):
                failure = explain(error)
                assert failure is not None
                self.assertEqual((str(failure), failure.exit_code), ("why", code))

    def test_an_incomplete_schema_is_reported_with_the_remedy(self) -> None:
        failure = explain(StatementFailed('relation "x" does not exist', "42P01"))
        assert failure is not None
        self.assertEqual(failure.exit_code, os.EX_CONFIG)
        self.assertIn('relation "x" does not exist', str(failure))
        self.assertIn("`posctl bootstrap`, then `posctl migrate`", str(failure))

    def test_an_unexpected_exception_has_no_explanation(self) -> None:
        for bug in (
            PosdError("?"),
            StatementFailed("syntax error", "42601"),
            psycopg2.ProgrammingError("syntax error"),
            ValueError("?"),
        ):
            with self.subTest(bug=bug):
                self.assertIsNone(explain(bug))


class TellingTests(SynchronousTestCase):
    """A user runs a command that fails."""

    def test_an_expected_failure_becomes_an_exit(self) -> None:
        said = io.StringIO()
        with (
            redirect_stderr(said),
            self.assertRaises(click.exceptions.Exit) as caught,
            report_failures(),
        ):
            raise ConfigError(("one", "two"))
        self.assertEqual(caught.exception.exit_code, os.EX_CONFIG)
        self.assertEqual(said.getvalue(), "one\ntwo\n")

    def test_ctrl_c_has_exit_code_130(self) -> None:
        with self.assertRaises(click.exceptions.Exit) as caught, report_failures():
            raise KeyboardInterrupt
        self.assertEqual(caught.exception.exit_code, INTERRUPTED)

    def test_a_bug_keeps_its_traceback(self) -> None:
        bug = StatementFailed("syntax error", "42601")
        with self.assertRaises(StatementFailed) as caught, report_failures():
            raise bug
        self.assertIs(caught.exception, bug)


class CompletionTests(SynchronousTestCase):
    """A function of the store runs without a reactor."""

    def test_its_result_is_given(self) -> None:
        async def statement() -> int:
            return 7

        self.assertEqual(run_to_completion(statement()), 7)

    def test_a_coroutine_that_waits_is_a_bug(self) -> None:
        async def statement() -> None:
            await Deferred()

        self.assertRaises(RuntimeError, run_to_completion, statement())
