"""`posctl status`: the state of tenants and terminals, on all nodes together."""

from __future__ import annotations

from collections.abc import Mapping

import click
from attrs import frozen

from posd.cli import database
from posd.cli.database import BlockingExecutor, run_to_completion
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import (
    as_json,
    local_time,
    print_json,
    print_table,
    printable,
    timestamp_or_none,
)
from posd.cli.parameters import SLUG
from posd.cli.tenants import find_tenant
from posd.database.migrations import expected_files, version_mismatch
from posd.store import doorman as leases
from posd.store import stream_status as standing
from posd.store import tenants
from posd.store.doorman import DoormanLease
from posd.store.stream_status import StreamStanding, TerminalStanding
from posd.store.tenants import ListedTenant
from posd.values import TenantId


@frozen
class TenantStatus:
    """The state of one tenant.

    `failed` is the number of failed events in 24 hours, or None if the version of the tenant's schema
    is wrong. `trouble` then says how.
    """

    listed: ListedTenant
    stream: StreamStanding
    terminals: list[TerminalStanding]
    failed: int | None
    trouble: str | None


@click.command()
@click.option("--tenant", "slug", type=SLUG, help="Show only this shop, with its terminals.")
@as_json
@pass_installation
def status(installation: Installation, slug: str | None, as_json: bool) -> None:
    """Show connected terminals and undelivered events.

    For each shop the command shows: the terminals that are connected to any node; the position of the
    last event; the events that no terminal has acknowledged; the failed events of the last 24 hours; the
    entries of the outbox that are not numbered yet, and since when. Entries wait longer than a moment
    only if no daemon runs. The last line shows the doorman, the node that reads the outbox. With
    --tenant the command also shows each terminal and how many events it is behind.

    \b
    Examples:
        posctl status
        posctl status --tenant kitchen
        posctl status --json | jq '.tenants[] | select(.undelivered > 0) | .tenant'
    """
    with database.open_executor(installation.dsn()) as executor:
        reports = _reports(executor, slug)
        doorman = run_to_completion(leases.current_lease(executor))
    if as_json:
        shapes = [_shape(report) for report in reports]
        print_json({"tenants": shapes, "doorman": _shape_of_doorman(doorman)})
        return
    print_table(
        ("tenant", "connected", "last event", "undelivered", "failed (24 h)", "waiting", "since"),
        [
            (
                _name(report.listed),
                report.stream.connected,
                report.stream.last_seq,
                report.stream.undelivered,
                report.failed,
                report.stream.waiting,
                local_time(report.stream.waiting_since),
            )
            for report in reports
        ],
    )
    if slug is not None:
        _print_terminals(reports[0].terminals)
    click.echo()
    if doorman is None:
        click.echo(
            "There is no doorman, so the outbox is not read and no orders are published by SQL."
            " Is posd running?"
        )
    else:
        click.echo(f"doorman: {printable(doorman.host)}, since {local_time(doorman.since)}")
    for report in reports:
        if report.trouble is not None:
            trouble = printable(report.trouble)
            click.echo(f"{report.listed.tenant.slug} is not served: {trouble}", err=True)


def _reports(executor: BlockingExecutor, slug: str | None) -> list[TenantStatus]:
    if slug is not None:
        find_tenant(executor, slug)
    streams = run_to_completion(standing.stream_standings(executor))
    return [
        _report(executor, listed, streams)
        for listed in run_to_completion(tenants.list_tenants(executor))
        if slug in (None, listed.tenant.slug)
    ]


def _report(
    executor: BlockingExecutor, listed: ListedTenant, streams: Mapping[TenantId, StreamStanding]
) -> TenantStatus:
    tenant = listed.tenant
    trouble = version_mismatch(
        run_to_completion(tenants.applied_migrations(executor, tenant.schema)),
        expected_files()["tenant"],
    )
    return TenantStatus(
        listed,
        streams[tenant.id],
        run_to_completion(standing.terminal_standings(executor, tenant.id)),
        None if trouble else run_to_completion(standing.count_failed(executor, tenant)),
        trouble,
    )


def _print_terminals(terminals: list[TerminalStanding]) -> None:
    click.echo()
    print_table(
        ("terminal", "connected since", "last seen", "sent", "acknowledged", "behind"),
        [
            (
                "(no device id)" if each.device_id is None else each.device_id,
                local_time(each.connected_since),
                local_time(each.last_seen),
                each.sent,
                "never" if each.legacy and each.device_id else each.acked,
                each.behind,
            )
            for each in terminals
        ],
    )


def _shape_of_doorman(doorman: DoormanLease | None) -> dict[str, object] | None:
    """Return the doorman as `--json` prints it, or None if there is none."""
    if doorman is None:
        return None
    return {
        "nodeId": str(doorman.node_id),
        "host": doorman.host,
        "since": timestamp_or_none(doorman.since),
    }


def _name(listed: ListedTenant) -> str:
    return listed.tenant.slug if listed.is_active else f"{listed.tenant.slug} (disabled)"


def _shape(report: TenantStatus) -> dict[str, object]:
    """Return a tenant as `--json` prints it, with the members of `GET /api/{tenant}/pos-status`."""
    stream = report.stream
    return {
        "tenant": report.listed.tenant.slug,
        "active": report.listed.is_active,
        "connected": stream.connected,
        "lastEventId": stream.last_seq,
        "streamId": str(stream.stream_id),
        "undelivered": stream.undelivered,
        "failed24h": report.failed,
        "waiting": stream.waiting,
        "waitingSince": timestamp_or_none(stream.waiting_since),
        "trouble": report.trouble,
        "terminals": [
            {
                "deviceId": each.device_id,
                "connectedSince": timestamp_or_none(each.connected_since),
                "lastSeen": timestamp_or_none(each.last_seen),
                "lastSentId": each.sent,
                "lastAckId": each.acked,
                "behind": each.behind,
                "legacy": each.legacy,
            }
            for each in report.terminals
        ],
    }
