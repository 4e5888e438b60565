"""`/api/admin/tenants`: list and create tenants, and list and disconnect their terminals, for operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Final

from attrs import define
from msgspec import Meta
from twisted.logger import Logger

from posd.database.migrations import version_mismatch
from posd.database.pool import Pool
from posd.errors import BadRequest, Conflict, NotFound
from posd.events.money import is_currency
from posd.events.phones import is_region
from posd.events.regions import DEFAULT, region_of
from posd.events.timezones import is_zone
from posd.protocol.json_literals import timestamp
from posd.store import presence, tenants
from posd.store import stream_status as standing
from posd.store.idempotency import run_once_and_render
from posd.store.stream_status import TerminalStanding
from posd.store.tenants import TenantOverview
from posd.values import KeyKind, Tenant
from posd.web.api import ledgers
from posd.web.api.status import TerminalEntry, moment, terminal_members
from posd.web.http import idempotency
from posd.web.http.models import (
    UNSET,
    Moment,
    RequestModel,
    ResponseModel,
    SuccessModel,
    Unset,
    to_json_members,
)
from posd.web.http.operations import ADMINS, DeclaredError, Operation, Request, model_response
from posd.web.http.responses import Response

UNKNOWN_TENANT: Final = DeclaredError(404, "unknown_tenant", "There is no such tenant.")
_TenantKey = tuple[str, str, str, str, str]
_log = Logger()


class NewTenantRequest(RequestModel, frozen=True):
    """A tenant to create."""

    slug: Annotated[str, Meta(pattern="^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$")]
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$", description="A currency of ISO 4217.")] = (
        "GBP"
    )
    timezone: Annotated[
        str, Meta(max_length=64, description="A time zone of the IANA database.")
    ] = "Europe/London"
    default_region: (
        Annotated[
            str,
            Meta(
                pattern="^[A-Z]{2}$",
                description="A country of ISO 3166, for telephone numbers without a country "
                "code. The default is the country of the time zone, or GB if the "
                "time zone has none.",
            ),
        ]
        | Unset
    ) = UNSET


class TenantEntry(ResponseModel, frozen=True):
    """A tenant. `ready`: its schema has the form that this posd needs. `connected` is the number of
    its connected tills."""

    slug: str
    name: str
    schema: str
    currency: str
    timezone: str
    default_region: str
    active: bool
    ready: bool
    connected: int
    created_at: Moment


MOST_LISTED: Final = 1000
Limit = Annotated[int, Meta(ge=1, le=MOST_LISTED, description="The maximum number of entries.")]


class TenantsRequest(RequestModel, frozen=True):
    """The page of the list."""

    limit: Limit = MOST_LISTED
    after: (
        Annotated[str, Meta(max_length=48, description="The `next` of the previous page.")] | Unset
    ) = UNSET


class TenantsResponse(SuccessModel, frozen=True):
    """Tenants by slug, including disabled ones. While `hasMore` is true, `next` is the `after` of
    the next call."""

    tenants: list[TenantEntry]
    has_more: bool
    next: str | None


class TenantResponse(SuccessModel, frozen=True):
    """The tenant that was created, or that already existed."""

    tenant: TenantEntry


class OperatorTerminalEntry(TerminalEntry, frozen=True):
    """A terminal, with members for operators. `node` is the posd that it is connected to."""

    device_name: str | None
    has_key: bool
    active: bool
    app_version: str | None
    first_acked_at: Moment | None
    node: str | None


class TerminalsResponse(SuccessModel, frozen=True):
    """The terminals of a tenant, connected ones first."""

    tenant: str
    terminals: list[OperatorTerminalEntry]


class DisconnectedResponse(SuccessModel, frozen=True):
    """Whether the terminal was connected."""

    device_id: str
    was_connected: bool


@define(eq=False)
class TenantEndpoints:
    """The endpoints. `files` are the migrations that a tenant's schema needs for this version of posd."""

    database: Pool
    files: tuple[str, ...]

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/api/admin/tenants",
                self.list_tenants,
                "List the tenants",
                ADMINS,
                {200: TenantsResponse},
                TenantsRequest,
                tag="Operators",
            ),
            Operation(
                "POST",
                "/api/admin/tenants",
                self.make,
                "Create a tenant",
                ADMINS,
                {201: TenantResponse, 200: TenantResponse},
                NewTenantRequest,
                refusals=(
                    DeclaredError(409, "tenant_exists", "Another tenant has this slug."),
                    DeclaredError(
                        409,
                        "schema_exists",
                        "The schema exists already. Use `posctl tenant add` for a schema "
                        "of the shop.",
                    ),
                ),
                idempotent=True,
                description="posd creates the tenant with its schema, its tables and its "
                "stream, and the tenant can be used at once. If the same tenant "
                "exists, the answer is this tenant, with 200. A repeated call "
                "with the same `Idempotency-Key` gets the first answer.",
                tag="Operators",
                example={"slug": "bistro", "name": "The Bistro", "currency": "EUR"},
            ),
            Operation(
                "GET",
                "/api/admin/tenants/{slug}/terminals",
                self.terminals,
                "List the terminals of a tenant",
                ADMINS,
                {200: TerminalsResponse},
                refusals=(UNKNOWN_TENANT,),
                tag="Operators",
            ),
            Operation(
                "POST",
                "/api/admin/tenants/{slug}/terminals/{deviceId}/disconnect",
                self.disconnect,
                "Disconnect a terminal",
                ADMINS,
                {200: DisconnectedResponse},
                refusals=(
                    UNKNOWN_TENANT,
                    DeclaredError(404, "unknown_terminal", "The tenant has no such terminal."),
                ),
                description="The terminal can reconnect at once. To keep it out, revoke its "
                "key. The call can be repeated, and ignores `Idempotency-Key`.",
                tag="Operators",
            ),
        )

    async def list_tenants(self, request: Request[TenantsRequest]) -> Response:
        """List the tenants, including disabled ones."""
        after = None if request.arguments.after is UNSET else request.arguments.after
        most = request.arguments.limit
        listed = await tenants.overview(self.database, after=after, most=most + 1)
        page, has_more = listed[:most], len(listed) > most
        return model_response(
            TenantsResponse(
                tenants=[self._entry(each) for each in page],
                has_more=has_more,
                next=page[-1].tenant.slug if has_more else None,
            )
        )

    async def make(self, request: Request[NewTenantRequest]) -> Response:
        """Create a tenant. A repeated call gets the first answer."""
        arguments = request.arguments
        _check_fields(arguments)
        row = _tenant_key(arguments)
        idempotency_key = idempotency.idempotency_key(
            request.http_request, None, KeyKind.ADMIN.value, "POST /api/admin/tenants", list(row)
        )
        try:
            answered = await self.database.transaction(
                lambda executor: run_once_and_render(
                    executor,
                    idempotency_key,
                    lambda: tenants.create(executor, *row),
                    self._stored_response(201),
                )
            )
        except Conflict:
            if not await self._exists_alike(arguments):
                raise
            answered = await self.database.transaction(
                lambda executor: run_once_and_render(
                    executor,
                    idempotency_key,
                    lambda: tenants.find_tenant(executor, arguments.slug),
                    self._stored_response(200),
                )
            )
        if answered.status == 201 and not answered.replayed:
            _log.info("key {key} created tenant {slug}", key=request.key_id, slug=arguments.slug)
        return ledgers.from_stored(answered)

    async def terminals(self, request: Request[None]) -> Response:
        """List the terminals of a tenant, including disconnected ones."""
        tenant = (await tenants.find_tenant(self.database, request.path["slug"])).tenant
        found = await standing.terminal_standings(self.database, tenant.id)
        return model_response(
            TerminalsResponse(tenant=tenant.slug, terminals=[_terminal(each) for each in found])
        )

    async def disconnect(self, request: Request[None]) -> Response:
        """Disconnect a terminal, on any node."""
        tenant = (await tenants.find_tenant(self.database, request.path["slug"])).tenant
        device = request.path["deviceId"]
        connections = None
        if device.isprintable():
            connections = await presence.request_disconnect(self.database, tenant.id, device)
        if connections is None:
            raise NotFound("There is no such terminal.", code="unknown_terminal")
        _log.info(
            "key {key} disconnected terminal {device_id} of tenant {slug}",
            key=request.key_id,
            device_id=device,
            slug=tenant.slug,
        )
        return model_response(DisconnectedResponse(device_id=device, was_connected=connections > 0))

    def _stored_response(
        self, status: int
    ) -> Callable[[TenantOverview], tuple[int, Mapping[str, object]]]:
        return lambda each: (status, to_json_members(TenantResponse(tenant=self._entry(each))))

    async def _exists_alike(self, arguments: NewTenantRequest) -> bool:
        """Return whether the same tenant already exists."""
        return any(
            _tenant_key(each.tenant) == _tenant_key(arguments)
            for each in await tenants.overview(self.database, arguments.slug)
        )

    def _entry(self, each: TenantOverview) -> TenantEntry:
        tenant = each.tenant
        return TenantEntry(
            slug=tenant.slug,
            name=tenant.name,
            schema=tenant.schema,
            currency=tenant.currency,
            timezone=tenant.timezone,
            default_region=tenant.default_region,
            active=each.is_active,
            ready=version_mismatch(list(each.applied), self.files) is None,
            connected=each.connected,
            created_at=timestamp(each.created_at),
        )


