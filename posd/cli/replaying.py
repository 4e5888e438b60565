"""`posctl replay`: a till that has lost its data is sent again what it has had."""

from __future__ import annotations

import os
from datetime import datetime

import click

from posd.cli import database
from posd.cli.database import BlockingExecutor, run_to_completion
from posd.cli.failures import CommandFailure
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, print_json
from posd.cli.parameters import MOMENT, POSITION, SLUG
from posd.cli.tenants import find_tenant
from posd.events.timezones import zone
from posd.store import replay as store
from posd.store import retention
from posd.store.replay import TerminalPosition
from posd.values import Seq, Tenant


@click.command()
@click.option("--tenant", "slug", type=SLUG, required=True, help="The shop.")
@click.option("--device", required=True, metavar="ID", help="The terminal.")
@click.option(
    "--from",
    "first",
    type=click.IntRange(1, POSITION.max),
    metavar="POSITION",
    help="The first event that it is to be sent again.",
)
@click.option(
    "--since",
    type=MOMENT,
    metavar="TIME",
    help="From the first event of then on: 2026-11-25T18:30, by the shop's clock, or 90m for how"
    " long ago.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@pass_installation
def replay(
    installation: Installation,
    slug: str,
    device: str,
    first: int | None,
    since: datetime | float | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Send a terminal again what it has acknowledged.

    For a till that has lost its data. Its cursor goes back when it comes for its events the next
    time; a till that is connected is disconnected for that within seconds, and comes back by itself.
    The events are the same, under the same positions and in the same order: a till that still has
    some of them knows them by their ids, and one that has not may print orders again. Other tills
    get nothing, and what counts as delivered stays so.

    A till that names a position when it connects goes on from there, whatever its cursor: it has to
    forget that first. What it acknowledged less than half a second before, at another node than the
    one it comes back to, may take its cursor forward again: look with `posctl status`, and say it
    again. One that never acknowledges is never sent anything again; it asks for its open
    orders.

    \b
    Examples:
        posctl replay --tenant kitchen --device POS_1 --since 2h
        posctl replay --tenant kitchen --device POS_1 --from 1042 --yes --json
    """
    if (first is None) == (since is None):
        raise click.UsageError("Say from where on: either --from or --since.")
    with database.open_executor(installation.dsn()) as executor:
        tenant = find_tenant(executor, slug)
        place = _terminal_position(executor, tenant, device)
        acked = place.acked or 0
        if since is not None:
            first = _first_since(executor, tenant, place, _moment(executor, since, tenant))
        assert first is not None
        _check(place, device, first)
        events, orders = run_to_completion(store.count_between(executor, tenant, first - 1, acked))
        if not yes:
            click.confirm(
                f"Will {device} of {slug} be sent the events {first} to {acked} again,"
                f" {events} in all with {orders} new orders?",
                abort=True,
                err=True,
            )
        if not run_to_completion(
            store.request_replay(executor, tenant, device, place.stream_id, first - 1)
        ):
            raise CommandFailure("the stream has changed meanwhile: look again", os.EX_TEMPFAIL)
    if as_json:
        print_json(
            {
                "tenant": slug,
                "deviceId": device,
                "from": first,
                "to": acked,
                "events": events,
                "newOrders": orders,
                "connected": place.connected > 0,
            }
        )
        return
    when = "in some seconds" if place.connected else "when it connects"
    click.echo(f"{device} is sent the events from {first} on {when}.")


def _terminal_position(executor: BlockingExecutor, tenant: Tenant, device: str) -> TerminalPosition:
    place = run_to_completion(store.terminal_position(executor, tenant, device))
    if place is None:
        names = ", ".join(run_to_completion(store.device_ids(executor, tenant))) or "none"
        raise CommandFailure(f"{tenant.slug} has no terminal {device!r} but {names}", os.EX_DATAERR)
    if place.legacy or place.acked is None:
        raise CommandFailure(
            f"{device} has never acknowledged anything, and is sent nothing again: it asks for its"
            " open orders",
            os.EX_DATAERR,
        )
    return place


def _check(place: TerminalPosition, device: str, first: Seq) -> None:
    if first <= place.pruned_seq:
        raise CommandFailure(f"events up to {place.pruned_seq} are kept no more", os.EX_DATAERR)
    if first > place.last_seq:
        raise CommandFailure(f"the last event is {place.last_seq}", os.EX_DATAERR)
    if place.acked is not None and first > place.acked:
        raise CommandFailure(
            f"{device} has acknowledged {place.acked} and is sent what comes after that anyway",
            os.EX_DATAERR,
        )


def _first_since(
    executor: BlockingExecutor, tenant: Tenant, place: TerminalPosition, when: datetime
) -> Seq:
    first = run_to_completion(store.first_event_since(executor, tenant, when))
    if first is None:
        raise CommandFailure("there is no event since then", os.EX_DATAERR)
    if first == place.pruned_seq + 1 and place.pruned_seq > 0:
        raise CommandFailure(
            f"not all events since then are kept: the first one is {first}", os.EX_DATAERR
        )
    return first


def _moment(executor: BlockingExecutor, since: datetime | float, tenant: Tenant) -> datetime:
    if isinstance(since, float):
        return run_to_completion(retention.cutoff_time(executor, since))
    return since if since.tzinfo else since.replace(tzinfo=zone(tenant.timezone))
