"""Whether this posd can do its job, if not, what is missing, and what it does without."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import field, frozen

from posd.database import migrations
from posd.database.pool import Database
from posd.errors import SchemaError, StatementFailed
from posd.store import tenants


@frozen
class Health:
    """The parts that have to be there, and those that can be done without: each a question that tells."""

    parts: Mapping[str, Callable[[], bool]]
    spares: Mapping[str, Callable[[], bool]] = field(factory=dict)

    def missing(self) -> list[str]:
        """The names of the parts that are not there now."""
        return [name for name, there in self.parts.items() if not there()]

    def degraded(self) -> list[str]:
        """What is not there and is done without, slower or less well."""
        return [name for name, there in self.spares.items() if not there()]


async def check_schema(database: Database) -> None:
    """Raise `SchemaError`, naming the file, if the main schema is not what this posd needs.

    Waits for the database first: without posd's role no connection to it can be used.
    """
    try:
        await database.when_up()
        applied = await tenants.applied(database, migrations.MAIN)
    except StatementFailed as error:
        raise SchemaError(
            f"the database was not set up for posd ({error}): run `posctl bootstrap`"
        ) from error
    verdict = migrations.misfit(applied, migrations.expected()["main"])
    if verdict is not None:
        raise SchemaError(verdict)
