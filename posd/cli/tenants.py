"""`posctl tenant`: the shops."""

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
from posd.cli.output import as_json, print_json, print_table, warn
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
"""For one batch of rows."""
_STERLING: Final = ("GB", "GG", "IM", "JE")
_SET_ACTIVE: Final = """
    UPDATE dinedesk_main.tenants SET is_active = %s WHERE slug = %s RETURNING id
"""


@click.group()
def tenant() -> None:
    """Add, list, export, disable and enable shops, and change their region.

    A tenant is one shop: its own schema in the database, its own stream of events, its own keys.
    """


@tenant.command()
@click.argument("slug", type=SLUG)
@click.option("--name", required=True, help="What people call the shop.")
@click.option("--currency", type=CURRENCY, default="GBP", show_default=True, metavar="CODE")
@click.option(
    "--timezone",
    type=TIMEZONE,
    default="Europe/London",
    show_default=True,
    metavar="ZONE",
    help="A name of the IANA database.",
)
@click.option(
    "--region",
    type=REGION,
    metavar="CODE",
    help="Where telephone numbers without a country code are of, such as FR; without it, the country"
    " of the time zone.",
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

    SLUG is its name in URLs: small letters, digits and hyphens. The schema is dinedesk_SLUG; tables
    `orders` and `order_items` that exist in it already stay as they are, see `posctl adopt`. A
    daemon that is running notices the new tenant by itself.

    The region decides which customer a telephone number is: `07700 900123` is +447700900123 in GB.
    `posctl tenant region` changes it.

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
    click.echo(f"Tenant {slug} has the schema {added.schema}.")
    click.echo(
        f"Amounts are in {added.currency}, times of {added.timezone}, telephone numbers of"
        f" {added.default_region}."
    )
    click.echo("A key for its first till:")
    click.echo(f"    posctl key create --kind device --tenant {slug} --device POS_1")


@tenant.command("list")
@as_json
@pass_installation
def list_(installation: Installation, as_json: bool) -> None:
    """List the shops, disabled ones too.

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
    "--keep-accounts", is_flag=True, help="Change it although customers would lose their accounts."
)
@as_json
@pass_installation
def region_(
    installation: Installation, slug: str, region: str | None, keep_accounts: bool, as_json: bool
) -> None:
    """Show or change where a shop's telephone numbers are of.

    A customer's loyalty account is kept under a number with its country code. Accounts that were opened by
    numbers typed without one have the old region's, and after a change the same digits lead to another
    account. If there are such accounts they are named with the number that would count then, and
    nothing is changed, exit code 65, unless --keep-accounts is given: then the region is changed and
    the accounts stay as they are, each with its points. Where both numbers have an account, one customer
    has two.

    Each change is recorded in dinedesk_main.pos_tenant_changes.

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
            f"{len(change.accounts)} accounts would be left behind, so nothing was changed;"
            " --keep-accounts changes the region all the same",
            os.EX_DATAERR,
        )


@tenant.command()
@click.argument("slug", type=SLUG)
@as_json
@pass_installation
def disable(installation: Installation, slug: str, as_json: bool) -> None:
    """Shut a shop out.

    Its keys are valid no more and its tills are disconnected within a second; orders, events and
    keys stay where they are until `posctl tenant enable`.

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
    """Let a disabled shop in again.

    \b
    Example:
        posctl tenant enable kitchen
    """
    _set_active(installation, slug, True, as_json)


@tenant.command()
@click.argument("slug", type=SLUG)
@pass_installation
def export(installation: Installation, slug: str) -> None:
    """Write a shop's log and orders to the standard output.

    These rows are in tables of all shops, so `pg_dump --schema` of the shop's schema does not have them.
    Each line is a JSON object: `table` is pos_events, pos_unsequenced, pos_nacks, pos_orders or
    pos_order_terminals, `row` has its columns. All lines are of one moment. An exit code other than 0
    means that the output is not complete. It has customers' names, addresses and telephone numbers.

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
    """The tenant of this slug; a `CommandFailure` that names the nearest one if there is none."""
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
    """What of a new tenant may not be meant: a default beside a value that does not go with it."""

    def is_default(name: str) -> bool:
        return context.get_parameter_source(name) is ParameterSource.DEFAULT

    region = added.default_region
    if is_default("currency") and region not in _STERLING:
        yield f"the currency is GBP, the default, and the region is {region}; see --currency"
    if is_default("timezone") and (added.currency != "GBP" or region not in _STERLING):
        given = f"currency {added.currency}, region {region}"
        yield f"the time zone is Europe/London, the default, with {given}; see --timezone"
    if context.params["region"] is None and region_of(added.timezone) is None:
        yield f"the time zone {added.timezone} is of no country, so the region is {region}; see --region"


def _show_region(slug: str, change: RegionChange) -> None:
    if change.accounts:
        print_table(
            ("account", f"typed in {change.after}", ""),
            [
                (each.phone, each.elsewhere, "has an account too" if each.merges else None)
                for each in change.accounts
            ],
        )
    if change.is_made:
        click.echo(
            f"Telephone numbers of {slug} are of {change.after} now, not of {change.before}."
        )
    elif change.after == change.before:
        click.echo(f"Telephone numbers of {slug} are of {change.before}.")


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
    """A tenant as programs read it."""
    return {
        "id": tenant.id,
        "slug": tenant.slug,
        "name": tenant.name,
        "schema": tenant.schema,
        "currency": tenant.currency,
        "timezone": tenant.timezone,
        "defaultRegion": tenant.default_region,
    }
