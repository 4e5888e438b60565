from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.broadcaster.calls import (
    ATTEMPT_TIMEOUT,
    ATTEMPTS,
    APICall,
    APIClient,
    CallFailed,
    HTTPResponse,
    PublishedEvent,
    PublishFailed,
    RetryPolicy,
)
from posd.protocol.jsontext import encode
from posd.values import PublishWarning

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)


def a_call(key: str | None = None) -> APICall[PublishedEvent]:
    return APIClient.to("https://pos.example.com", "pos_1").publication("kitchen", "x", {}, key)


class Judging(SynchronousTestCase):
    def failure(self, status: int, body: bytes = b"", retry_after: str | None = None) -> CallFailed:
        headers = {} if retry_after is None else {"retry-after": retry_after}
        with self.assertRaises(PublishFailed) as caught:
            a_call().judge(HTTPResponse(status, headers, body), NOW)
        failure: CallFailed = caught.exception
        return failure

    def test_temporary_failures_are_distinguished_from_permanent_ones(self) -> None:
        for status in (408, 429, 502, 503, 504):
            self.assertTrue(self.failure(status).passing, status)
        for status in (302, 400, 401, 403, 404, 409, 413, 422, 500):
            self.assertFalse(self.failure(status).passing, status)

    def test_a_conflict_with_our_own_first_attempt_is_temporary(self) -> None:
        self.assertTrue(self.failure(409, b'{"code":"still_running"}').passing)
        self.assertFalse(self.failure(409, b'{"code":"version_mismatch"}').passing)

    def test_retry_after_is_read(self) -> None:
        self.assertEqual(self.failure(503, retry_after="7").asked, 7)
        date = format_datetime(NOW, usegmt=True)
        self.assertEqual(self.failure(503, retry_after=date).asked, 0)
        self.assertIsNone(self.failure(503).asked)

    def test_a_failure_has_a_readable_message(self) -> None:
        body = b'{"code":"invalid_event","error":"data has no usable orderId."}'
        self.assertEqual(
            str(self.failure(422, body)), "422 invalid_event: data has no usable orderId."
        )
        unanswered = a_call().unanswered(OSError("no route"))
        self.assertEqual(str(unanswered), "no route (unreachable)")

    @given(st.integers(100, 599), st.binary() | st.sampled_from([b"{}", b'{"id":1}', b"[]"]))
    def test_every_answer_becomes_a_publication_or_a_failure(
        self, status: int, body: bytes
    ) -> None:
        self.failure(status, body)

    def test_warnings_are_returned(self) -> None:
        body = encode(
            {
                "id": 7,
                "connections": 2,
                "warnings": [{"member": "total", "code": "c", "message": "m"}],
            }
        )
        published = a_call("k").judge(HTTPResponse(201, {}, body), NOW)
        self.assertEqual(published.warnings, (PublishWarning("total", "c", "m"),))
        for warnings in (b"7", b"[7]", b'[{"member":"total"}]'):
            odd = body.replace(body[body.index(b"[") : -1], warnings)
            self.assertRaises(PublishFailed, a_call("k").judge, HTTPResponse(201, {}, odd), NOW)

    def test_a_publication_is_parsed(self) -> None:
        body = encode({"success": True, "id": 1042, "connections": 3})
        self.assertEqual(a_call().judge(HTTPResponse(201, {}, body), NOW), PublishedEvent(1042, 3))

    def test_a_key_or_content_is_not_shown(self) -> None:
        self.assertNotIn("pos_1", repr(a_call()))
        self.assertNotIn("pos_1", repr(APIClient.to("https://pos.example.com", "pos_1")))

    def test_an_idempotency_key_is_visible_ascii(self) -> None:
        self.assertEqual(a_call("order-17").idempotency_key, "order-17")
        for key in ("", "two words", "a\r\nb", "ä", "x" * 256):
            with self.assertRaises(ValueError):
                a_call(key)


class Trying(SynchronousTestCase):
    def setUp(self) -> None:
        self.attempts = RetryPolicy.within(15, now=100, random=lambda: 0.5)

    def failing(self, asked: float | None = None, *, passing: bool = True) -> CallFailed:
        return CallFailed(503, "unavailable", "Later.", passing=passing, asked=asked)

    def test_pauses_grow_until_the_last_attempt(self) -> None:
        pauses = [self.attempts.pause(self.failing(), 100) for _ in range(ATTEMPTS - 1)]
        self.assertEqual(pauses, [0.1875, 0.375, 0.75, 1.5])
        with self.assertRaises(CallFailed):
            self.attempts.pause(self.failing(), 100)

    def test_a_permanent_failure_is_not_retried(self) -> None:
        failure = self.failing(passing=False)
        with self.assertRaises(CallFailed) as caught:
            self.attempts.pause(failure, 100)
        self.assertIs(caught.exception, failure)

    def test_a_pause_is_at_least_retry_after(self) -> None:
        self.assertEqual(self.attempts.pause(self.failing(asked=8), 100), 9)

    def test_no_attempt_begins_after_the_deadline(self) -> None:
        with self.assertRaises(CallFailed):
            self.attempts.pause(self.failing(asked=60), 100)
        with self.assertRaises(CallFailed):
            self.attempts.pause(self.failing(), 114.9)

    def test_the_timeout_of_an_attempt_ends_at_the_deadline(self) -> None:
        self.assertEqual(self.attempts.timeout(100), ATTEMPT_TIMEOUT)
        self.assertEqual(self.attempts.timeout(113), 2)
        self.assertGreater(self.attempts.timeout(116), 0)

    @given(st.lists(st.none() | st.floats(0, 100), max_size=10), st.floats(0.1, 60))
    def test_all_attempts_begin_before_the_deadline_and_are_bounded(
        self, answers: list[float | None], deadline: float
    ) -> None:
        attempts = RetryPolicy.within(deadline, now=0, random=lambda: 0.5)
        now, made = 0.0, 0
        try:
            for asked in answers:
                made += 1
                now += attempts.pause(self.failing(asked), now)
                self.assertLess(now, deadline)
        except CallFailed:
            pass
        self.assertLessEqual(made, ATTEMPTS)
