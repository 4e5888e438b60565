"""Generates the page `/docs` from the OpenAPI document.

The page loads no other file and has no script. Twisted's templates escape all texts.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Final

from twisted.web.template import Tag, flattenString, tags

from posd.protocol import jsontext
from posd.web.http.error_catalog import COMMON_ERRORS
from posd.web.openapi.page_members import Content, Node, line, members, name_in, prose, table

_STYLE: Final = files("posd.web.openapi").joinpath("page.css").read_text("utf-8")
_SHA256: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS: Final = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_SHA256}'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""The headers of the page. With them a browser loads no other file and runs no script."""

_REFUSAL: Final = re.compile(r"^(?:- )?`(\w+)`: (.+)$", re.MULTILINE)
_REFERENCE: Final = re.compile(r'"#/components/schemas/(\w+)"')
_SETTING: Final = "POSD=https://pos.example.com:9010\nKEY=pos_…"
_GENERAL: Final = "every-call"


async def rendered(document: Node) -> bytes:
    """Return the page, in UTF-8."""
    html: bytes = await flattenString(None, _Page(document).whole())
    return b"<!doctype html>\n" + html


class _Page:
    """Builds the page from an OpenAPI document."""

    def __init__(self, document: Node) -> None:
        self._document = document
        self._schemas: Node = document["components"]["schemas"]

    def whole(self) -> Tag:
        info = self._document["info"]
        return tags.html(
            tags.head(
                tags.meta(charset="utf-8"),
                tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
                tags.title(f"{info['title']}: HTTP API"),
                tags.style(_STYLE),
            ),
            tags.body(
                Tag("nav")(Tag("details")(Tag("summary")("Contents"), *self._contents())),
                Tag("main")(
                    tags.h1(info["title"], tags.small(info["version"])),
                    *prose(info["description"]),
                    *self._keys(),
                    *(part for tag in self._document["tags"] for part in self._section(tag)),
                    *_common_errors(),
                    *self._shapes(),
                    Tag("footer")(
                        "The same description for programs: ",
                        _link("/openapi.json", "/openapi.json"),
                    ),
                ),
            ),
            lang="en",
        )

    def _tagged(self, tag: str) -> Iterator[tuple[str, str, Node]]:
        for path, methods in self._document["paths"].items():
            for method, operation in methods.items():
                if operation["tags"] == [tag]:
                    yield method, path, operation

    def _contents(self) -> Iterator[Tag]:
        yield tags.ul(
            tags.li(_link("#calling", "How to call the API")),
            tags.li(_link(f"#{_GENERAL}", "Errors of all calls")),
        )
        for tag in self._document["tags"]:
            yield tags.b(tag["name"])
            yield tags.ul(
                tags.li(
                    tags.a(
                        tags.i(method.upper(), class_=method),
                        operation["summary"],
                        href=f"#{operation['operationId']}",
                    )
                )
                for method, _, operation in self._tagged(tag["name"])
            )
        yield tags.b("Shapes")
        yield tags.ul(tags.li(_link(f"#{name}", name)) for name in self._linked_schemas())

    def _keys(self) -> Iterator[Tag]:
        yield tags.h2("How to call the API", id="calling")
        header, bearer = "X-API-Key", "Authorization: Bearer"
        yield tags.p("A key is sent as ", tags.code(header), " or ", tags.code(bearer), ".")
        yield tags.p("The examples are for a shell with these two variables:")
        yield tags.pre(_SETTING)

    def _section(self, tag: Node) -> Iterator[Tag]:
        yield tags.h2(tag["name"])
        yield from prose(tag["description"])
        for method, path, operation in self._tagged(tag["name"]):
            yield Tag("article")(
                *self._heading(method, path, operation),
                *self._parameters(operation),
                *self._body(operation),
                tags.h4("Example"),
                tags.pre(_curl(method, path, operation)),
                *self._answers(operation),
                id=operation["operationId"],
            )

    def _heading(self, method: str, path: str, operation: Node) -> Iterator[Tag]:
        yield tags.h3(_link(f"#{operation['operationId']}", operation["summary"]))
        parts = [
            tags.em(part) if part.startswith("{") else part for part in re.split(r"({\w+})", path)
        ]
        yield tags.p(tags.span(method.upper(), class_=f"method {method}"), *parts, class_="call")
        kinds = operation.get("x-key-kinds")
        if kinds:
            yield tags.p("Kinds of keys: ", *(tags.span(kind) for kind in kinds), class_="who")
        else:
            yield tags.p("Without a key.")
        yield from prose(operation.get("description", ""))

    def _parameters(self, operation: Node) -> Iterator[Tag]:
        for place, title in (("path", "Address"), ("query", "Query"), ("header", "Headers")):
            found = [each for each in operation.get("parameters", ()) if each["in"] == place]
            if found:
                yield tags.h4(title)
                yield table(
                    (
                        each["name"],
                        each["schema"] | {key: each[key] for key in ("x-also",) if key in each},
                        "required" if each.get("required") and place == "query" else "",
                        each.get("description", ""),
                    )
                    for each in found
                )

    def _body(self, operation: Node) -> Iterator[Tag]:
        if "requestBody" in operation:
            yield tags.h4("Body")
            (content,) = operation["requestBody"]["content"].values()
            whole = self._schemas[name_in(content["schema"]) or ""]
            yield from prose(whole["description"])
            yield from members(whole, sent=True)

    def _answers(self, operation: Node) -> Iterator[Tag]:
        refused: list[tuple[str, str, list[Content]]] = []
        yield tags.h4("Answer")
        shown: dict[str, Any] = {}
        for status, response in operation["responses"].items():
            response = self._resolved(response)
            for media, schema in _parts(response):
                name = name_in(schema)
                if "allOf" in schema:
                    refused += self._refusals(status, response, schema)
                elif name in shown:
                    yield tags.p(tags.span(status, class_="status"), f"The same as {shown[name]}.")
                else:
                    shown |= {name: status} if name else {}
                    what = self._schemas[name]["description"] if name else response["description"]
                    yield tags.p(tags.span(status, class_="status"), *line(f"`{media}`"))
                    yield from prose(what)
                    yield from members(self._schemas[name] if name else schema)
        if refused:
            yield tags.h4("Errors")
            yield _codes(refused)
        yield tags.p("See also ", _link(f"#{_GENERAL}", "errors of all calls"), ".")

    def _refusals(
        self, status: str, response: Node, schema: Node
    ) -> Iterator[tuple[str, str, list[Content]]]:
        """Yield the errors that are not in `COMMON_ERRORS`, with the names of their additional members."""
        beside = {
            rule["if"]["properties"]["code"]["const"]: name_in(rule["then"])
            for rule in schema["allOf"]
            if "if" in rule
        }
        for code, when in _REFUSAL.findall(response["description"]):
            if (int(status), code, when) in COMMON_ERRORS:
                continue
            name = beside.get(code)
            also = [f"`{each}`" for each in self._schemas[name]["properties"]] if name else []
            yield status, code, line(f"{when} With {', '.join(also)}." if also else when)

    def _resolved(self, response: Node) -> Node:
        name = name_in(response)
        return response if name is None else self._document["components"]["responses"][name]

    def _linked_schemas(self) -> list[str]:
        """Return the names of the schemas that have a section of their own, because tables link to them."""
        operations = jsontext.encode(self._document["paths"]).decode()
        inline = {*_REFERENCE.findall(operations)}
        within = {*_REFERENCE.findall(jsontext.encode(self._schemas).decode())}
        return [name for name in self._schemas if name in within or name not in inline | {"Error"}]

    def _shapes(self) -> Iterator[Tag]:
        yield tags.h2("Shapes")
        yield from prose("The objects in bodies, answers and messages to tills.")
        for name in self._linked_schemas():
            schema = self._schemas[name]
            yield Tag("article")(
                tags.h3(_link(f"#{name}", name)),
                *prose(schema.get("description", "")),
                *members(schema, sent="x-tolerant" in schema),
                id=name,
            )


