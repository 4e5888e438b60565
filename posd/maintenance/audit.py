"""All that must be so in the database, recomputed: `posctl audit`.

One session, in one snapshot, goes through the main schema and then through each tenant's. A rule that cannot
be looked at (a table is gone, a right is missing) is itself a fault; one for which the time was too short is
told apart from that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from attrs import define, field, frozen

from posd.database.migrations import MAIN
from posd.database.provisioning import name_suffix
from posd.database.reconnecting import Querier
from posd.errors import Busy, StatementFailed
from posd.maintenance import account_numbers, shop_changes
from posd.maintenance import schema_diff as structure
from posd.store import audit_ledgers, audit_main, audit_orders, audit_stream, audit_structure
from posd.store.audit import AuditCheck, BrokenRow, CheckOutcome, run_check
from posd.values import Tenant


@frozen
class AuditFinding:
    """What breaks a rule, in one tenant's rows; `tenant` is a slug, None in what concerns all."""

    tenant: str | None
    check: str
    found: CheckOutcome
    warns: bool = False


@define
class Audit:
    """What has been found so far: faults and warnings, and which checks took too long."""

    findings: list[AuditFinding] = field(factory=list)
    unfinished: list[tuple[str | None, str]] = field(factory=list)
    checks: int = 0

    @property
    def faults(self) -> list[AuditFinding]:
        return [each for each in self.findings if not each.warns]

    @property
    def warnings(self) -> list[AuditFinding]:
        return [each for each in self.findings if each.warns]


@frozen
class Auditor:
    """Looks at everything through one session, and shows `most` rows of what breaks a rule."""

    executor: Querier
    most: int
    audit: Audit = field(factory=Audit)

    async def main(self) -> None:
        """Look at what all tenants have in common."""
        await self._structure(None)
        await self._checks(audit_main.CHECKS, None)

    async def tenant(self, tenant: Tenant) -> None:
        """Look at one tenant, as far as its schema is one that this posd knows."""
        if await self._structure(tenant):
            await self._run_check("shop tables", tenant, self._shop_tables(tenant))
            await self._checks((*audit_stream.CHECKS, *audit_orders.CHECKS), tenant)
            await self._checks(await audit_ledgers.load_checks(self.executor, tenant), tenant)
            await self._run_check("account numbers", tenant, self._account_numbers(tenant))

    async def _checks(self, checks: Sequence[AuditCheck], tenant: Tenant | None) -> None:
        for check in checks:
            await self._run_check(check.name, tenant, self._check_rows(check, tenant))

    async def _run_check(self, name: str, tenant: Tenant | None, work: Awaitable[None]) -> None:
        slug = None if tenant is None else tenant.slug
        self.audit.checks += 1
        try:
            await work
        except Busy:
            self.audit.unfinished.append((slug, name))
        except StatementFailed as error:
            wrong = BrokenRow("–", f"cannot be looked at: {error}")
            self.audit.findings.append(AuditFinding(slug, name, CheckOutcome(1, [wrong])))

    async def _check_rows(self, check: AuditCheck, tenant: Tenant | None) -> None:
        found = await run_check(self.executor, check, tenant, self.most)
        self._add_finding(check.name, tenant, found, warns=check.warns)

    async def _structure(self, tenant: Tenant | None) -> bool:
        """Hold a schema against the migrations; whether it is one whose rows can be looked at."""
        fits: list[bool] = []

        async def compare() -> None:
            schema = await load_schema(self.executor, tenant)
            schema_mismatch = schema.schema_mismatch()
            fits.append(schema_mismatch is None)
            if schema_mismatch is not None:
                self._add_finding(
                    "schema", tenant, CheckOutcome(1, [BrokenRow("–", schema_mismatch)])
                )
                return
            differences = [*schema.differences()]
            for ours in (True, False):
                rows = [each.wrong for each in differences if each.ours is ours]
                self._add_finding(
                    "schema", tenant, CheckOutcome(len(rows), rows[: self.most]), warns=not ours
                )

        await self._run_check("schema", tenant, compare())
        return fits == [True]

    async def _shop_tables(self, tenant: Tenant) -> None:
        """Hold the shop's own tables against what they were when they were adopted."""
        rows = [
            BrokenRow("orders, order_items", " ".join((each.what, *each.statements)))
            for each in await shop_changes.table_changes(self.executor, tenant)
        ]
        self._add_finding("shop tables", tenant, CheckOutcome(len(rows), rows[: self.most]))

    async def _account_numbers(self, tenant: Tenant) -> None:
        found = await account_numbers.unreachable_accounts(self.executor, tenant, self.most)
        self._add_finding("account numbers", tenant, found, warns=True)

    def _add_finding(
        self, name: str, tenant: Tenant | None, found: CheckOutcome, *, warns: bool = False
    ) -> None:
        if found.total:
            slug = None if tenant is None else tenant.slug
            self.audit.findings.append(AuditFinding(slug, name, found, warns))


async def load_schema(executor: Querier, tenant: Tenant | None) -> structure.Schema:
    """A schema as it is; the main one for None."""
    name = MAIN if tenant is None else tenant.schema
    shop = "" if tenant is None else name_suffix(tenant)
    return structure.Schema(
        await audit_structure.schema_objects(executor, name, shop),
        await audit_structure.applied_migrations(executor, name),
        tenant,
    )
