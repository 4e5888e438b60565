"""Write `sql/structure.json`: the objects that the migrations create in an empty database.

    python -m tests.structure

Run it after a change in `sql/`; otherwise `tests.maintenance.test_schema_diff` fails. PostgreSQL 15 and 18
give the same result.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Final

from posd.cli.database import BlockingExecutor, run_to_completion
from posd.database import migrations
from posd.maintenance import audit
from posd.maintenance import schema_diff as structure
from posd.testing.postgres import test_server
from posd.values import Tenant
from tests.cli_runner import migrated_database

FILE: Final = Path(__file__).parent.parent / "sql/structure.json"
KITCHEN: Final = Tenant(1, "kitchen", "The Kitchen", "dinedesk_kitchen")


def describe_database(dsn: str) -> dict[str, dict[str, str]]:
    """Return the structure of a database with the tenant `kitchen`."""
    with closing(migrations.connect(dsn)) as connection:
        executor = BlockingExecutor(connection)
        return {
            kind: {
                structure.object_label(each): each.made
                for each in run_to_completion(audit.load_schema(executor, tenant)).things
                if each.kind != "source"
            }
            for kind, tenant in (("main", None), ("tenant", KITCHEN))
        }


def structure_text(found: dict[str, dict[str, str]]) -> str:
    """Return the text of the file: a line for each object."""
    return json.dumps(found, indent=0, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    database = migrated_database()
    FILE.write_text(structure_text(describe_database(database)), "utf-8")
    test_server().drop_database(database)
