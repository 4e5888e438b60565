"""Checks a request before its operation handles it: rate, turn, key, kind of key, tenant, body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import define, field
from twisted.logger import Logger

from posd.errors import BadRequest, Forbidden, Refusal
from posd.protocol.jsontext import not_numbers
from posd.security.auth import Authenticator, of_kind
from posd.security.rate_limits import Clock
from posd.store.credentials import Credential
from posd.values import SLUG, Principal
from posd.web.http.call import Call
from posd.web.http.error_catalog import declared
from posd.web.http.models import Taken, read, refuse_numbers
from posd.web.http.operations import NOBODY, TILLS, Ask, Operation, TenantAsk
from posd.web.http.refusal_log import Strangers
from posd.web.http.requests import Answer
from posd.web.http.turns import RequestTurns

_SHUT_OUT: Final = ("too_many_attempts", "too_many_requests")

_log = Logger()


@define(eq=False)
class Reception:
    """Lets requests in. `clock` is the reactor's."""

    authenticator: Authenticator
    clock: Clock
    strangers: Strangers = field(factory=Strangers)
    turns: RequestTurns | None = None

    async def serve(self, operation: Operation, path: Mapping[str, str], call: Call) -> Answer:
        """The operation's answer. Raises a `Refusal`.

        A refusal that the operation does not declare is raised too, and is logged as a bug, since the
        description of the API does not have it and clients do not expect it.
        """
        call.operation = f"{operation.method} {operation.path}"
        arrived = self.clock()
        try:
            call.check_rate()
            return await self._in_turn(operation, path, call, arrived)
        except Refusal as refusal:
            if refusal.status in (401, 403) or refusal.code in _SHUT_OUT:
                self.strangers.refused(call, path.get("tenant", ""), refusal.status, refusal.code)
            if not declared(operation, refusal):
                _log.failure(
                    "{method} {path} does not declare {status} {code}",
                    method=operation.method,
                    path=operation.path,
                    status=refusal.status,
                    code=refusal.code,
                )
            raise

    async def _in_turn(
        self, operation: Operation, path: Mapping[str, str], call: Call, arrived: float
    ) -> Answer:
        who = call.account
        if who is None or self.turns is None:
            return await self._answer(operation, path, call, arrived)
        # A key of all tenants has turns for each tenant. So its requests about one slow shop delay no others.
        call.give_turn = await self.turns.take((who.together, path.get("tenant")))
        try:
            return await self._answer(operation, path, call, arrived)
        finally:
            call.give_turn()

    async def _answer(
        self, operation: Operation, path: Mapping[str, str], call: Call, arrived: float
    ) -> Answer:
        slug = path.get("tenant")
        if slug is not None and not operation.own_keys:
            return await self._at_tenant(operation, slug, path, call, arrived)
        key_id = None
        if operation.kinds != NOBODY and not operation.own_keys and not _spared(operation, call):
            principal = await self.authenticator.anywhere(call.key, call.address)
            of_kind(principal, *operation.kinds)
            _at_home(principal, path)
            key_id = principal.key_id
        if "slug" in path:
            call.check_tenant(path["slug"])
        taken = await _take(operation, call)
        return await operation.handler(Ask(call, path, taken, arrived=arrived, key_id=key_id))

    async def _at_tenant(
        self,
        operation: Operation,
        slug: str,
        path: Mapping[str, str],
        call: Call,
        arrived: float,
    ) -> Answer:
        credential = await self.admit(operation, slug, call)
        principal, tenant = credential.principal, credential.tenant
        taken = await _take(operation, call)
        device_id = principal.device_id or (call.device if principal.kind in TILLS else None)
        called = f"{operation.method} {_address(operation, path)}"
        return await operation.handler(
            TenantAsk(
                *(call, path, taken, tenant, principal, device_id, called),
                arrived=arrived,
                key_id=principal.key_id,
            )
        )

    async def admit(self, operation: Operation, slug: str, call: Call) -> Credential:
        """The caller's key at this tenant. Raises `Refusal` if the operation is not for its kind of key."""
        if SLUG.fullmatch(slug) is None:
            raise BadRequest("This is not the slug of a tenant.", code="invalid_tenant")
        credential = await self.let_in(slug, call)
        of_kind(credential.principal, *operation.kinds)
        call.check_tenant(slug)
        return credential

    async def let_in(self, slug: str, call: Call) -> Credential:
        """The caller's key at this tenant. A till's key is checked with the terminal that the call names."""
        # Only a till's key is checked with a terminal, and the first check tells of which kind the key is.
        credential = await self.authenticator.at_tenant(slug, call.key, None, call.address)
        if credential.principal.kind in TILLS and call.device is not None:
            credential = await self.authenticator.at_tenant(
                slug, call.key, call.device, call.address
            )
        return credential


async def _take(operation: Operation, call: Call) -> object:
    """The body or the parameters as the operation takes them."""
    # An operation that checks keys by itself (`own_keys`) parses the body after that.
    if operation.has_body and not operation.own_keys:
        await call.parse()
    if operation.takes is None:
        return None
    if operation.has_body:
        return read(operation.takes, _object(call, operation.takes))
    return read(operation.takes, call.parameters, strict=False)


def _object(call: Call, kind: type[Taken]) -> dict[str, object]:
    """The body as an object. If it has NaN or an infinity, the refusal names the member."""
    try:
        return call.json()
    except BadRequest:
        refuse_numbers(kind, not_numbers(call.body))
        raise


def _at_home(principal: Principal, path: Mapping[str, str]) -> None:
    """Raise `Forbidden` if a key of one tenant is used for another one, or for all."""
    if principal.tenant is not None and path.get("slug") != principal.tenant.slug:
        raise Forbidden("This key is valid for one tenant only.")


def _spared(operation: Operation, call: Call) -> bool:
    """Whether no key is needed, since the request came by a listener that trusts its clients."""
    return operation.trusted and call.door.trusted


def _address(operation: Operation, path: Mapping[str, str]) -> str:
    return operation.path.format_map(path)
