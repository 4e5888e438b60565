"""`posctl adopt`: install the hooks on the existing order tables of a shop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import click

from posd.cli.failures import CommandFailure
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, counted, print_json, printable, warn
from posd.cli.parameters import SLUG
from posd.database import adopting, migrations
from posd.database.adopting import ShopTablesSurvey
from posd.database.adoption_rules import AdoptionOptions, AdoptionRefused, TableFinding
from posd.database.shop_tables import TIMES, ShopTable
from posd.errors import SchemaBusy, SchemaError
from posd.events.timezones import zone

_MAX_STATUSES = 12


@click.command()
@click.argument("slug", type=SLUG)
@click.option(
    "--where",
    "condition",
    metavar="CONDITION",
    help="Publish only the orders that meet this SQL condition on the columns of `orders`. ''"
    " publishes all orders.",
)
@click.option(
    "--timestamps",
    type=click.Choice(["local", "utc"]),
    help="The time zone of timestamps without a time zone: the shop's, or UTC.",
)
@click.option(
    "--unique-ids/--no-unique-ids",
    default=None,
    help="State that ids of orders are unique although the table has no such constraint.",
)
@click.option("--dry-run", is_flag=True, help="Show the findings, and change nothing.")
@as_json
@pass_installation
def adopt(
    installation: Installation,
    slug: str,
    condition: str | None,
    timestamps: str | None,
    unique_ids: bool | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Install the hooks on a shop's existing orders.

    From then on, posd publishes every order that is written to the tables `orders` and `order_items`
    in the schema of the tenant. The command changes nothing else in the tables. It first shows what
    it found in them. If it cannot install the hooks, it prints the reasons and the SQL statements that
    remove the obstacles.

    posd stores the values of --where, --timestamps and --unique-ids for the tenant. A later
    `posctl adopt` without an option does not change its value.

    An order that does not meet the condition of --where, such as a cart, is published as soon as it
    meets the condition. After that, all changes of the order are published.

    \b
    Examples:
        posctl adopt kitchen --dry-run
        posctl adopt kitchen
        posctl adopt kitchen --timestamps utc --where "status NOT IN ('cart', 'draft')"
    """
    choices = AdoptionOptions(condition, timestamps, unique_ids)
    with closing(migrations.connect(installation.admin_dsn())) as connection:
        migrations.check_main(connection)
        try:
            found = adopting.survey(connection, slug, choices)
            if not as_json:
                _show(found)
            if found.refusals:
                raise AdoptionRefused(found.tenant, found.refusals)
            if not dry_run:
                adopting.install_hooks(connection, found)
        except SchemaBusy:
            raise
        except AdoptionRefused as error:
            code = os.EX_NOPERM if error.only_lacks_rights else os.EX_DATAERR
            raise CommandFailure(str(error), code) from error
        except SchemaError as error:
            # An error without a cause in PostgreSQL concerns the data of the tenant.
            if error.__cause__ is None:
                raise CommandFailure(str(error), os.EX_DATAERR) from error
            raise
    if as_json:
        print_json({"tenant": slug, "hooked": not dry_run, "found": _shape(found)})
    elif dry_run:
        click.echo("Nothing was changed.")
    else:
        click.echo(f"The hooks are installed on the orders of {slug}.")


def _show(found: ShopTablesSurvey) -> None:
    lines = [*_lines(found)]
    width = max(len(name) for name, _ in lines) + 2
    for name, what in lines:
        click.echo(f"{name:{width}}{printable(what)}")
    for doubt in found.doubts:
        warn(str(doubt))


def _lines(found: ShopTablesSurvey) -> Iterator[tuple[str, str]]:
    """Yield the findings as pairs of a title and a text."""
    for table in found.tables.values():
        yield table.name, _table(table)
    orders = found.tables["orders"]
    yield (
        "times",
        ", ".join(f"{each} {orders.columns[each]}" for each in TIMES if each in orders.columns),
    )
    if found.sample is None:
        yield (
            "statuses",
            "unknown: posd may not read the orders, or reading took more than 5 s",
        )
    else:
        yield "statuses", _statuses(found)
        if found.sample.newest is not None:
            yield "newest order", f"{found.sample.newest}; now it is {_clocks(found)}"
    yield "published", _published(found)


def _table(table: ShopTable) -> str:
    key = ", ".join(table.key) or "none"
    parts = [f"owner {table.owner}", f"id {table.columns['id']}", f"primary key {key}"]
    if table.partition_key is not None:
        parts.append(f"partitioned by {table.partition_key}, {counted(table.parts, 'partition')}")
    elif table.parts:
        parts.append(f"{counted(table.parts, 'inheriting table')}")
    if table.is_partition:
        parts.append("is a partition")
    if table.has_row_security:
        parts.append("row security")
    return ", ".join(parts)


def _statuses(found: ShopTablesSurvey) -> str:
    sample = found.sample
    if sample is None or not sample.statuses:
        return "no orders"
    shown = [
        f"{'null' if status is None else status} {count}"
        for status, count in [*sample.statuses.items()][:_MAX_STATUSES]
    ]
    others = len(sample.statuses) - len(shown)
    more = [counted(others, "other status", "other statuses")] if others else []
    return f"{', '.join(shown + more)} (of the newest {counted(sample.orders, 'order')})"


def _clocks(found: ShopTablesSurvey) -> str:
    now = datetime.now(UTC)
    local = now.astimezone(zone(found.tenant.timezone))
    return f"{local:%Y-%m-%d %H:%M} in {found.tenant.timezone}, {now:%H:%M} in UTC"


def _published(found: ShopTablesSurvey) -> str:
    choices, sample = found.choices, found.sample
    said = f"orders where {choices.condition}" if choices.condition else "all orders"
    if choices.condition and sample is not None and sample.orders and sample.met is not None:
        said += f" ({sample.met} of the newest {sample.orders})"
    times = {"local": "in the shop's time zone", "utc": "in UTC", None: ""}[choices.timestamps]
    return f"{said}; timestamps without a time zone are {times}" if times else said


def _shape(found: ShopTablesSurvey) -> dict[str, object]:
    """Return the findings as the object that `--json` prints."""
    sample = found.sample
    return {
        "tables": {
            name: {
                "owner": table.owner,
                "columns": dict(table.columns),
                "primaryKey": table.key,
                "uniqueId": table.has_unique_id,
                "rowSecurity": table.has_row_security,
                "partitionKey": table.partition_key,
                "parts": table.parts,
            }
            for name, table in found.tables.items()
        },
        "statuses": None
        if sample is None
        else [{"status": status, "orders": count} for status, count in sample.statuses.items()],
        "newest": None if sample is None else sample.newest,
        "where": found.choices.condition or None,
        "timestamps": found.choices.timestamps,
        "warnings": [_warning(each) for each in found.doubts],
    }


def _warning(doubt: TableFinding) -> dict[str, object]:
    return {"what": doubt.what, "statements": doubt.statements}
