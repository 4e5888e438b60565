"""`posctl status`: how the tenants and their terminals stand, on all nodes together."""

from __future__ import annotations

from collections.abc import Mapping

import click
from attrs import frozen

from posd.cli import database
from posd.cli.database import BlockingSession, complete
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, moment, print_json, print_table, printable, timestamp_or_none
from posd.cli.parameters import SLUG
from posd.cli.tenants import known
from posd.database.migrations import expected, misfit
from posd.store import doorman as leases
from posd.store import standing, tenants
from posd.store.doorman import Lease
from posd.store.standing import StreamStanding, TerminalStanding
from posd.store.tenants import Listed
from posd.values import TenantId


@frozen
class TenantStatus:
    """One tenant. `failed` is None where the tenant's schema does not fit, which `trouble` says."""

    listed: Listed
    stream: StreamStanding
    terminals: list[TerminalStanding]
    failed: int | None
    trouble: str | None


@click.command()
@click.option("--tenant", "slug", type=SLUG, help="Only this shop, with its terminals.")
@as_json
@pass_installation
def status(installation: Installation, slug: str | None, as_json: bool) -> None:
    """Show who is connected and what is not delivered.

    For each shop: its terminals that are connected, to whichever node; the position of its last
    event; how many events no terminal has acknowledged; how many of the last 24 hours have failed;
    what is published but not numbered yet, which is more than a moment's worth only while no daemon
    runs. Then the doorman: the node that takes orders out of the outbox. With --tenant also every
    terminal, and how many events it is behind.

    \b
    Examples:
        posctl status
        posctl status --tenant kitchen
        posctl status --json | jq '.tenants[] | select(.undelivered > 0) | .tenant'
    """
    with database.session(installation.dsn()) as session:
        reports = _reports(session, slug)
        doorman = complete(leases.present(session))
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
                moment(report.stream.waiting_since),
            )
            for report in reports
        ],
    )
    if slug is not None:
        _print_terminals(reports[0].terminals)
    click.echo()
    if doorman is None:
        click.echo(
            "No node is the doorman, so no orders are taken out of the outbox. Is posd running?"
        )
    else:
        click.echo(f"doorman: {printable(doorman.host)}, since {moment(doorman.since)}")
    for report in reports:
        if report.trouble is not None:
            trouble = printable(report.trouble)
            click.echo(f"{report.listed.tenant.slug} is not served: {trouble}", err=True)


def _reports(session: BlockingSession, slug: str | None) -> list[TenantStatus]:
    if slug is not None:
        known(session, slug)
    streams = complete(standing.streams(session))
    return [
        _report(session, listed, streams)
        for listed in complete(tenants.everyone(session))
        if slug in (None, listed.tenant.slug)
    ]


def _report(
    session: BlockingSession, listed: Listed, streams: Mapping[TenantId, StreamStanding]
) -> TenantStatus:
    tenant = listed.tenant
    trouble = misfit(complete(tenants.applied(session, tenant.schema)), expected()["tenant"])
    return TenantStatus(
        listed,
        streams[tenant.id],
        complete(standing.terminals(session, tenant.id)),
        None if trouble else complete(standing.failed(session, tenant)),
        trouble,
    )


def _print_terminals(terminals: list[TerminalStanding]) -> None:
    click.echo()
    print_table(
        ("terminal", "connected since", "last seen", "sent", "acknowledged", "behind"),
        [
            (
                "(no name)" if each.device_id is None else each.device_id,
                moment(each.connected_since),
                moment(each.last_seen),
                each.sent,
                "never" if each.legacy and each.device_id else each.acked,
                each.behind,
            )
            for each in terminals
        ],
    )


def _shape_of_doorman(doorman: Lease | None) -> dict[str, object] | None:
    """The doorman as programs read it; None if no node is."""
    if doorman is None:
        return None
    return {
        "nodeId": str(doorman.node_id),
        "host": doorman.host,
        "since": timestamp_or_none(doorman.since),
    }


def _name(listed: Listed) -> str:
    return listed.tenant.slug if listed.is_active else f"{listed.tenant.slug} (disabled)"


def _shape(report: TenantStatus) -> dict[str, object]:
    """A tenant as programs read it, in the words of `GET /api/{tenant}/pos-status`."""
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
