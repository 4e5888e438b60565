"""`posctl demo`: a complete temporary installation on this machine."""

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
from posd.cli.output import as_json, counted, print_json
from posd.cli.reactor import run
from posd.testing.binaries import NoServer
from posd.testing.daemon import DaemonFailed
from posd.testing.server import ServerFailed

SAMPLE: Final = '{"type":"new_order","data":{"orderId":"A-2","totalAmount":12.50}}'


@click.command()
@click.option(
    "--once", is_flag=True, help="Place one order by SQL and one by REST, print the times, and end."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="The port of posd. Default: 9010 if it is free, else any free port.",
)
@click.option(
    "--host",
    metavar="ADDRESS",
    help="An address or name of this machine that tablets can reach. posd listens there too.",
)
@click.option(
    "--dir",
    "link",
    type=click.Path(path_type=Path),
    metavar="NAME",
    help="Create a link of this name to the folder of keys, certificates and configuration.",
)
@as_json
def demo(once: bool, port: int | None, host: str | None, link: Path | None, as_json: bool) -> None:
    """Try posd on this machine without an installation.

    The command starts a PostgreSQL server in a temporary folder, creates the schemas, a tenant, keys
    and certificates, starts the daemon with TLS, connects a till, and places an order every few
    seconds. It prints commands that you can use meanwhile. Ctrl-C ends it and removes everything.

    posd listens on 127.0.0.1, and with --host also at another address. If posd is killed, the command
    starts it again on the same database, so that you can see how a till recovers.

    With --json the first line has the addresses and keys, and each order is one line.

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
        # Ctrl-C is the normal end, except with --once.
        if once:
            raise
    if once:
        screen.conclude()
    else:
        click.echo(f"The till has received {counted(screen.count, 'order')}.", err=True)


@define(eq=False)
class DemoScreen:
    """Prints each order that has arrived, or with `--once` the times at the end."""

    _as_json: bool
    _once: bool
    count: int = 0
    _times: dict[Road, DeliveredOrder] = field(factory=dict)

    def show(self, delivery: DeliveredOrder) -> None:
        """Count an order that has arrived, and print it."""
        self.count += 1
        self._times[delivery.road] = delivery
        if self._once:
            return
        if self._as_json:
            print_json({"road": delivery.road.lower(), **_shape(delivery)})
        else:
            click.echo(f"{event_line(delivery.event)}  {_measured(delivery)}")

    def conclude(self) -> None:
        """Print how long the order of each way took."""
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
    """Print the addresses and keys, or commands that can be pasted into a shell."""
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
posd runs. A till in this process receives an order every few seconds. In another terminal you can

be a till:
    {program} listen --url {built.url} --tenant {TENANT} --ca {ca} --key-file {till}

be a shop that writes its orders with SQL:
    psql "{built.dsn}" \\
        -c "INSERT INTO dinedesk_{TENANT}.orders (order_number, total_amount) VALUES ('A-1', 9.50)"

be a web shop that publishes an order with REST:
    curl --cacert {ca} -H "Authorization: Bearer $(cat {platform})" \\
        -H "Content-Type: application/json" -d '{SAMPLE}' {built.rest_url}/api/{TENANT}/events

be the operator:
    {program} --config {config} status --tenant {TENANT}

kill posd, which is then started again:
    kill -9 $(cat {pid})

Ctrl-C ends the demonstration and removes its files.
""")
