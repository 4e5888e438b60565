"""Checks a request before its operation handles it: rate, turn, key, kind of key, tenant, body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import define, field
from twisted.logger import Logger

from posd.errors import BadRequest, Forbidden, Refusal
from posd.protocol.jsontext import unrepresentable_numbers
from posd.security.auth import Authenticator, require_kind
from posd.security.rate_limits import Clock
from posd.store.credentials import Credential
from posd.values import SLUG, Principal
from posd.web.http.error_catalog import is_declared
from posd.web.http.http_request import HTTPRequest
from posd.web.http.models import RequestModel, read, refuse_numbers
from posd.web.http.operations import NOBODY, TILLS, Operation, Request, TenantRequest
from posd.web.http.refusal_log import RefusalLog
from posd.web.http.request_turns import RequestTurns
from posd.web.http.responses import Response

_LOGGED_CODES: Final = ("too_many_attempts", "too_many_requests")

_log = Logger()


@define(eq=False)
class Dispatcher:
    """Authenticates requests, and passes them to operations. `clock` is the reactor's."""

    authenticator: Authenticator
    clock: Clock
    refusal_log: RefusalLog = field(factory=RefusalLog)
    turns: RequestTurns | None = None

    async def serve(
        self, operation: Operation, path: Mapping[str, str], http_request: HTTPRequest
    ) -> Response:
        """Check a request and return the operation's answer. Raises a `Refusal`.

        A refusal that the operation does not declare is logged as a bug, because the description of the API
        does not have it and clients do not expect it.
        """
        http_request.operation = f"{operation.method} {operation.path}"
        arrived_at = self.clock()
        try:
            http_request.check_rate()
            return await self._in_turn(operation, path, http_request, arrived_at)
        except Refusal as refusal:
            if refusal.status in (401, 403) or refusal.code in _LOGGED_CODES:
                self.refusal_log.refused(
                    http_request, path.get("tenant", ""), refusal.status, refusal.code
                )
            if not is_declared(operation, refusal):
                _log.failure(
                    "{method} {path} does not declare {status} {code}, which posd has answered;"
                    " please report this bug",
                    method=operation.method,
                    path=operation.path,
                    status=refusal.status,
                    code=refusal.code,
                )
            raise

    async def _in_turn(
        self,
        operation: Operation,
        path: Mapping[str, str],
        http_request: HTTPRequest,
        arrived_at: float,
    ) -> Response:
        account = http_request.account
        if account is None or self.turns is None:
            return await self._handle(operation, path, http_request, arrived_at)
        # A key for all tenants has separate turns for each tenant, so that a slow shop delays no other.
        http_request.release_turn = await self.turns.acquire(
            (account.shared_scope, path.get("tenant"))
        )
        try:
            return await self._handle(operation, path, http_request, arrived_at)
        finally:
            http_request.release_turn()

    async def _handle(
        self,
        operation: Operation,
        path: Mapping[str, str],
        http_request: HTTPRequest,
        arrived_at: float,
    ) -> Response:
        slug = path.get("tenant")
        if slug is not None and not operation.checks_key_itself:
            return await self._at_tenant(operation, slug, path, http_request, arrived_at)
        key_id = None
        if (
            operation.kinds != NOBODY
            and not operation.checks_key_itself
            and not _needs_no_key(operation, http_request)
        ):
            principal = await self.authenticator.find_principal(
                http_request.key, http_request.address
            )
            require_kind(principal, *operation.kinds)
            _check_own_tenant(principal, path)
            key_id = principal.key_id
        if "slug" in path:
            http_request.check_tenant(path["slug"])
        arguments = await _read_arguments(operation, http_request)
        return await operation.handler(
            Request(http_request, path, arguments, arrived_at=arrived_at, key_id=key_id)
        )

    async def _at_tenant(
        self,
        operation: Operation,
        slug: str,
        path: Mapping[str, str],
        http_request: HTTPRequest,
        arrived_at: float,
    ) -> Response:
        credential = await self.admit(operation, slug, http_request)
        principal, tenant = credential.principal, credential.tenant
        arguments = await _read_arguments(operation, http_request)
        device_id = principal.device_id or (
            http_request.device if principal.kind in TILLS else None
        )
        operation_name = f"{operation.method} {_expanded_path(operation, path)}"
        return await operation.handler(
            TenantRequest(
                *(http_request, path, arguments, tenant, principal, device_id, operation_name),
                arrived_at=arrived_at,
                key_id=principal.key_id,
            )
        )

    async def admit(self, operation: Operation, slug: str, http_request: HTTPRequest) -> Credential:
        """Authenticate a request at a tenant. Raises `Refusal` if the operation is not for the key's kind."""
        if SLUG.fullmatch(slug) is None:
            raise BadRequest("This is not the slug of a tenant.", code="invalid_tenant")
        credential = await self.authenticate(slug, http_request)
        require_kind(credential.principal, *operation.kinds)
        http_request.check_tenant(slug)
        return credential

    async def authenticate(self, slug: str, http_request: HTTPRequest) -> Credential:
        """Authenticate a request at a tenant. A till's key is checked with the terminal that it names."""
        # X-Device-ID concerns only tills' keys, and the first check tells the kind of the key.
        credential = await self.authenticator.find_credential(
            slug, http_request.key, None, http_request.address
        )
        if credential.principal.kind in TILLS and http_request.device is not None:
            credential = await self.authenticator.find_credential(
                slug, http_request.key, http_request.device, http_request.address
            )
        return credential


async def _read_arguments(operation: Operation, http_request: HTTPRequest) -> object:
    """Return the body or the query parameters as an instance of the operation's `request_model`."""
    # An operation with `checks_key_itself` parses the body after its check.
    if operation.has_body and not operation.checks_key_itself:
        await http_request.parse()
    if operation.request_model is None:
        return None
    if operation.has_body:
        return read(operation.request_model, _read_body(http_request, operation.request_model))
    return read(operation.request_model, http_request.parameters, strict=False)


def _read_body(http_request: HTTPRequest, kind: type[RequestModel]) -> dict[str, object]:
    """Return the body as an object. If posd cannot represent a number, the refusal names its member."""
    try:
        return http_request.json()
    except BadRequest:
        refuse_numbers(kind, unrepresentable_numbers(http_request.body))
        raise


def _check_own_tenant(principal: Principal, path: Mapping[str, str]) -> None:
    """Raise `Forbidden` if a key of one tenant is used for another tenant, or for all tenants."""
    if principal.tenant is not None and path.get("slug") != principal.tenant.slug:
        raise Forbidden("This key is valid for one tenant only.")


def _needs_no_key(operation: Operation, http_request: HTTPRequest) -> bool:
    """Return whether the operation needs no key on this listener."""
    return operation.trusted and http_request.listener_context.trusted


def _expanded_path(operation: Operation, path: Mapping[str, str]) -> str:
    return operation.path.format_map(path)
