"""Tests of the page `/docs`: it is complete, loads no other file, and has no script."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from posd.web.http.error_catalog import COMMON_ERRORS
from posd.web.http.models import ResponseModel
from posd.web.http.operations import NOBODY, DeclaredError, Operation, Request
from posd.web.http.responses import Response
from posd.web.openapi import page
from posd.web.openapi.document import document
from posd.web.openapi.endpoints import Description
from tests.description_case import described, operations


class Shut(ResponseModel, frozen=True):
    """The shop is closed."""

    opens_again: str


_EVIL = "<script>alert(1)</script>\"'&`<b>`"


class Seen(HTMLParser):
    """Parses the page and stores its elements."""

    def __init__(self, html: str) -> None:
        HTMLParser.__init__(self)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.codes: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["code"]:
            self.codes.append(data)

    def named(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]


class PageTests(SynchronousTestCase):
    def rendered(self, described: dict[str, Any]) -> str:
        made = Deferred.fromCoroutine(page.rendered(described))
        return self.successResultOf(made).decode()

    def setUp(self) -> None:
        self.html = self.rendered(described())
        self.seen = Seen(self.html)

    def test_nothing_is_loaded_and_nothing_runs(self) -> None:
        for tag in ("script", "link", "img", "iframe", "form", "object", "base"):
            self.assertNotIn(tag, self.seen.tags)
        for name, value in self.seen.attributes:
            self.assertNotIn(name, ("src", "style"))
            self.assertFalse(name.startswith("on"), name)
            if name == "href":
                self.assertRegex(value, r"^(#\w|/openapi\.json$)")
        self.assertNotIn("url(", self.html)
        self.assertNotIn("@import", self.html)

    def test_the_style_is_the_one_that_a_browser_is_told_to_take(self) -> None:
        (style,) = re.findall(r"<style>(.*?)</style>", self.html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = page.HEADERS["Content-Security-Policy"]
        self.assertTrue(policy.startswith("default-src 'none'; "))
        self.assertIn(f"style-src 'sha256-{digest}'", policy)

    def test_every_link_leads_somewhere(self) -> None:
        targets = {value[1:] for value in self.seen.named("href") if value.startswith("#")}
        names = self.seen.named("id")
        self.assertEqual(targets - {*names}, set())
        self.assertEqual(len(names), len({*names}))

    def test_every_operation_is_there_with_what_it_may_be_refused_with(self) -> None:
        text = unescape(re.sub("<[^>]+>", "", self.html))
        for operation in operations():
            for words in (
                f"{operation.method}{operation.path}",
                operation.summary,
                *(f"{each.status}{each.code}" for each in operation.refusals),
            ):
                self.assertIn(words, text)
        for status, code, _ in COMMON_ERRORS:
            self.assertIn(f"{status}{code}", text)

    def test_a_status_of_a_success_and_of_a_refusal_shows_both(self) -> None:
        row = Operation(
            *("GET", "/shop", cast(Any, None), "Whether it is open", NOBODY, {503: Shut}),
            refusals=(DeclaredError(503, "flooded", "There is water in it."),),
            tag="Health",
        )
        seen = Seen(self.rendered(document([row])))
        self.assertLessEqual({"opensAgain", "flooded"}, {*seen.codes})

    def test_the_description_of_a_nullable_member_is_shown(self) -> None:
        text = unescape(re.sub("<[^>]+>", "", self.html))
        self.assertIn("Only a device key has one.", text)

    def test_what_stands_in_the_document_is_text(self) -> None:
        evil = document(operations())
        operation = evil["paths"]["/broadcast"]["post"]
        operation["summary"] = operation["description"] = _EVIL
        operation["requestBody"]["content"]["application/json"]["example"] = {"a": _EVIL}
        evil["components"]["schemas"]["BroadcastRequest"]["properties"][_EVIL] = {"const": _EVIL}
        seen = Seen(self.rendered(evil))
        self.assertNotIn("script", seen.tags)
        self.assertEqual({*seen.tags} - {*self.seen.tags}, set())

    def test_an_example_is_safe_in_a_shell(self) -> None:
        whole = document(operations())
        body = whole["paths"]["/broadcast"]["post"]["requestBody"]
        body["content"]["application/json"]["example"] = {"a": "it's $(x)"}
        self.assertIn("""-d '{"a":"it'"'"'s $(x)"}'""", unescape(self.rendered(whole)))


class EndpointTests(SynchronousTestCase):
    def answered(self, path: str) -> Response:
        (row,) = (each for each in Description(()).operations if each.path == path)
        call: Any = None  # neither looks at it
        ask: Request[Any] = Request(call, {}, None, arrived_at=0.0)
        return self.successResultOf(Deferred.fromCoroutine(row.handler(ask)))  # type: ignore[arg-type]

    def test_for_programs_it_is_json(self) -> None:
        answer = self.answered("/openapi.json")
        self.assertEqual(answer.media_type, "application/json")
        self.assertIn(b'"/docs"', answer.encoded())

    def test_for_people_it_is_html_that_a_browser_takes_as_it_is(self) -> None:
        answer = self.answered("/docs")
        self.assertEqual(answer.media_type, "text/html; charset=utf-8")
        self.assertEqual(answer.headers, page.HEADERS)
        self.assertTrue(answer.encoded().startswith(b"<!doctype html>\n<html"))