def _parts(response: Node) -> Iterator[tuple[str, Node]]:
    """Yield the content types and schemas of a response. For a stream: the schema of an event's data."""
    for media, content in response["content"].items():
        match content["schema"]:
            case {"properties": {"data": {"contentSchema": {"anyOf": [event, _]}}}}:
                yield media, event
            case {"anyOf": several}:
                yield from ((media, each) for each in several)
            case schema:
                yield media, schema


def _common_errors() -> Iterator[Tag]:
    yield tags.h2("Errors of all calls", id=_GENERAL)
    yield tags.p(
        "An error has ",
        *line("`success` (false), `error` for people, `code` for programs, and `requestId`."),
        " A call can have those of these errors that apply to it:",
    )
    yield _codes((str(status), code, line(when)) for status, code, when in sorted(COMMON_ERRORS))


def _codes(rows: Any) -> Tag:
    return tags.table(
        (
            tags.tr(tags.td(status), tags.td(tags.code(code)), tags.td(*when))
            for status, code, when in rows
        ),
        class_="codes",
    )


def _link(target: str, text: str) -> Tag:
    return tags.a(text, href=target)


def _curl(method: str, path: str, operation: Node) -> str:
    """Return the call as a curl command."""
    words = ["curl"] if method in ("get", "post") else [f"curl -X {method.upper()}"]
    if operation["security"]:
        words.append('-H "X-API-Key: $KEY"')
    for each in operation.get("parameters", ()):
        if each["in"] == "path":
            path = path.replace(f"{{{each['name']}}}", each["example"])
        if each["name"] == "Idempotency-Key":
            words.append('-H "Idempotency-Key: $(uuidgen)"')
    if "requestBody" in operation:
        words.append('-H "Content-Type: application/json"')
        (content,) = operation["requestBody"]["content"].values()
        example = jsontext.encode(content.get("example", {})).decode()
        words.append(f"-d {shlex.quote(example)}")
    elif method == "post":
        words[0] = "curl -X POST"
    return " \\\n  ".join([*words, f'"$POSD{path}"'])
