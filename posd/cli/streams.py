"""`posctl stream`: the history that positions are counted in."""

from __future__ import annotations

import os

import click

from posd.cli import database
from posd.cli.database import BlockingExecutor
from posd.cli.failures import CommandFailure
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, print_json
from posd.cli.parameters import POSITION, SLUG
from posd.cli.tenants import find_tenant
from posd.store import epochs, tenants
from posd.store import stream as streams
from posd.values import Seq, Tenant


@click.group()
def stream() -> None:
    """Declare a history over.

    A position means something only within the history that it was counted in.
    """


@stream.command()
@click.option("--tenant", "slug", type=SLUG, help="Only this shop's stream; without it, all.")
@click.option(
    "--common-up-to",
    "common",
    type=POSITION,
    metavar="N",
    help="The events up to N are as the tills have them; needs --tenant.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@pass_installation
def reset(
    installation: Installation, slug: str | None, common: int | None, yes: bool, as_json: bool
) -> None:
    """Give streams a new name after events were lost.

    posd does it by itself when a standby was promoted or a dump was loaded. It cannot see that the
    data folder of PostgreSQL was put back while posd was stopped: then positions that tills remember
    may be taken again, by other events.

    Tills that use positions are disconnected within seconds, come back, reload their open orders and
    go on from the head. Nothing is deleted.

    If you know the last event that the backup had, name it with --common-up-to: a till that has no
    later event goes on from its position and does not reload. If a till has one, and N is too high,
    that till never gets the events that now have those positions: leave the option out when in doubt.

    \b
    Examples:
        posctl stream reset
        posctl stream reset --tenant kitchen --yes
        posctl stream reset --tenant kitchen --common-up-to 1041
    """
    if common is not None and slug is None:
        raise click.UsageError("--common-up-to needs --tenant: each stream has its own positions.")
    with database.open_executor(installation.dsn()) as executor:
        if slug is None:
            everyone = database.run_to_completion(tenants.list_tenants(executor))
            chosen = [each.tenant for each in everyone]
        else:
            chosen = [find_tenant(executor, slug)]
        if common is not None:
            _check(executor, chosen[0], common)
        if not yes:
            whose = "every tenant" if slug is None else slug
            which = "" if common is None else f" that have had an event after {common}"
            click.confirm(
                f"Will all tills of {whose}{which} reload their orders?", abort=True, err=True
            )
        database.run_to_completion(
            epochs.reset_streams(executor, [tenant.id for tenant in chosen], common or 0)
        )
    if as_json:
        print_json({"reset": [tenant.slug for tenant in chosen]})
    else:
        click.echo(f"Streams with a new name: {', '.join(each.slug for each in chosen) or 'none'}.")


def _check(executor: BlockingExecutor, tenant: Tenant, common: Seq) -> None:
    last = database.run_to_completion(streams.load_heads(executor, [tenant.id]))[tenant.id].last_seq
    if common > last:
        raise CommandFailure(f"the last event of {tenant.slug} is {last}", os.EX_DATAERR)
