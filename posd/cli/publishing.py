"""`posctl publish`: publish one event, with a sequencer in this process."""

from __future__ import annotations

import os
from typing import BinaryIO, Final
from uuid import uuid4

import click
from attrs import asdict
from twisted.internet import defer

from posd.cli import database
from posd.cli.failures import CommandFailure
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, print_json, warn
from posd.cli.parameters import SLUG
from posd.cli.reactor import CommandReactor, run
from posd.cli.tenants import find_tenant
from posd.database.reconnecting import ReconnectingConnection
from posd.database.shop_readers import ShopReaders
from posd.events import normalise
from posd.events.timezones import zone
from posd.files import MAX_SIZE
from posd.protocol import jsontext
from posd.publishing.sequencer import Publication, PublicationResult, Sequencer

_CONNECT_SECONDS: Final = 10.0
_STATEMENT_SECONDS: Final = 5.0


@click.command()
@click.option("--tenant", "slug", type=SLUG, required=True, help="The shop.")
@click.option("--type", "kind", required=True, help="The type of the event, such as new_order.")
@click.option(
    "--data",
    type=click.File("rb"),
    required=True,
    help="A file with the data of the event, a JSON object; - for standard input.",
)
@as_json
@pass_installation
def publish(
    installation: Installation, slug: str, kind: str, data: BinaryIO, as_json: bool
) -> None:
    """Publish an event to the tills of a shop.

    As with POST /api/{tenant}/events, posd normalises the data, and numbers and stores the event in one
    transaction. Connected tills receive it at once, other tills when they reconnect. The command prints
    the position of the event. An order without a change since its last event is not published again
    and gets no position. Values that posd repaired or could not read are reported on standard error.

    \b
    Examples:
        posctl publish --tenant kitchen --type new_order --data order.json
        echo '{"message":"Closing early"}' | posctl publish --tenant kitchen --type notice --data -
    """
    written = data.read(MAX_SIZE + 1)
    if len(written) > MAX_SIZE:
        raise CommandFailure(
            f"{data.name}: the file is longer than {MAX_SIZE} bytes", os.EX_DATAERR
        )
    content = jsontext.decode(written)
    with database.open_executor(installation.dsn()) as executor:
        tenant = find_tenant(executor, slug)
    repaired = jsontext.needs_repair(written)
    draft = normalise.draft(kind, content, zone=zone(tenant.timezone), repaired=repaired)
    publication = Publication(tenant.id, [draft])
    published = run(lambda reactor: _publish(reactor, installation, publication))
    (seq,) = published.ids
    for each in draft.warnings:
        warn(f"{each.member} ({each.code}): {each.message}")
    if as_json:
        warnings = [asdict(each) for each in draft.warnings]
        print_json({"id": seq, **({"warnings": warnings} if warnings else {})})
    elif seq is None:
        click.echo("Not published: the order has not changed since its last event.")
    else:
        click.echo(f"Published as event {seq} of {slug}.")


async def _publish(
    reactor: CommandReactor, installation: Installation, publication: Publication
) -> PublicationResult:
    connection = await _connect(reactor, installation.dsn())
    sequencer = Sequencer(
        reactor,
        connection,
        # Not started: this sequencer does not read the outbox.
        ShopReaders(reactor, installation.dsn()),
        uuid4(),
        event_bytes=installation.event_bytes(),
        connections_here=lambda tenant_id: 0,
    )
    sequencer.startService()  # type: ignore[no-untyped-call]
    try:
        return await sequencer.publish(publication)
    finally:
        await sequencer.stopService()
        await connection.stopService()


async def _connect(reactor: CommandReactor, dsn: str) -> ReconnectingConnection:
    up: defer.Deferred[None] = defer.Deferred()

    def changed(connection: ReconnectingConnection) -> None:
        if connection.up and not up.called:
            up.callback(None)

    connection = ReconnectingConnection(
        reactor, dsn, name="posctl", statement_timeout=_STATEMENT_SECONDS, changed=changed
    )
    connection.startService()
    try:
        await up.addTimeout(_CONNECT_SECONDS, reactor)
    except defer.TimeoutError:
        await connection.stopService()
        raise CommandFailure(
            connection.trouble or "the database does not answer", os.EX_UNAVAILABLE
        ) from None
    return connection
