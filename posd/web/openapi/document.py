"""Generates the OpenAPI 3.1 document from the operations (https://spec.openapis.org/oas/v3.1.1.html).

There are three extensions. `x-key-kinds` has the kinds of keys that may call an operation. `x-also` has the
aliases of a member or a parameter. `x-tolerant` marks an object for which posd never refuses a value that it
cannot read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from inspect import cleandoc
from itertools import groupby
from typing import Any, Final, cast

from posd import __version__
from posd.errors import Refusal
from posd.protocol import jsontext
from posd.web.http import error_catalog as refusals
from posd.web.http.models import ResponseModel
from posd.web.http.operations import NOBODY, DeclaredError, Operation
from posd.web.openapi import event_schemas, parameters, schemas
from posd.web.openapi.event_schemas import Schema, ref

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
_INTRODUCTION: Final = cleandoc(
    """
    posd delivers the orders of a shop to its tills, and stores its gift cards and loyalty points.

    Bodies and answers are JSON in UTF-8. Amounts are JSON numbers with exact decimals; posd does not
    convert them to binary floating point. Times are RFC 3339. Unknown members are ignored. Names are in
    camelCase; posd also accepts snake_case.

    HEAD is answered like GET, without the body. An unknown URL is 404 `not_found`. A method that the URL
    does not have is 405 `method_not_allowed`, with the other methods in `Allow`.
    """
)
TAGS: Final = {
    "Tills": "Calls of tills.",
    "Orders": "Platforms create and change orders; tills receive and print them.",
    "Gift cards": "Sell, deduct from and reverse gift cards.",
    "Loyalty": "Add, redeem and reverse loyalty points.",
    "Stream": "The event stream, by polling and by server-sent events.",
    "Reports": "Daily reports of a shop.",
    "Platform": "Calls of ordering platforms.",
    "Operators": "Tenants, keys and terminals.",
    "Health": "Health checks for load balancers and operators.",
    "Description": "The description of this API.",
}
_SECURITY: Final = {
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The key, as `posctl key create` printed it.",
    },
    "bearer": {"type": "http", "scheme": "bearer", "description": "The same key."},
}
_HEADERS: Final = {
    "Idempotent-Replayed": {
        "description": "`true` if this is a repeated answer.",
        "schema": {"const": "true"},
    },
    "Retry-After": {
        "description": "After how many seconds to try again.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "WWW-Authenticate": {
        "description": "RFC 9110 §11.6.1.",
        "schema": {"const": "Bearer"},
    },
}
_ERROR: Final = {
    "type": "object",
    "description": "An error.",
    "properties": {
        "success": {"const": False},
        "error": {"type": "string", "description": "A message for people."},
        "code": {
            "type": "string",
            "pattern": "^[a-z][a-z0-9_]*$",
            "description": "A code for programs.",
        },
        "requestId": {
            "type": "string",
            "description": "The id of the request. If it is a fault of posd (500), the log "
            "of posd has the same id.",
        },
    },
    "required": ["success", "error", "code", "requestId"],
}
_REFUSED_HEADERS: Final = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
_NAMES: Final = {each.status: each.__name__ for each in Refusal.__subclasses__()} | {500: "Failed"}
"""The names of responses that several operations share, by status."""
_LIST: Final = "\n- "
_EXAMPLES: Final = cast(
    "dict[str, object]",
    jsontext.decode(files("posd.web.openapi").joinpath("answers.json").read_bytes()),
)
"""An example of the answer of each operation. Tests compare those that docs/rest.md shows."""


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the OpenAPI document of all operations."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    tags = [{"name": tag, "description": TAGS[tag]} for tag in TAGS if _is_used(tag, operations)]
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "posd",
            "version": __version__,
            "description": _INTRODUCTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The posd that serves this description."}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR, **event_schemas.components(), **_schemas(operations)},
            "responses": _shared(paths),
            "headers": _HEADERS,
            "securitySchemes": _SECURITY,
        },
    }


def _is_used(tag: str, operations: Iterable[Operation]) -> bool:
    return any(operation.tag == tag for operation in operations)


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _id(operation),
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": _description(operation),
        "parameters": [*_parameters(operation)],
        "security": [{"key": []}, {"bearer": []}] if operation.kinds != NOBODY else [],
        "x-key-kinds": sorted(kind.value for kind in operation.kinds),
        "responses": _responses(operation),
    }
    body = _body(operation)
    if body is not None:
        described["requestBody"] = body
    return {name: value for name, value in described.items() if value not in ("", [])} | {
        "security": described["security"]
    }


def _id(operation: Operation) -> str:
    """Return the operation id, from the method and the path, such as `getGiftCardsByCardNumberBalance`."""
    # `{tenant}` stays in the id of a tenant's health, which would otherwise be the id of `/health`.
    common = ("api",) if operation.segments[-1] == "health" else ("api", "{tenant}")
    segments = [part for part in operation.segments if part not in common]
    words = [f"by-{part.strip('{}')}" if part.startswith("{") else part for part in segments]
    names = [word for part in words for word in re.split(r"[-._]", part)]
    return operation.method.lower() + "".join(name[:1].upper() + name[1:] for name in names)


def _description(operation: Operation) -> str:
    sentences = [operation.description]
    if operation.trusted:
        sentences.append("A trusted listener requires no key.")
    return "\n\n".join(sentence for sentence in sentences if sentence)


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    yield from parameters.path_of(operation)
    if operation.request_model is not None and not operation.has_body:
        yield from schemas.parameters(operation.request_model)
    yield from parameters.headers_of(operation)


def _body(operation: Operation) -> dict[str, Any] | None:
    shape = operation.body_model or (operation.request_model if operation.has_body else None)
    if shape is None:
        return None
    content: dict[str, Any] = {"schema": ref(shape.__name__)}
    if operation.example is not None:
        content["example"] = operation.example
    return {"required": True, "content": {JSON: content}}


def _responses(operation: Operation) -> dict[str, Any]:
    found = {
        str(status): _success(operation, shape)
        for status, shape in operation.response_models.items()
    }
    answer = _EXAMPLES.get(f"{operation.method} {operation.path}")
    if answer is not None:
        # The first response is the usual one.
        found[str(next(iter(operation.response_models)))]["content"][operation.media_type][
            "example"
        ] = answer
    for status, group in groupby(refusals.all_errors(operation), key=lambda each: each.status):
        refused = _refused(status, [*group])
        success = found.get(str(status))
        found[str(status)] = refused if success is None else _success_or_error(success, refused)
    return dict(sorted(found.items()))


def _success(operation: Operation, shape: type[ResponseModel] | str) -> dict[str, Any]:
    if isinstance(shape, str):
        what, schema = shape, {"type": "object" if operation.media_type == JSON else "string"}
    else:
        what = cleandoc(shape.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
        schema = ref(shape.__name__)
        if operation.media_type == EVENTS:
            schema = _server_sent(schema)
    content = {operation.media_type: {"schema": schema}}
    described: dict[str, Any] = {"description": what, "content": content}
    if operation.idempotent:
        described["headers"] = _headers("Idempotent-Replayed")
    return described


def _server_sent(schema: Schema) -> Schema:
    """Return the schema of one server-sent event.

    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """
    # The first and the last event are about the stream itself.
    about = {"properties": {"type": {"enum": ["connected", "pos_closing"]}}, "required": ["type"]}
    carried = {"anyOf": [schema, about]}
    data = {"type": "string", "contentMediaType": JSON, "contentSchema": carried}
    return {
        "type": "object",
        "description": "One event of the stream.",
        "properties": {
            "event": {"type": "string"},
            "id": {"type": "string"},
            "data": data,
            "retry": {"type": "integer"},
        },
        "required": ["event", "data"],
    }


def _refused(status: int, group: Sequence[DeclaredError]) -> dict[str, Any]:
    """Return the response of one status, with all its codes."""
    codes = dict.fromkeys(each.code for each in group)
    schema: Schema = {
        "allOf": [ref("Error"), {"properties": {"code": {"enum": [*codes]}}}, *_details(group)]
    }
    lines = [f"`{each.code}`: {each.when}" for each in group]
    described: dict[str, Any] = {
        "description": lines[0] if len(lines) == 1 else f"- {_LIST.join(lines)}".strip(),
        "content": {JSON: {"schema": schema}},
    }
    if status in _REFUSED_HEADERS:
        described["headers"] = _headers(_REFUSED_HEADERS[status])
    return described


def _details(group: Iterable[DeclaredError]) -> Iterator[Schema]:
    """Yield the schemas of the additional members of an error, which depend on its code."""
    for each in group:
        if each.details is not None:
            yield {
                "if": {"properties": {"code": {"const": each.code}}},
                "then": ref(each.details.__name__),
            }


def _success_or_error(success: Mapping[str, Any], refused: Mapping[str, Any]) -> dict[str, Any]:
    """Return the response of a status that is both a success and a refusal."""
    both = [each["content"][JSON]["schema"] for each in (success, refused)]
    return {
        **refused,
        "description": f"{success['description']}\n\n{refused['description']}",
        "content": {JSON: {"schema": {"anyOf": both}}},
    }


def _headers(name: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"}}


def _schemas(operations: Iterable[Operation]) -> dict[str, Schema]:
    """Return the schemas of all bodies and answers."""
    success: dict[type[ResponseModel], None] = {}
    made: dict[str, Schema] = {}
    for operation in operations:
        shapes = (each for each in operation.response_models.values() if not isinstance(each, str))
        details = (each.details for each in refusals.all_errors(operation))
        success |= dict.fromkeys([*shapes, *(each for each in details if each is not None)])
        if operation.body_model is not None:
            made |= schemas.components([operation.body_model])
        elif operation.request_model is not None and operation.has_body:
            made |= schemas.components([operation.request_model])
            made[operation.request_model.__name__] = schemas.body(operation.request_model)
    return dict(sorted((made | schemas.components(success)).items()))


def _shared(paths: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Replace responses that several operations share by references. Return the shared responses."""
    places: dict[tuple[str, bytes], list[dict[str, Any]]] = {}
    for path in paths.values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                key = status, jsontext.encode(response)
                places.setdefault(key, []).append(operation["responses"])
    shared: dict[str, Any] = {}
    for (status, _), users in places.items():
        if len(users) > 1 and status >= "400":
            stem = _NAMES[int(status)]
            count = sum(re.sub("[0-9]+$", "", name) == stem for name in shared)
            name = stem if not count else f"{stem}{count + 1}"
            shared[name] = users[0][status]
            for user in users:
                user[status] = {"$ref": f"#/components/responses/{name}"}
    return shared
