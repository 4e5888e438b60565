"""`posctl stream`: give a stream a new id after events were lost."""

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
    """Reset streams after events were lost.

    A position is valid only in the stream in which it was counted. A reset gives a stream a new id.
    """


@stream.command()
@click.option("--tenant", "slug", type=SLUG, help="Only the stream of this shop. Default: all.")
@click.option(
    "--common-up-to",
    "common",
    type=POSITION,
    metavar="N",
    help="The events up to N are the same as before the loss; needs --tenant.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@as_json
@pass_installation
def reset(
    installation: Installation, slug: str | None, common: int | None, yes: bool, as_json: bool
) -> None:
    """Give streams a new id after events were lost.

    posd resets streams by itself after a standby was promoted or a dump was loaded. It cannot detect
    that the data folder of PostgreSQL was restored from a backup while posd was stopped. In this case
    run the command, because new events may get positions that tills have already seen.

    posd disconnects the tills that use positions within seconds. They reconnect, reload their open
    orders and resume at the head. The command deletes nothing.

    If you know the last event in the backup, give its position with --common-up-to. A till without a
    later event then resumes at its position and does not reload. Leave the option out if you are not
    sure: if N is too high, a till with later events never receives the new events up to N.

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
            whose = "all tenants" if slug is None else slug
            which = "" if common is None else f" that have an event after {common}"
            click.confirm(
                f"Reset? All tills of {whose}{which} reload their open orders",
                abort=True,
                err=True,
            )
        database.run_to_completion(
            epochs.reset_streams(executor, [tenant.id for tenant in chosen], common or 0)
        )
    if as_json:
        print_json({"reset": [tenant.slug for tenant in chosen]})
    else:
        click.echo(f"Streams with a new id: {', '.join(each.slug for each in chosen) or 'none'}.")


def _check(executor: BlockingExecutor, tenant: Tenant, common: Seq) -> None:
    last = database.run_to_completion(streams.load_heads(executor, [tenant.id]))[tenant.id].last_seq
    if common > last:
        raise CommandFailure(f"the last event of {tenant.slug} is {last}", os.EX_DATAERR)
