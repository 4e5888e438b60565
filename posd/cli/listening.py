"""`posctl listen`: run the reference till in a terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import click
from attrs import define, frozen
from click.core import ParameterSource

from posd.cli.event_lines import event_line
from posd.cli.failures import CommandFailure
from posd.cli.output import as_json, printable
from posd.cli.parameters import POSITION, SLUG, read_secret
from posd.cli.reactor import CommandReactor, run
from posd.client import (
    Connected,
    Credentials,
    Fault,
    NextStep,
    Outcome,
    ReceivedEvent,
    Summary,
    Till,
)
from posd.errors import StartError
from posd.files import strip_secret
from posd.security.dialing import BaseUrl
from posd.values import Resync, Seq
from posd.web.http.wrong_protocol import HINTS, KnownProtocol

_REVOKED: Final = 4001
_REFUSED: Final = (401, 403)

_RESYNCS: Final = {
    Resync.RETENTION: "the next events have been deleted, because they are too old",
    Resync.RESET: "the server has a new stream",
    Resync.AHEAD: "the position is after the server's last event",
}


@frozen
class Subscription:
    """The server, the tenant and the credentials of a till."""

    url: str
    tenant: str
    key: str
    device: str | None
    ca: Path | None
    credentials: Credentials | None
    after: Seq | None
    ack: bool


@click.command()
@click.option("--url", required=True, help="The URL of posd, such as wss://HOST:9010.")
@click.option("--tenant", type=SLUG, required=True, help="The shop.")
@click.option(
    "--key",
    envvar="POSD_KEY",
    show_envvar=True,
    help="The key. Prefer --key-file, because other users of this machine can read a command line.",
)
@click.option("--key-file", type=click.File("rb"), help="A file with the key, or - for stdin.")
@click.option("--device", help="The device id of the till, for a key that has none.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A PEM file of the authorities to trust, such as ca.pem of make-cert. Default: the system's.",
)
@click.option(
    "--client-cert",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A PEM file with a client certificate, if posd requires one (tls.client_ca).",
)
@click.option(
    "--client-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A PEM file with the private key of the client certificate.",
)
@click.option(
    "--after",
    type=POSITION,
    metavar="N",
    help="Replay the events after this position first.",
)
@click.option(
    "--no-ack",
    is_flag=True,
    help="Do not acknowledge events: the cursor of the terminal stays as it is.",
)
@as_json
@click.option("--count", type=click.IntRange(1, 2**63 - 1), metavar="N", help="End after N events.")
@click.pass_context
def listen(
    context: click.Context,
    url: str,
    tenant: str,
    key: str | None,
    key_file: BinaryIO | None,
    device: str | None,
    ca: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    after: int | None,
    no_ack: bool,
    as_json: bool,
    count: int | None,
) -> None:
    """Run a till that prints events as they arrive.

    The command connects and acknowledges each event after printing it. If the connection is lost, it
    reconnects with growing pauses and resumes after its last event. Ctrl-C ends it with a summary. If
    the first connection fails because of the URL, the certificate or another kind of server, the
    command ends and prints what to do. If the server refuses connections or answers 503, the command
    tries again. With --json each event is one line, as posd sent it; all other output goes to standard
    error.

    With wss:// the server needs a certificate for HOST from a trusted authority.

    A device has one connection at a time. To watch while a till works, do not use the key or device
    id of the till: use a tenant key without --device, or a device of your own.

    \b
    Examples:
        posctl listen --url wss://pos.example.com:9010 --tenant kitchen --key-file till.key
        posctl listen --url wss://localhost:9010 --ca ca.pem --tenant kitchen --device POS_1
        posctl listen … --client-cert client-POS_1.pem --client-key client-POS_1-key.pem
        posctl listen … --after 0 --no-ack --json --count 10 | jq .data.orderNumber
    """
    subscription = Subscription(
        url,
        tenant,
        _key(context, key, key_file),
        device,
        ca,
        _credentials(context, client_cert, client_key),
        after,
        not no_ack,
    )
    screen = EventPrinter(as_json, count, partial(_hopeless, subscription))
    summary = run(lambda reactor: follow(reactor, subscription, screen))
    click.echo(_summary_text(summary), err=True)
    if screen.broken is not None:
        raise screen.broken
    failure = screen.hopeless or _failure(summary.outcome)
    if failure is not None:
        raise failure


@define(eq=False)
class EventPrinter:
    """Prints the events and connections of a till.

    `judge` returns the failure for an outcome after which no attempt can succeed, or None. Such a
    failure is stored in `hopeless`, and the till is stopped. `broken` is set if the reader of standard
    output has gone.
    """

    _as_json: bool
    _count: int | None
    _judge: Callable[[Outcome], CommandFailure | None] = lambda _: None
    stop: Callable[[], object] = lambda: None
    broken: BrokenPipeError | None = None
    hopeless: CommandFailure | None = None
    _shown: int = 0
    _is_known: bool = False
    """Whether a connection has succeeded. After that, failures count as temporary."""

    def event(self, event: ReceivedEvent) -> None:
        """Print an event. If printing fails, the event is not acknowledged and is sent again."""
        try:
            click.echo(event.text if self._as_json else event_line(event))
        except BrokenPipeError as error:
            self.broken = error
            self.stop()
            raise
        self._shown += 1
        if self._shown == self._count:
            self.stop()

    def resync(self, reason: Resync, after: Seq) -> None:
        """Print that events are missing, and why."""
        click.echo(f"{_RESYNCS[reason]}; the stream continues after {after}", err=True)

    def connected(self, greeting: Connected) -> None:
        """Print the device id, the last event, and the position that is resumed from."""
        self._is_known = True
        name = "without a device id" if greeting.device_id is None else f"as {greeting.device_id}"
        head = f"the last event is {greeting.last_event_id}"
        resumed = greeting.resumed_from
        after = "" if resumed is None else f", the events after {resumed} follow"
        click.echo(printable(f"connected {name}: {head}{after}"), err=True)

    def disconnected(self, outcome: Outcome) -> None:
        """Print why the connection ended if the till tries again, or stop a till that cannot succeed."""
        if not self._is_known:
            self.hopeless = self._judge(outcome)
        if self.hopeless is not None:
            self.stop()
        elif outcome.next_step is not NextStep.STOP:
            click.echo(printable(f"disconnected, trying again: {outcome.reason}"), err=True)


async def follow(
    reactor: CommandReactor, subscription: Subscription, screen: EventPrinter
) -> Summary:
    """Run a till until it has to stop, the printer stops it, or the reactor stops."""
    till = _till(reactor, subscription, screen)
    screen.stop = till.stopService
    finished = till.when_finished()
    reactor.addSystemEventTrigger("before", "shutdown", till.stopService)
    till.startService()
    return await finished


def _till(reactor: CommandReactor, wanted: Subscription, screen: EventPrinter) -> Till:
    try:
        return Till(
            reactor,
            wanted.url,
            wanted.tenant,
            wanted.key,
            handle=screen.event,
            device_id=wanted.device,
            ca=wanted.ca,
            credentials=wanted.credentials,
            after=wanted.after,
            ack=wanted.ack,
            on_resync=screen.resync,
            on_connected=screen.connected,
            on_disconnected=screen.disconnected,
        )
    except ValueError as error:
        raise CommandFailure(str(error), os.EX_USAGE) from error
    except StartError as error:
        raise CommandFailure(str(error), os.EX_NOINPUT) from error


def _key(context: click.Context, key: str | None, key_file: BinaryIO | None) -> str:
    """Return the key. `--key-file` takes precedence over $POSD_KEY; with `--key` it is an error."""
    if key_file is not None:
        if context.get_parameter_source("key") is ParameterSource.COMMANDLINE:
            raise click.UsageError("Give --key or --key-file, not both.", context)
        return read_secret(key_file, "the key")
    key = strip_secret(key or "")
    if not key:
        raise click.UsageError("A key is needed: --key-file, --key or $POSD_KEY.", context)
    return key


def _credentials(
    context: click.Context, certificate: Path | None, private_key: Path | None
) -> Credentials | None:
    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        raise click.UsageError("Give --client-cert and --client-key, or neither.", context)
    return Credentials(certificate, private_key)


def _summary_text(summary: Summary) -> str:
    parts = [f"{summary.received} received", f"{summary.stored} printed"]
    if summary.acknowledged is not None:
        parts.append(f"acknowledged up to {summary.acknowledged}")
    if summary.reconnects:
        parts.append(f"reconnected {_times(summary.reconnects)}")
    if summary.breaches:
        parts.append(f"protocol violated {_times(summary.breaches)}")
    return ", ".join(parts)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _hopeless(wanted: Subscription, outcome: Outcome) -> CommandFailure | None:
    """Return the failure, with advice, if an outcome of the first attempt is permanent, else None."""
    secure = wanted.url.lower().startswith("wss:")
    match outcome.fault:
        case Fault.NO_HOST:
            advice = "check the host in --url, and the network of this machine"
            code = os.EX_NOHOST
        case Fault.UNTRUSTED:
            advice, code = _trust_advice(wanted, outcome), os.EX_CONFIG
        case Fault.NO_TLS:
            advice = "the port does not use TLS: give the port of a listener with tls = true"
            if BaseUrl.parse(wanted.url, "wss", "ws").is_loopback:
                advice += ", or write ws:// in --url"
            code = os.EX_PROTOCOL
        case Fault.NO_ANSWER if not secure or not outcome.reason.startswith("the server closed"):
            advice = "check that the port is that of posd"
            if not secure:
                advice += ", and write wss:// in --url if its listener has tls = true"
            code = os.EX_PROTOCOL
        case Fault.NO_POSD:
            advice = (
                "the server is not posd: check host, port and path of --url, and the reverse proxy"
            )
            code = os.EX_PROTOCOL
        case Fault.NO_SUCH if not secure and outcome.reason.endswith(HINTS[KnownProtocol.HTTP]):
            advice = "write wss:// in --url, and name the authority of posd with --ca"
            code = os.EX_PROTOCOL
        case Fault.NO_SUCH if outcome.status != 404:
            # The server's message says which option is wrong.
            return CommandFailure(printable(outcome.reason), os.EX_DATAERR)
        case Fault.NO_SUCH:
            advice, code = "check --tenant, and that --url has no path", os.EX_DATAERR
        case _:
            return None
    return CommandFailure(f"{printable(outcome.reason)}; {advice}", code)


def _trust_advice(wanted: Subscription, outcome: Outcome) -> str:
    if "refuses this client" in outcome.reason:
        return "give the certificate of this till with --client-cert and --client-key"
    if "another name" in outcome.reason or "names no server" in outcome.reason:
        return "write the host in --url as in the certificate"
    if "expired" in outcome.reason or "not valid yet" in outcome.reason:
        return "the server needs a new certificate"
    if wanted.ca is None:
        return "give the authority with --ca, such as ca.pem of make-cert"
    return f"the authority of the server's certificate is not in {wanted.ca}"


def _failure(outcome: Outcome) -> CommandFailure | None:
    """Return the failure if the server ended the session, or None if this side did."""
    if outcome.code == _REVOKED or outcome.status in _REFUSED:
        return CommandFailure(printable(outcome.reason), os.EX_NOPERM)
    if outcome.code is not None or outcome.status is not None:
        return CommandFailure(printable(outcome.reason), os.EX_UNAVAILABLE)
    return None
