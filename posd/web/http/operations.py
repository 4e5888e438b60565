"""The table of HTTP operations: one row for each path and method.

A row has the kinds of keys that may call the operation, the types of the request and the answers, and the
refusals. `Dispatcher` handles requests by these rows, and the description of the API is generated from them,
so both always agree.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypeVar

from attrs import field, frozen

from posd.store.idempotency import IdempotencyKey
from posd.values import KeyKind, Principal, Tenant
from posd.web.http import idempotency
from posd.web.http.bounded_request import BODY_BYTES
from posd.web.http.http_request import HTTPRequest
from posd.web.http.models import RequestModel, ResponseModel, to_json_members
from posd.web.http.responses import Response

I = TypeVar("I")  # noqa: E741  input

LONG_BODY_BYTES: Final = BODY_BYTES
"""The most bytes of a body with orders, events or a daily report."""
SHORT_BODY_BYTES: Final = 64 * 1024
"""The most bytes of the body of all other operations, which have one small object."""

TILLS: Final = frozenset((KeyKind.TENANT, KeyKind.DEVICE))
PLATFORMS: Final = frozenset((KeyKind.PLATFORM,))
ADMINS: Final = frozenset((KeyKind.ADMIN,))
LEDGERS: Final = TILLS | PLATFORMS
"""The kinds of keys that may use gift cards and loyalty points."""
ANYBODY_AT_TENANT: Final = frozenset(KeyKind)
NOBODY: Final[frozenset[KeyKind]] = frozenset()
"""For operations that require no key."""


@frozen
class DeclaredError:
    """A refusal that an operation may answer with: its status, its code, and its cause."""

    status: int
    code: str
    when: str
    details: type[ResponseModel] | None = None
    """The additional members of the error response."""


@frozen
class Request(Generic[I]):
    """An authenticated request. `arguments` is its query or its body, as the operation's `request_model`.

    `path` has the decoded path parameters. `arrived_at` is the time of its arrival on the reactor's clock,
    before it waited for its turn. `key_id` is the id of its key, if the operation requires one.
    """

    http_request: HTTPRequest
    path: Mapping[str, str]
    arguments: I
    arrived_at: float = field(kw_only=True)
    key_id: int | None = field(default=None, kw_only=True)


@frozen
class TenantRequest(Request[I]):
    """A request with a key for one tenant.

    `device_id` is the terminal of a device key, or the X-Device-ID that was sent with a tenant's key.
    """

    tenant: Tenant
    principal: Principal
    device_id: str | None
    operation: str
    """The method and the path of the call, such as `POST /api/kitchen/orders`."""

    @property
    def actor(self) -> str:
        """The name of the caller in ledgers and idempotency keys. It does not depend on the key used."""
        kind = self.principal.kind
        return kind.value if self.device_id is None else f"device {self.device_id}"

    def idempotency_key(self, content: object, key: str | None = None) -> IdempotencyKey | None:
        """Return the idempotency key of this call, from its header or from `key`; None without one.

        The fingerprint is computed from `content`, which has JSON values. Raises `BadRequest`.
        """
        return idempotency.idempotency_key(
            self.http_request, self.tenant.id, self.actor, self.operation, content, key=key
        )


Handler = Callable[[Any], Awaitable[Response]]
"""A coroutine function from a `Request`, or from a `TenantRequest` if the path has `{tenant}`."""


@frozen
class Operation:
    """An operation of the HTTP API. `path` is an OpenAPI path template, `kinds` are the permitted keys.

    `request_model` is read from the query of a GET or DELETE, and otherwise from the body. If it is None, the
    handler reads the request itself. `response_models` has the model of each success by its status, or a
    description if the answer has no model. A `trusted` operation requires no key on a trusted listener. With
    `checks_key_itself` the handler authenticates the request.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    kinds: frozenset[KeyKind]
    response_models: Mapping[int, type[ResponseModel] | str]
    request_model: type[RequestModel] | None = None
    body_model: type[RequestModel] | None = None
    """The model of a body that the handler reads itself, for the description of the API."""
    refusals: tuple[DeclaredError, ...] = ()
    idempotent: bool = False
    """Whether the operation uses an `Idempotency-Key`."""
    trusted: bool = False
    checks_key_itself: bool = False
    description: str = ""
    tag: str = "Tills"
    media_type: str = "application/json"
    """The content type of a success. With `text/event-stream` the model is that of one event."""
    example: Mapping[str, object] | None = None
    """An example of the request."""
    body_bytes: int = SHORT_BODY_BYTES
    """The most bytes of a body. A longer one is refused before it has arrived."""

    @property
    def has_body(self) -> bool:
        return self.method not in ("GET", "DELETE")

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments of the path, without the first slash."""
        return tuple(self.path.split("/")[1:])


def model_response(
    body: ResponseModel,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    replayed: bool = False,
) -> Response:
    """Return the answer for a model. `replayed` marks the stored answer of an earlier call."""
    repeated = {"Idempotent-Replayed": "true"} if replayed else {}
    return Response(to_json_members(body), status, {**(headers or {}), **repeated})
