"""`posctl demo`: everything at once, without anything but this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

import click
from attrs import define, field

from posd.cli.demo_run import DeliveredOrder, DemoRun, Road
from posd.cli.demo_server import TENANT, TILL, DemoServer, demo_server
from posd.cli.event_lines import event_line
from posd.cli.failures import CommandFailure
from posd.cli.output import as_json, print_json
from posd.cli.reactor import run
from posd.testing.binaries import NoServer
from posd.testing.daemon import DaemonFailed
from posd.testing.server import ServerFailed

SAMPLE: Final = '{"type":"new_order","data":{"orderId":"A-2","totalAmount":12.50}}'


@click.command()
@click.option(
    "--once", is_flag=True, help="One order by SQL, one by REST, the time each took, and the end."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Where posd listens; without it 9010 if that is free, or else any.",
)
@click.option(
    "--host",
    metavar="ADDRESS",
    help="An address of this machine, or its name, by which tablets reach it: posd listens there too.",
)
@click.option(
    "--dir",
    "link",
    type=click.Path(path_type=Path),
    metavar="NAME",
    help="Make this a link to the folder with keys, certificates and configuration.",
)
@as_json
def demo(once: bool, port: int | None, host: str | None, link: Path | None, as_json: bool) -> None:
    """Try all of posd on this machine, with nothing prepared.

    Starts a PostgreSQL in a temporary folder, makes the schemas, a tenant, keys, an authority and
    its certificate, starts the daemon with TLS, connects a till to it, places an order every few
    seconds, and shows the commands with which to take part. Ctrl-C ends it and leaves nothing.

    posd listens on 127.0.0.1, and at no other address without --host. A posd that is killed is started
    again on the same database, so that a till can be tried in an accident.

    With --json the first line has the addresses and keys, and each order is a line of its own.

    \b
    Examples:
        posctl demo
        posctl demo --once
        posctl demo --dir demo --host 192.168.1.20
    """
    try:
        with demo_server(port, host, link, _print_step) as built:
            _perform(built, once, as_json)
    except NoServer as error:
        raise CommandFailure(str(error), os.EX_UNAVAILABLE) from error
    except (ServerFailed, DaemonFailed) as error:
        raise CommandFailure(str(error), os.EX_SOFTWARE) from error


def _perform(built: DemoServer, once: bool, as_json: bool) -> None:
    screen = DemoScreen(as_json, once)
    try:
        if not once:
            _print_instructions(built, as_json)
        run(lambda reactor: DemoRun(reactor, built, _print_step).perform(screen.show, once=once))
    except KeyboardInterrupt:
        # How a demonstration ends, unless it is the short one.
        if once:
            raise
    if once:
        screen.conclude()
    else:
        click.echo(f"Orders that have reached the till: {screen.count}.", err=True)


@define(eq=False)
class DemoScreen:
    """Shows each order that has arrived, or the times at the end."""

    _as_json: bool
    _once: bool
    count: int = 0
    _times: dict[Road, DeliveredOrder] = field(factory=dict)

    def show(self, delivery: DeliveredOrder) -> None:
        """An order has arrived."""
        self.count += 1
        self._times[delivery.road] = delivery
        if self._once:
            return
        if self._as_json:
            print_json({"road": delivery.road.lower(), **_shape(delivery)})
        else:
            click.echo(f"{event_line(delivery.event)}  {_measured(delivery)}")

    def conclude(self) -> None:
        """Print how long the last order of each road took."""
        if self._as_json:
            print_json({road.lower(): _shape(each) for road, each in self._times.items()})
            return
        for delivery in self._times.values():
            click.echo(_measured(delivery))


def _shape(delivery: DeliveredOrder) -> dict[str, object]:
    return {"id": delivery.event.id, "milliseconds": round(delivery.milliseconds, 3)}


def _measured(delivery: DeliveredOrder) -> str:
    return f"{delivery.road} → till {delivery.milliseconds:.1f} ms"


def _print_step(text: str) -> None:
    click.echo(f"  {text}", err=True)


def _print_instructions(built: DemoServer, as_json: bool) -> None:
    """Print what is needed to take part; the commands can be pasted as they are."""
    if as_json:
        print_json(
            {
                "url": built.url,
                "tenant": TENANT,
                "device": TILL,
                "ca": str(built.ca),
                "config": str(built.config),
                "pidFile": str(built.pid_file),
                "dsn": built.dsn,
                "keys": {holder: built.keys[holder] for holder in ("till", "platform", "admin")},
            }
        )
        return
    program = "posctl" if shutil.which("posctl") else f"{shlex.quote(sys.executable)} -m posd.cli"
    ca, config, pid, till, platform = (
        shlex.quote(str(path))
        for path in (
            *(built.ca, built.config, built.pid_file),
            *(built.key_file("till"), built.key_file("platform")),
        )
    )
    click.echo(f"""
posd runs, and its till in here gets an order every few seconds. In another terminal,

be a till:
    {program} listen --url {built.url} --tenant {TENANT} --ca {ca} --key-file {till}

be a shop that writes its orders by SQL:
    psql "{built.dsn}" \\
        -c "INSERT INTO dinedesk_{TENANT}.orders (order_number, total_amount) VALUES ('A-1', 9.50)"

be a web shop:
    curl --cacert {ca} -H "Authorization: Bearer $(cat {platform})" \\
        -H "Content-Type: application/json" -d '{SAMPLE}' {built.rest_url}/api/{TENANT}/events

be the operator:
    {program} --config {config} status --tenant {TENANT}

be an accident, after which posd is started again:
    kill -9 $(cat {pid})

Ctrl-C ends it and leaves nothing behind.
""")
