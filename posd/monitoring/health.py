"""The health of a node: required and optional conditions, and the check of the schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import field, frozen

from posd.database import migrations
from posd.database.pool import Pool
from posd.errors import SchemaError, StatementFailed
from posd.store import tenants


@frozen
class Health:
    """The conditions of a node by name. The node is ready if all required conditions are true."""

    required: Mapping[str, Callable[[], bool]]
    optional: Mapping[str, Callable[[], bool]] = field(factory=dict)

    def missing(self) -> list[str]:
        """Return the names of the required conditions that are false now."""
        return [name for name, is_up in self.required.items() if not is_up()]

    def degraded(self) -> list[str]:
        """Return the names of the optional conditions that are false now. The node works, but less well."""
        return [name for name, is_up in self.optional.items() if not is_up()]


async def check_schema(database: Pool) -> None:
    """Raise `SchemaError` if the main schema does not have the version of this posd.

    The error names the file of the migration. Waits first until the database can be reached.
    """
    try:
        await database.when_up()
        applied = await tenants.applied_migrations(database, migrations.MAIN)
    except StatementFailed as error:
        raise SchemaError(
            f"the database is not set up for posd ({error}): run `posctl bootstrap`"
        ) from error
    verdict = migrations.version_mismatch(applied, migrations.expected_files()["main"])
    if verdict is not None:
        raise SchemaError(verdict)
