from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import error
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from posd.client.outcome import NextStep, Outcome, reconnect_pause

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)

endings = st.builds(
    Outcome,
    st.just("any"),
    st.sampled_from([NextStep.AT_ONCE, NextStep.RETRY, NextStep.WAIT]),
    asked=st.none() | st.floats(0, 1e9),
)


class Closing(SynchronousTestCase):
    def test_every_close_code_of_the_protocol_has_a_next_step(self) -> None:
        for code, following in {
            None: NextStep.RETRY,
            1000: NextStep.RETRY,
            1001: NextStep.AT_ONCE,
            1003: NextStep.WAIT,
            1008: NextStep.WAIT,
            1009: NextStep.WAIT,
            1011: NextStep.RETRY,
            1013: NextStep.RETRY,
            4001: NextStep.STOP,
            4009: NextStep.STOP,
            4999: NextStep.RETRY,
        }.items():
            self.assertIs(Outcome.closed(code, "").next_step, following, code)

    def test_the_servers_reason_takes_precedence(self) -> None:
        self.assertEqual(Outcome.closed(4001, "expired").reason, "closed with 4001: expired")
        self.assertIn("revoked", Outcome.closed(4001, None).reason)
        self.assertEqual(Outcome.closed(None, None).reason, "closed with no code")


class Refusing(SynchronousTestCase):
    def next_of(self, status: int) -> NextStep:
        return Outcome.refused(status, {}, b"", NOW).next_step

    def test_a_wrong_key_stops(self) -> None:
        self.assertEqual([self.next_of(s) for s in (401, 403)], [NextStep.STOP, NextStep.STOP])

    def test_a_server_error_is_retried(self) -> None:
        self.assertEqual({self.next_of(s) for s in (429, 500, 502, 503, 504)}, {NextStep.RETRY})

    def test_a_client_error_is_retried_after_minutes(self) -> None:
        self.assertEqual({self.next_of(s) for s in (200, 302, 400, 404, 426)}, {NextStep.WAIT})

    def test_a_body_that_is_not_the_servers_is_ignored(self) -> None:
        for body in (b"", b"<html>", b"[]", b'{"code":1,"error":{}}', b"\xff"):
            outcome = Outcome.refused(502, {}, body, NOW)
            self.assertEqual((outcome.name, outcome.reason), (None, "refused with HTTP 502"))


class Losing(SynchronousTestCase):
    def test_a_failure_has_its_own_message(self) -> None:
        self.assertIn("refused", Outcome.lost(Failure(error.ConnectionRefusedError())).reason)
        self.assertIn("cleanly", Outcome.lost(Failure(error.ConnectionDone())).reason)

    def test_a_failure_without_a_message_shows_its_type(self) -> None:
        self.assertEqual(Outcome.lost(Failure(TimeoutError())).reason, "TimeoutError")


class Pausing(SynchronousTestCase):
    def test_after_stop_there_is_no_pause(self) -> None:
        with self.assertRaises(ValueError):
            reconnect_pause(Outcome("revoked", NextStep.STOP), 1, lambda: 0.5)

    def test_repeated_restarts_of_the_server_lead_to_longer_pauses(self) -> None:
        outcome = Outcome.closed(1001, None)
        self.assertEqual(
            [reconnect_pause(outcome, n, lambda: 0.5) for n in (1, 2, 3)], [0.5, 1.5, 3]
        )

    def test_retry_after_is_limited_to_an_hour(self) -> None:
        outcome = Outcome.refused(503, {"retry-after": "999999999"}, b"", NOW)
        self.assertEqual(reconnect_pause(outcome, 1, lambda: 0.0), 3600)

    @given(endings, st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
    def test_a_pause_is_never_shorter_than_asked_and_always_bounded(
        self, outcome: Outcome, failures: int, chance: float
    ) -> None:
        seconds = reconnect_pause(outcome, failures, lambda: chance)
        self.assertTrue(min(outcome.asked or 0, 3600) <= seconds <= 4500)
