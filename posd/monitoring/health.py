"""Whether this posd can do its job, if not, what is missing, and what it does without."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import field, frozen

from posd.database import migrations
from posd.database.pool import Pool
from posd.errors import SchemaError, StatementFailed
from posd.store import tenants


@frozen
class Health:
    """The parts that have to be there, and those that can be done without: each a question that tells."""

    required: Mapping[str, Callable[[], bool]]
    optional: Mapping[str, Callable[[], bool]] = field(factory=dict)

    def missing(self) -> list[str]:
        """The names of the parts that are not there now."""
        return [name for name, is_up in self.required.items() if not is_up()]

    def degraded(self) -> list[str]:
        """What is not there and is done without, slower or less well."""
        return [name for name, is_up in self.optional.items() if not is_up()]


async def check_schema(database: Pool) -> None:
    """Raise `SchemaError`, naming the file, if the main schema is not what this posd needs.

    Waits for the database first: without posd's role no connection to it can be used.
    """
    try:
        await database.when_up()
        applied = await tenants.applied_migrations(database, migrations.MAIN)
    except StatementFailed as error:
        raise SchemaError(
            f"the database was not set up for posd ({error}): run `posctl bootstrap`"
        ) from error
    verdict = migrations.version_mismatch(applied, migrations.expected_files()["main"])
    if verdict is not None:
        raise SchemaError(verdict)
