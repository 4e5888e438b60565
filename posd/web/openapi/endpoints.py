"""`GET /openapi.json`, the description of the API for programs, and `GET /docs`, for people."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from posd.protocol import jsontext
from posd.web.http.operations import NOBODY, Operation, Request
from posd.web.http.responses import PreparedText, Response
from posd.web.openapi import page
from posd.web.openapi.document import document

_HTML: Final = "text/html; charset=utf-8"


class Description:
    """The endpoints. Each text is generated at the first request for it.

    `described` has all other operations.
    """

    def __init__(self, described: tuple[Operation, ...]) -> None:
        self._described = described
        self._html: bytes | None = None

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/openapi.json",
                self.for_programs,
                "Read the description of the API as OpenAPI",
                NOBODY,
                {200: "This document, in OpenAPI 3.1."},
                tag="Description",
            ),
            Operation(
                "GET",
                "/docs",
                self.for_people,
                "Read the description of the API as a page",
                NOBODY,
                {200: "One HTML page with the content of `/openapi.json`."},
                tag="Description",
                media_type="text/html",
                description="The page needs no other file, no script and no network.",
            ),
        )

    async def for_programs(self, request: Request[None]) -> Response:
        return PreparedText({}, text=self._json)

    async def for_people(self, request: Request[None]) -> Response:
        if self._html is None:
            self._html = await page.rendered(self._document)
        return PreparedText({}, headers=page.HEADERS, text=self._html, content_type=_HTML)

    @cached_property
    def _document(self) -> dict[str, Any]:
        return document((*self._described, *self.operations))

    @cached_property
    def _json(self) -> bytes:
        return jsontext.encode(self._document)
