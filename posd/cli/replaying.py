"""`posctl replay`: move the cursor of a terminal back, so that it receives events again."""

from __future__ import annotations

import os
from datetime import datetime

import click

from posd.cli import database
from posd.cli.database import BlockingExecutor, run_to_completion
from posd.cli.failures import CommandFailure
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, counted, print_json
from posd.cli.parameters import MOMENT, POSITION, SLUG
from posd.cli.tenants import find_tenant
from posd.events.timezones import zone
from posd.store import replay as store
from posd.store import retention
from posd.store.replay import TerminalPosition
from posd.values import Seq, Tenant


@click.command()
@click.option("--tenant", "slug", type=SLUG, required=True, help="The shop.")
@click.option("--device", required=True, metavar="ID", help="The device id of the terminal.")
@click.option(
    "--from",
    "first",
    type=click.IntRange(1, POSITION.max),
    metavar="POSITION",
    help="The position of the first event to send again.",
)
@click.option(
    "--since",
    type=MOMENT,
    metavar="TIME",
    help="Send the events since this time again: 2026-11-25T18:30 in the time zone of the shop, or 90m"
    " before now.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
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
    """Send acknowledged events to a terminal again.

    Use this command for a till that has lost its data. The cursor of the terminal moves back at its
    next connection. If the till is connected, posd disconnects it within seconds, and it reconnects.
    It receives the same events with the same positions in the same order. It ignores events whose ids it
    still has, and may print the other orders again. The command does not affect other tills, or the
    count of undelivered events.

    A till that names a position when it connects resumes there, regardless of its cursor. Delete this
    position at the till first. An acknowledgement at another node in the last half second may move the
    cursor forward again: check with `posctl status`, and repeat the command if necessary. A till that
    never acknowledges has no cursor; it fetches its open orders instead.

    \b
    Examples:
        posctl replay --tenant kitchen --device POS_1 --since 2h
        posctl replay --tenant kitchen --device POS_1 --from 1042 --yes --json
    """
    if (first is None) == (since is None):
        raise click.UsageError("Give either --from or --since.")
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
            many = f"{counted(events, 'event')}, of these {counted(orders, 'new order')}"
            click.confirm(
                f"Send the events {first} to {acked} to {device} of {slug} again ({many})?",
                abort=True,
                err=True,
            )
        if not run_to_completion(
            store.request_replay(executor, tenant, device, place.stream_id, first - 1)
        ):
            raise CommandFailure(
                "the stream was reset meanwhile, and nothing was changed; run the command again",
                os.EX_TEMPFAIL,
            )
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
    when = "within seconds" if place.connected else "when it connects"
    click.echo(f"{device} receives the events from {first} on again {when}.")


def _terminal_position(executor: BlockingExecutor, tenant: Tenant, device: str) -> TerminalPosition:
    place = run_to_completion(store.terminal_position(executor, tenant, device))
    if place is None:
        names = ", ".join(run_to_completion(store.device_ids(executor, tenant))) or "none"
        raise CommandFailure(
            f"{tenant.slug} has no terminal {device!r}; its terminals: {names}", os.EX_DATAERR
        )
    if place.legacy or place.acked is None:
        raise CommandFailure(
            f"{device} never acknowledges, so nothing can be sent again; it fetches its open orders",
            os.EX_DATAERR,
        )
    return place


def _check(place: TerminalPosition, device: str, first: Seq) -> None:
    if first <= place.pruned_seq:
        raise CommandFailure(f"events up to {place.pruned_seq} have been deleted", os.EX_DATAERR)
    if first > place.last_seq:
        raise CommandFailure(f"the last event is {place.last_seq}", os.EX_DATAERR)
    if place.acked is not None and first > place.acked:
        raise CommandFailure(
            f"{device} has acknowledged only up to {place.acked} and receives later events anyway",
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
            f"some events since then have been deleted; the first one left is {first}",
            os.EX_DATAERR,
        )
    return first


def _moment(executor: BlockingExecutor, since: datetime | float, tenant: Tenant) -> datetime:
    if isinstance(since, float):
        return run_to_completion(retention.cutoff_time(executor, since))
    return since if since.tzinfo else since.replace(tzinfo=zone(tenant.timezone))