def _tenant_key(tenant: NewTenantRequest | Tenant) -> _TenantKey:
    """Return the properties by which two tenants are compared."""
    return tenant.slug, tenant.name, tenant.currency, tenant.timezone, _region(tenant)


def _region(tenant: NewTenantRequest | Tenant) -> str:
    region = tenant.default_region
    return region if isinstance(region, str) else region_of(tenant.timezone) or DEFAULT


def _check_fields(arguments: NewTenantRequest) -> None:
    """Raise `BadRequest` for an unknown currency, time zone or region, even if its form is right."""
    for field, is_right, what in (
        ("currency", is_currency(arguments.currency), "is not a currency of ISO 4217"),
        ("timezone", is_zone(arguments.timezone), "is not the name of a time zone"),
        ("defaultRegion", is_region(_region(arguments)), "is not a country with telephone numbers"),
    ):
        if not is_right:
            raise BadRequest(f"{field} {what}.", code="invalid_field", details={"field": field})


def _terminal(each: TerminalStanding) -> OperatorTerminalEntry:
    return OperatorTerminalEntry(
        **terminal_members(each),
        device_name=each.name,
        has_key=each.has_key,
        active=each.is_active,
        app_version=each.app_version,
        first_acked_at=moment(each.first_acked_at),
        node=each.node,
    )
