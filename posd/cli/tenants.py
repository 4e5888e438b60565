"""`posctl tenant`: the shops."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Final

import click

from posd.cli import database
from posd.cli.failures import Failure
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, print_json, print_table
from posd.cli.parameters import CURRENCY, SLUG, TIMEZONE
from posd.config.types import suggestion
from posd.database import migrations
from posd.database import provisioning as provision
from posd.database.link import Reader
from posd.store import tenants
from posd.values import Tenant

_SET_ACTIVE: Final = """
    UPDATE dinedesk_main.tenants SET is_active = %s WHERE slug = %s RETURNING id
"""


@click.group()
def tenant() -> None:
    """Add, list, disable and enable shops.

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
@as_json
@pass_installation
def add(
    installation: Installation, slug: str, name: str, currency: str, timezone: str, as_json: bool
) -> None:
    """Add a shop.

    SLUG is its name in URLs: small letters, digits and hyphens. The schema is dinedesk_SLUG; tables
    `orders` and `order_items` that exist in it already stay as they are, see `posctl adopt`. A
    daemon that is running notices the new tenant by itself.

    \b
    Examples:
        posctl tenant add kitchen --name "The Kitchen"
        posctl tenant add le-bistro --name "Le Bistro" --currency EUR --timezone Europe/Paris
    """
    with closing(migrations.connect(installation.admin_dsn())) as connection:
        added = provision.add_tenant(connection, slug, name, currency=currency, timezone=timezone)
    if as_json:
        print_json(_shape(added))
        return
    click.echo(f"Tenant {slug} has the schema {added.schema}. A key for its first till:")
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
    with database.session(installation.dsn()) as session:
        everyone = _everyone(session)
    if as_json:
        print_json([_shape(each.tenant) | {"active": each.is_active} for each in everyone])
        return
    print_table(
        ("slug", "name", "schema", "currency", "time zone", "active"),
        [
            (
                each.tenant.slug,
                each.tenant.name,
                each.tenant.schema,
                each.tenant.currency,
                each.tenant.timezone,
                "yes" if each.is_active else "no",
            )
            for each in everyone
        ],
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


def known(session: Reader, slug: str) -> Tenant:
    """The tenant of this slug; a `Failure` that names the nearest one if there is none."""
    everyone = {each.tenant.slug: each.tenant for each in _everyone(session)}
    if slug in everyone:
        return everyone[slug]
    meant = suggestion(slug, everyone)
    raise Failure(f"there is no tenant {slug!r}" + (f": {meant}" if meant else ""), os.EX_DATAERR)


def _everyone(session: Reader) -> list[tenants.Listed]:
    return database.complete(tenants.everyone(session))


def _set_active(installation: Installation, slug: str, active: bool, as_json: bool) -> None:
    with (
        closing(migrations.connect(installation.admin_dsn())) as connection,
        migrations.administration(connection),
        connection.cursor() as cursor,
    ):
        migrations.check_main(connection)
        cursor.execute(_SET_ACTIVE, (active, slug))
        if cursor.fetchone() is None:
            known(database.BlockingSession(connection), slug)
    if as_json:
        print_json({"tenant": slug, "active": active})
    else:
        click.echo(f"Tenant {slug} is {'enabled' if active else 'disabled'}.")


def _shape(tenant: Tenant) -> dict[str, object]:
    """A tenant as programs read it."""
    return {
        "id": tenant.id,
        "slug": tenant.slug,
        "name": tenant.name,
        "schema": tenant.schema,
        "currency": tenant.currency,
        "timezone": tenant.timezone,
    }
