"""Recompute every invariant of the database: `posctl audit`.

One session reads the main schema and then the schema of each tenant, all in one snapshot. A check that fails
to run (a table or a right is missing) is a fault. A check that reaches its time limit is reported as
unfinished.
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
    """The rows that violate one check. `tenant` is a slug, or None for the main schema."""

    tenant: str | None
    check: str
    found: CheckOutcome
    warns: bool = False


@define
class Audit:
    """The result of an audit: faults, warnings, and the checks that reached their time limit."""

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
    """Runs all checks through one session. A finding contains at most `most` rows."""

    executor: Querier
    most: int
    audit: Audit = field(factory=Audit)

    async def main(self) -> None:
        """Check the main schema."""
        await self._structure(None)
        await self._checks(audit_main.CHECKS, None)

    async def tenant(self, tenant: Tenant) -> None:
        """Check one tenant. Rows are checked only if this posd supports the version of the schema."""
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
            wrong = BrokenRow("–", f"the check failed: {error}")
            self.audit.findings.append(AuditFinding(slug, name, CheckOutcome(1, [wrong])))

    async def _check_rows(self, check: AuditCheck, tenant: Tenant | None) -> None:
        found = await run_check(self.executor, check, tenant, self.most)
        self._add_finding(check.name, tenant, found, warns=check.warns)

    async def _structure(self, tenant: Tenant | None) -> bool:
        """Compare a schema with the migrations. Return whether this posd supports its version."""
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
        """Compare the shop's own tables with their state when they were adopted."""
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
    """Read the description of a tenant's schema from the system catalog; None means the main schema."""
    name = MAIN if tenant is None else tenant.schema
    shop = "" if tenant is None else name_suffix(tenant)
    return structure.Schema(
        await audit_structure.schema_objects(executor, name, shop),
        await audit_structure.applied_migrations(executor, name),
        tenant,
    )
