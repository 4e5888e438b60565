"""What can be asked of posd by HTTP: one row for each address and method.

A row says who may ask, what is taken and given, and which refusals there are. The reception serves
requests by it, and the description of the API is made of it, so neither can say what the other does not do.
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
"""The longest body of an operation that takes orders, events or a day's report."""
SHORT_BODY_BYTES: Final = 64 * 1024
"""The longest body of every other operation: they take one small object."""

TILLS: Final = frozenset((KeyKind.TENANT, KeyKind.DEVICE))
PLATFORMS: Final = frozenset((KeyKind.PLATFORM,))
ADMINS: Final = frozenset((KeyKind.ADMIN,))
LEDGERS: Final = TILLS | PLATFORMS
"""Those who spend from gift cards, and earn and redeem points."""
ANYBODY_AT_TENANT: Final = frozenset(KeyKind)
NOBODY: Final[frozenset[KeyKind]] = frozenset()
"""No key is asked for."""


@frozen
class DeclaredError:
    """A refusal that an operation may answer with: its status, its code, and when."""

    status: int
    code: str
    when: str
    details: type[ResponseModel] | None = None
    """The members that stand beside the error."""


@frozen
class Request(Generic[I]):
    """A request that has been let in: what it brings, read from its query or from its body.

    `path` has the parts of the address that are named in the row, decoded. `arrived_at` is when it came,
    by the reactor's clock, before it waited for its turn. `key_id` is the key that it came with, where
    one was asked for.
    """

    http_request: HTTPRequest
    path: Mapping[str, str]
    arguments: I
    arrived_at: float = field(kw_only=True)
    key_id: int | None = field(default=None, kw_only=True)


@frozen
class TenantRequest(Request[I]):
    """A request about one tenant, from somebody with a key for it.

    `device_id` is the terminal that asks: that of its key, or the one that a tenant's key named.
    """

    tenant: Tenant
    principal: Principal
    device_id: str | None
    operation: str
    """`POST /api/kitchen/orders`: the method and the address, as they were called."""

    @property
    def actor(self) -> str:
        """For whom this is done, whichever key is used for it."""
        kind = self.principal.kind
        return kind.value if self.device_id is None else f"device {self.device_id}"

    def idempotency_key(self, content: object, key: str | None = None) -> IdempotencyKey | None:
        """What names this call, if it brought an `Idempotency-Key` or `key` is one.

        `content` is what the call moves, in values that JSON has. Raises `BadRequest`.
        """
        return idempotency.idempotency_key(
            self.http_request, self.tenant.id, self.actor, self.operation, content, key=key
        )


Handler = Callable[[Any], Awaitable[Response]]
"""From an `Request`, or a `TenantRequest` where the address names a tenant, to the answer."""


@frozen
class Operation:
    """One row: `path` is an OpenAPI template, `kinds` who may ask.

    `request_model` is read from the query of a GET or DELETE and from the body of everything else; None: the
    handler reads what it wants. `response_models` has the shape of each success by its status, or a
    sentence about
    what is no structure of ours. A `trusted` one needs no key on a trusted listener. `checks_key_itself`: the
    handler looks at the key by itself.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    kinds: frozenset[KeyKind]
    response_models: Mapping[int, type[ResponseModel] | str]
    request_model: type[RequestModel] | None = None
    body_model: type[RequestModel] | None = None
    """The shape of a body that the handler reads by itself, for the description."""
    refusals: tuple[DeclaredError, ...] = ()
    idempotent: bool = False
    """Whether it looks at an `Idempotency-Key`."""
    trusted: bool = False
    checks_key_itself: bool = False
    description: str = ""
    tag: str = "Tills"
    media_type: str = "application/json"
    """What a success is written in. `text/event-stream`: as many of what it gives as there are."""
    example: Mapping[str, object] | None = None
    """What it takes, for instance."""
    body_bytes: int = SHORT_BODY_BYTES
    """The longest body that is accepted; a longer one is refused before it has come."""

    @property
    def has_body(self) -> bool:
        return self.method not in ("GET", "DELETE")

    @property
    def segments(self) -> tuple[str, ...]:
        """The address in parts, without the first slash."""
        return tuple(self.path.split("/")[1:])


def model_response(
    body: ResponseModel,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    replayed: bool = False,
) -> Response:
    """An answer of a declared shape; `replayed`: it was given before to an equal call."""
    repeated = {"Idempotent-Replayed": "true"} if replayed else {}
    return Response(to_json_members(body), status, {**(headers or {}), **repeated})
