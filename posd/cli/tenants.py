"""`posctl tenant`: add, list, change and export tenants."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import click
from click.core import ParameterSource

from posd.cli import database
from posd.cli.failures import CommandFailure
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, counted, print_json, print_table, warn
from posd.cli.parameters import CURRENCY, REGION, SLUG, TIMEZONE
from posd.config.types import suggestion
from posd.database import migrations, regions
from posd.database import provisioning as provision
from posd.database.reconnecting import Querier
from posd.database.regions import RegionChange
from posd.events.regions import region_of
from posd.store import export as rows_of
from posd.store import tenants
from posd.values import Tenant

_EXPORT_SECONDS: Final = 60.0
"""The statement timeout: seconds for one batch of rows."""
_STERLING: Final = ("GB", "GG", "IM", "JE")
_SET_ACTIVE: Final = """
    UPDATE dinedesk_main.tenants SET is_active = %s WHERE slug = %s RETURNING id
"""


@click.group()
def tenant() -> None:
    """Add, list, export, disable and enable shops, and change their region.

    A tenant is one shop. It has a schema in the database, a stream of events, and keys.
    """


@tenant.command()
@click.argument("slug", type=SLUG)
@click.option("--name", required=True, help="The name of the shop, for people.")
@click.option("--currency", type=CURRENCY, default="GBP", show_default=True, metavar="CODE")
@click.option(
    "--timezone",
    type=TIMEZONE,
    default="Europe/London",
    show_default=True,
    metavar="ZONE",
    help="A name of the IANA time zone database.",
)
@click.option(
    "--region",
    type=REGION,
    metavar="CODE",
    help="The country of telephone numbers without a country code, such as FR. Default: the country of"
    " the time zone.",
)
@as_json
@pass_installation
@click.pass_context
def add(
    context: click.Context,
    installation: Installation,
    slug: str,
    name: str,
    currency: str,
    timezone: str,
    region: str | None,
    as_json: bool,
) -> None:
    """Add a shop.

    SLUG names the shop in URLs: small letters, digits and hyphens. The command creates the schema
    dinedesk_SLUG. If this schema already has tables `orders` and `order_items`, the command does not
    change them; see `posctl adopt`. A running daemon serves the new tenant without a restart.

    The region completes telephone numbers: in GB, `07700 900123` is +447700900123. `posctl tenant
    region` changes it.

    \b
    Examples:
        posctl tenant add kitchen --name "The Kitchen"
        posctl tenant add le-bistro --name "Le Bistro" --currency EUR --timezone Europe/Paris
    """
    with closing(migrations.connect(installation.admin_dsn())) as connection:
        added = provision.add_tenant(
            connection, slug, name, currency=currency, timezone=timezone, region=region
        )
    for doubt in _warnings(context, added):
        warn(str(doubt))
    if as_json:
        print_json(_shape(added))
        return
    click.echo(f"Tenant {slug} was added, with the schema {added.schema}.")
    click.echo(
        f"Currency {added.currency}, time zone {added.timezone}, region {added.default_region} for"
        " telephone numbers."
    )
    click.echo("Next, create a key for its first till:")
    click.echo(f"    posctl key create --kind device --tenant {slug} --device POS_1")


@tenant.command("list")
@as_json
@pass_installation
def list_(installation: Installation, as_json: bool) -> None:
    """List all shops, including disabled ones.

    \b
    Examples:
        posctl tenant list
        posctl tenant list --json | jq -r '.[] | select(.active) | .slug'
    """
    with database.open_executor(installation.dsn()) as executor:
        everyone = _everyone(executor)
    if as_json:
        print_json([_shape(each.tenant) | {"active": each.is_active} for each in everyone])
        return
    print_table(
        ("slug", "name", "schema", "currency", "time zone", "region", "active"),
        [
            (
                each.tenant.slug,
                each.tenant.name,
                each.tenant.schema,
                each.tenant.currency,
                each.tenant.timezone,
                each.tenant.default_region,
                "yes" if each.is_active else "no",
            )
            for each in everyone
        ],
    )


@tenant.command("region")
@click.argument("slug", type=SLUG)
@click.argument("region", type=REGION, required=False)
@click.option(
    "--keep-accounts",
    is_flag=True,
    help="Change the region even if customers lose access to their accounts.",
)
@as_json
@pass_installation
def region_(
    installation: Installation, slug: str, region: str | None, keep_accounts: bool, as_json: bool
) -> None:
    """Show or change the region of a shop's telephone numbers.

    posd stores a loyalty account under a telephone number with a country code. If the number was typed
    without one, the region has completed it. After a change of the region, the same digits mean another
    number and so another account. If there are such accounts, the command prints them with their new
    numbers, changes nothing and exits with code 65. With --keep-accounts it changes the region and does
    not change the accounts and their points. If both numbers have an account, the customer then has
    two.

    Each change is recorded in the table dinedesk_main.pos_tenant_changes.

    \b
    Examples:
        posctl tenant region paris
        posctl tenant region paris FR
        posctl tenant region paris FR --keep-accounts
    """
    with closing(migrations.connect(installation.admin_dsn())) as connection:
        with migrations.administer(connection):
            find_tenant(database.BlockingExecutor(connection), slug)
        change = regions.change_region(connection, slug, region, keep_accounts=keep_accounts)
    if as_json:
        print_json(_region_shape(slug, change))
    else:
        _show_region(slug, change)
    if change.after != change.before and not change.is_made:
        raise CommandFailure(
            f"customers would lose access to {counted(len(change.accounts), 'account')}, so nothing"
            " was changed; --keep-accounts changes the region nevertheless",
            os.EX_DATAERR,
        )


@tenant.command()
@click.argument("slug", type=SLUG)
@as_json
@pass_installation
def disable(installation: Installation, slug: str, as_json: bool) -> None:
    """Disable a shop.

    posd refuses the keys of the shop and disconnects its tills within a second. Orders, events and
    keys are kept. `posctl tenant enable` reverses the command.

    \b
    Example:
        posctl tenant disable kitchen
    """
    _set_active(installation, slug, False, as_json)


@tenant.command()
@click.argument("slug", type=SLUG)
@as_json
@pass_installation
def enable(installation: Installation, slug: str, as_json: bool) -> None:
    """Enable a disabled shop.

    \b
    Example:
        posctl tenant enable kitchen
    """
    _set_active(installation, slug, True, as_json)


@tenant.command()
@click.argument("slug", type=SLUG)
@pass_installation
def export(installation: Installation, slug: str) -> None:
    """Write the events and orders of a shop to standard output.

    These rows are in tables that all shops share, so `pg_dump --schema` of the shop's schema does not
    write them. Each line is a JSON object: `table` is pos_events, pos_unsequenced, pos_nacks, pos_orders
    or pos_order_terminals, and `row` has the columns. All lines are of one snapshot. If the exit code is
    not 0, the output is incomplete. The output contains names, addresses and telephone numbers of
    customers.

    \b
    Examples:
        posctl tenant export kitchen | gzip > kitchen.jsonl.gz
        posctl tenant export kitchen | jq -c 'select(.table == "pos_orders").row.snapshot'
    """
    with database.open_snapshot(installation.dsn(), _EXPORT_SECONDS) as snapshot:
        exported = find_tenant(snapshot, slug)
        for table in rows_of.TABLES:
            rows, after = database.run_to_completion(rows_of.next_rows(snapshot, exported, table))
            while after is not None:
                for row in rows:
                    click.echo(row)
                rows, after = database.run_to_completion(
                    rows_of.next_rows(snapshot, exported, table, after)
                )


def find_tenant(executor: Querier, slug: str) -> Tenant:
    """Return the tenant with a slug. Raises `CommandFailure`, with a similar slug if there is one."""
    everyone = {each.tenant.slug: each.tenant for each in _everyone(executor)}
    if slug in everyone:
        return everyone[slug]
    meant = suggestion(slug, everyone)
    raise CommandFailure(
        f"there is no tenant {slug!r}" + (f": {meant}" if meant else ""), os.EX_DATAERR
    )


def _everyone(executor: Querier) -> list[tenants.ListedTenant]:
    return database.run_to_completion(tenants.list_tenants(executor))


def _set_active(installation: Installation, slug: str, active: bool, as_json: bool) -> None:
    with (
        closing(migrations.connect(installation.admin_dsn())) as connection,
        migrations.administer(connection),
        connection.cursor() as cursor,
    ):
        migrations.check_main(connection)
        cursor.execute(_SET_ACTIVE, (active, slug))
        if cursor.fetchone() is None:
            find_tenant(database.BlockingExecutor(connection), slug)
    if as_json:
        print_json({"tenant": slug, "active": active})
    else:
        click.echo(f"Tenant {slug} is {'enabled' if active else 'disabled'}.")


def _warnings(context: click.Context, added: Tenant) -> Iterator[str]:
    """Yield warnings about defaults of a new tenant that do not match the given values."""

    def is_default(name: str) -> bool:
        return context.get_parameter_source(name) is ParameterSource.DEFAULT

    region = added.default_region
    if is_default("currency") and region not in _STERLING:
        yield f"the currency is GBP by default, but the region is {region}; see --currency"
    if is_default("timezone") and (added.currency != "GBP" or region not in _STERLING):
        given = f"currency {added.currency}, region {region}"
        yield f"the time zone is Europe/London by default, but {given}; see --timezone"
    if context.params["region"] is None and region_of(added.timezone) is None:
        yield f"the time zone {added.timezone} has no country, so the region is {region}; see --region"


def _show_region(slug: str, change: RegionChange) -> None:
    if change.accounts:
        print_table(
            ("account", f"number in {change.after}", ""),
            [
                (each.phone, each.elsewhere, "also has an account" if each.merges else None)
                for each in change.accounts
            ],
        )
    if change.is_made:
        click.echo(f"The region of {slug} was changed from {change.before} to {change.after}.")
    elif change.after == change.before:
        click.echo(f"The region of {slug} is {change.before}.")


def _region_shape(slug: str, change: RegionChange) -> dict[str, object]:
    return {
        "tenant": slug,
        "before": change.before,
        "defaultRegion": change.after if change.is_made else change.before,
        "accounts": [
            {"phone": each.phone, "elsewhere": each.elsewhere, "merges": each.merges}
            for each in change.accounts
        ],
    }


def _shape(tenant: Tenant) -> dict[str, object]:
    """Return a tenant as the object that `--json` prints."""
    return {
        "id": tenant.id,
        "slug": tenant.slug,
        "name": tenant.name,
        "schema": tenant.schema,
        "currency": tenant.currency,
        "timezone": tenant.timezone,
        "defaultRegion": tenant.default_region,
    }
