"""`posctl stream`: the history that positions are counted in."""

from __future__ import annotations

import click

from posd.cli import database
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, print_json
from posd.cli.parameters import SLUG
from posd.cli.tenants import known
from posd.store import stream as streams
from posd.store import tenants


@click.group()
def stream() -> None:
    """Declare a history over.

    A position means something only within the history that it was counted in.
    """


@stream.command()
@click.option("--tenant", "slug", type=SLUG, help="Only this shop's stream; without it, all.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@pass_installation
def reset(installation: Installation, slug: str | None, yes: bool, as_json: bool) -> None:
    """Give streams a new name after commits were lost.

    Needed when a standby took over without the last commits, or a backup was put back in a way that
    posd cannot see: positions that tills remember may then be taken again, by other events. Tills
    that are connected are disconnected within seconds; each till reloads its open orders when it
    comes back, and goes on from the head. Nothing is deleted.

    \b
    Examples:
        posctl stream reset
        posctl stream reset --tenant kitchen --yes
    """
    with database.session(installation.dsn()) as session:
        if slug is None:
            everyone = database.complete(tenants.everyone(session))
            chosen = [each.tenant for each in everyone]
        else:
            chosen = [known(session, slug)]
        if not yes:
            whose = "every tenant" if slug is None else slug
            click.confirm(f"Will all tills of {whose} reload their orders?", abort=True, err=True)
        database.complete(streams.reset(session, [tenant.id for tenant in chosen]))
    if as_json:
        print_json({"reset": [tenant.slug for tenant in chosen]})
    else:
        click.echo(f"Streams with a new name: {', '.join(each.slug for each in chosen) or 'none'}.")
