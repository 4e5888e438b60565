"""`/api/admin/tenants`: what operators do about shops and their terminals while posd runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Final

from attrs import define
from msgspec import Meta
from twisted.logger import Logger

from posd.database.migrations import misfit
from posd.database.pool import Database
from posd.errors import BadRequest, Conflict, NotFound
from posd.events.money import is_currency
from posd.events.phones import is_region
from posd.events.regions import DEFAULT, region_of
from posd.events.timezones import is_zone
from posd.protocol.literals import timestamp
from posd.store import presence, standing, tenants
from posd.store.idempotency import once_shown
from posd.store.standing import TerminalStanding
from posd.store.tenants import Overview
from posd.values import KeyKind, Tenant
from posd.web.api import ledgers
from posd.web.api.status import TerminalGiven, moment, terminal_members
from posd.web.http import idempotency
from posd.web.http.models import UNSET, Given, Moment, Success, Taken, Unset, plain
from posd.web.http.operations import ADMINS, Ask, Operation, Refused, given
from posd.web.http.requests import Answer

UNKNOWN_TENANT: Final = Refused(404, "unknown_tenant", "There is no such tenant.")
_Row = tuple[str, str, str, str, str]
_log = Logger()


class TenantTaken(Taken, frozen=True):
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


class TenantGiven(Given, frozen=True):
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


class TenantsTaken(Taken, frozen=True):
    """The page of the list."""

    limit: Limit = MOST_LISTED
    after: (
        Annotated[str, Meta(max_length=48, description="The `next` of the previous page.")] | Unset
    ) = UNSET


class TenantsGiven(Success, frozen=True):
    """Tenants by slug, including disabled ones. While `hasMore` is true, `next` is the `after` of
    the next call."""

    tenants: list[TenantGiven]
    has_more: bool
    next: str | None


class OneTenantGiven(Success, frozen=True):
    """The tenant that was created, or that already existed."""

    tenant: TenantGiven


class OperatorTerminalGiven(TerminalGiven, frozen=True):
    """A terminal, with members for operators. `node` is the posd that it is connected to."""

    device_name: str | None
    has_key: bool
    active: bool
    app_version: str | None
    first_acked_at: Moment | None
    node: str | None


class TerminalsGiven(Success, frozen=True):
    """The terminals of a tenant, connected ones first."""

    tenant: str
    terminals: list[OperatorTerminalGiven]


class DisconnectedGiven(Success, frozen=True):
    """Whether the terminal was connected."""

    device_id: str
    was_connected: bool


@define(eq=False)
class Operators:
    """The endpoints. `files` are the migrations that a tenant's schema has when it fits this posd."""

    database: Database
    files: tuple[str, ...]

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/api/admin/tenants",
                self.everyone,
                "List the tenants",
                ADMINS,
                {200: TenantsGiven},
                TenantsTaken,
                tag="Operators",
            ),
            Operation(
                "POST",
                "/api/admin/tenants",
                self.make,
                "Create a tenant",
                ADMINS,
                {201: OneTenantGiven, 200: OneTenantGiven},
                TenantTaken,
                refusals=(
                    Refused(409, "tenant_exists", "Another tenant has this slug."),
                    Refused(
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
                {200: TerminalsGiven},
                refusals=(UNKNOWN_TENANT,),
                tag="Operators",
            ),
            Operation(
                "POST",
                "/api/admin/tenants/{slug}/terminals/{deviceId}/disconnect",
                self.disconnect,
                "Disconnect a terminal",
                ADMINS,
                {200: DisconnectedGiven},
                refusals=(
                    UNKNOWN_TENANT,
                    Refused(404, "unknown_terminal", "The tenant has no such terminal."),
                ),
                description="The terminal can reconnect at once. To keep it out, revoke its "
                "key. The call can be repeated, and ignores `Idempotency-Key`.",
                tag="Operators",
            ),
        )

    async def everyone(self, ask: Ask[TenantsTaken]) -> Answer:
        """Disabled ones too."""
        after = None if ask.taken.after is UNSET else ask.taken.after
        most = ask.taken.limit
        listed = await tenants.overview(self.database, after=after, most=most + 1)
        shown, has_more = listed[:most], len(listed) > most
        return given(
            TenantsGiven(
                tenants=[self._shown(each) for each in shown],
                has_more=has_more,
                next=shown[-1].tenant.slug if has_more else None,
            )
        )

    async def make(self, ask: Ask[TenantTaken]) -> Answer:
        """A retry after a lost answer is told what it would have been told."""
        wanted = ask.taken
        _check(wanted)
        row = _row(wanted)
        call = idempotency.named(
            ask.call, None, KeyKind.ADMIN.value, "POST /api/admin/tenants", list(row)
        )
        try:
            answered = await self.database.transaction(
                lambda session: once_shown(
                    session, call, lambda: tenants.create(session, *row), self._told(201)
                )
            )
        except Conflict:
            if not await self._is_there(wanted):
                raise
            answered = await self.database.transaction(
                lambda session: once_shown(
                    session, call, lambda: tenants.one(session, wanted.slug), self._told(200)
                )
            )
        if answered.status == 201 and not answered.replayed:
            _log.info("key {key} made the tenant {slug}", key=ask.key_id, slug=wanted.slug)
        return ledgers.again(answered)

    async def terminals(self, ask: Ask[None]) -> Answer:
        """Those that are away are listed too."""
        tenant = (await tenants.one(self.database, ask.path["slug"])).tenant
        found = await standing.terminals(self.database, tenant.id)
        return given(
            TerminalsGiven(tenant=tenant.slug, terminals=[_terminal(each) for each in found])
        )

    async def disconnect(self, ask: Ask[None]) -> Answer:
        """On whichever node it is."""
        tenant = (await tenants.one(self.database, ask.path["slug"])).tenant
        device = ask.path["deviceId"]
        connections = None
        if device.isprintable():
            connections = await presence.disconnect(self.database, tenant.id, device)
        if connections is None:
            raise NotFound("There is no such terminal.", code="unknown_terminal")
        _log.info(
            "key {key} disconnected {device_id} of {slug}",
            key=ask.key_id,
            device_id=device,
            slug=tenant.slug,
        )
        return given(DisconnectedGiven(device_id=device, was_connected=connections > 0))

    def _told(self, status: int) -> Callable[[Overview], tuple[int, Mapping[str, object]]]:
        return lambda each: (status, plain(OneTenantGiven(tenant=self._shown(each))))

    async def _is_there(self, wanted: TenantTaken) -> bool:
        """Whether there is a tenant that is just what is wanted."""
        return any(
            _row(each.tenant) == _row(wanted)
            for each in await tenants.overview(self.database, wanted.slug)
        )

    def _shown(self, each: Overview) -> TenantGiven:
        tenant = each.tenant
        return TenantGiven(
            slug=tenant.slug,
            name=tenant.name,
            schema=tenant.schema,
            currency=tenant.currency,
            timezone=tenant.timezone,
            default_region=tenant.default_region,
            active=each.is_active,
            ready=misfit(list(each.applied), self.files) is None,
            connected=each.connected,
            created_at=timestamp(each.created_at),
        )


def _row(tenant: TenantTaken | Tenant) -> _Row:
    """What a tenant is, but for what posd makes of it."""
    return tenant.slug, tenant.name, tenant.currency, tenant.timezone, _region(tenant)


def _region(tenant: TenantTaken | Tenant) -> str:
    given = tenant.default_region
    return given if isinstance(given, str) else region_of(tenant.timezone) or DEFAULT


def _check(wanted: TenantTaken) -> None:
    """Raise `BadRequest` for what looks right and is not: amounts and numbers would be misread later."""
    for field, is_right, what in (
        ("currency", is_currency(wanted.currency), "is not a currency of ISO 4217"),
        ("timezone", is_zone(wanted.timezone), "is not the name of a time zone"),
        ("defaultRegion", is_region(_region(wanted)), "is not a country with telephone numbers"),
    ):
        if not is_right:
            raise BadRequest(f"{field} {what}.", code="invalid_field", details={"field": field})


def _terminal(each: TerminalStanding) -> OperatorTerminalGiven:
    return OperatorTerminalGiven(
        **terminal_members(each),
        device_name=each.name,
        has_key=each.has_key,
        active=each.is_active,
        app_version=each.app_version,
        first_acked_at=moment(each.first_acked_at),
        node=each.node,
    )
