"""`posctl listen`: the reference till at a terminal."""

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

_HOLES: Final = {
    Resync.RETENTION: "what came before is older than what is kept",
    Resync.RESET: "the server's history is another one now",
    Resync.AHEAD: "the server has not come as far as this till",
}


@frozen
class Subscription:
    """What to listen to, and as whom."""

    url: str
    tenant: str
    key: str
    device: str | None
    ca: Path | None
    credentials: Credentials | None
    after: Seq | None
    ack: bool


@click.command()
@click.option("--url", required=True, help="Where posd is: wss://HOST:9010.")
@click.option("--tenant", type=SLUG, required=True, help="The shop.")
@click.option(
    "--key",
    envvar="POSD_KEY",
    show_envvar=True,
    help="The key. Other users of this machine can read a command line: prefer --key-file.",
)
@click.option(
    "--key-file", type=click.File("rb"), help="A file with the key in it, or - for stdin."
)
@click.option("--device", help="The name of the terminal, for a key that names none.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The authority to trust, a PEM file such as make-cert's ca.pem; without it, the system's.",
)
@click.option(
    "--client-cert",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The till's own certificate, where posd asks for one (tls.client_ca): a PEM file.",
)
@click.option(
    "--client-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The private key of that certificate: a PEM file. It is not the key that posd knows.",
)
@click.option(
    "--after",
    type=POSITION,
    metavar="N",
    help="First get everything after this position.",
)
@click.option(
    "--no-ack",
    is_flag=True,
    help="Leave the terminal's position at the server as it is; only look.",
)
@as_json
@click.option(
    "--count", type=click.IntRange(1, 2**63 - 1), metavar="N", help="End after so many events."
)
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
    """Be a till: print events as they come.

    Connects, acknowledges each event once it is printed, connects again with growing pauses when
    the connection is lost, and goes on after the last event it had. Ctrl-C ends it with a summary.
    If the first connection cannot succeed, because of the URL, the certificate or what listens there,
    it ends at once and says what to do. A server that refuses connections or answers 503 is tried again.
    With --json each event is one line, as posd sent it; everything else goes to standard error.

    posd has to prove to be HOST, by a certificate of an authority that is trusted.

    A device has one connection at a time and gets nothing twice. To look on while a till works, use
    a key of the tenant without --device, or a device of your own, and not what the till has.

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
    """Where a till shows what happens.

    `judge` tells why no further attempt can succeed, and `hopeless` is set when the till was stopped
    for that; `broken` is set when nobody reads what is shown any more.
    """

    _as_json: bool
    _count: int | None
    _judge: Callable[[Outcome], CommandFailure | None] = lambda _: None
    stop: Callable[[], object] = lambda: None
    broken: BrokenPipeError | None = None
    hopeless: CommandFailure | None = None
    _shown: int = 0
    _is_known: bool = False
    """Whether a connection has succeeded before: then the server is right, and may be in trouble."""

    def event(self, event: ReceivedEvent) -> None:
        """Show an event. What could not be written is not acknowledged, and comes again."""
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
        """Say that there is a hole, and of which kind."""
        click.echo(f"{_HOLES[reason]}; the stream goes on after {after}", err=True)

    def connected(self, greeting: Connected) -> None:
        """Say as whom, and from where the stream comes."""
        self._is_known = True
        name = "without a name" if greeting.device_id is None else f"as {greeting.device_id}"
        head = f"the last event is {greeting.last_event_id}"
        resumed = greeting.resumed_from
        after = "" if resumed is None else f", everything after {resumed} follows"
        click.echo(printable(f"connected {name}: {head}{after}"), err=True)

    def disconnected(self, outcome: Outcome) -> None:
        """Say why, if the till will try again; stop it where that cannot help."""
        if not self._is_known:
            self.hopeless = self._judge(outcome)
        if self.hopeless is not None:
            self.stop()
        elif outcome.next_step is not NextStep.STOP:
            click.echo(printable(f"disconnected, trying again: {outcome.reason}"), err=True)


async def follow(
    reactor: CommandReactor, subscription: Subscription, screen: EventPrinter
) -> Summary:
    """Be a till until it has to stop, is told to by the screen, or the reactor ends."""
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
    """The key that was given in one of the three ways; a file counts more than the environment."""
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
    parts = [f"{summary.received} received", f"{summary.stored} shown"]
    if summary.acknowledged is not None:
        parts.append(f"acknowledged up to {summary.acknowledged}")
    if summary.reconnects:
        parts.append(f"reconnected {_times(summary.reconnects)}")
    if summary.breaches:
        parts.append(f"the protocol broken {_times(summary.breaches)}")
    return ", ".join(parts)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _hopeless(wanted: Subscription, outcome: Outcome) -> CommandFailure | None:
    """Why a first attempt that has ended like this will fail again, with what to do; else None."""
    secure = wanted.url.lower().startswith("wss:")
    match outcome.fault:
        case Fault.NO_HOST:
            advice = "see whether the host in --url is spelled right and this machine has a network"
            code = os.EX_NOHOST
        case Fault.UNTRUSTED:
            advice, code = _trust_advice(wanted, outcome), os.EX_CONFIG
        case Fault.NO_TLS:
            advice = "the port does not speak TLS: name the port of a listener with tls = true"
            if BaseUrl.parse(wanted.url, "wss", "ws").is_loopback:
                advice += ", or write ws:// in --url"
            code = os.EX_PROTOCOL
        case Fault.NO_ANSWER if not secure or not outcome.reason.startswith("the server hung up"):
            advice = "see whether the port is posd's"
            if not secure:
                advice += ", and write wss:// in --url if its listener has tls = true"
            code = os.EX_PROTOCOL
        case Fault.NO_POSD:
            advice = (
                "no posd answers there: see host, port and path of --url, and the proxy before it"
            )
            code = os.EX_PROTOCOL
        case Fault.NO_SUCH if not secure and outcome.reason.endswith(HINTS[KnownProtocol.HTTP]):
            advice, code = "write wss:// in --url, and --ca with posd's authority", os.EX_PROTOCOL
        case Fault.NO_SUCH if outcome.status != 404:
            # The server's own words tell which option it does not take.
            return CommandFailure(printable(outcome.reason), os.EX_DATAERR)
        case Fault.NO_SUCH:
            advice, code = "see --url, which has no path of its own, and --tenant", os.EX_DATAERR
        case _:
            return None
    return CommandFailure(f"{printable(outcome.reason)}; {advice}", code)


def _trust_advice(wanted: Subscription, outcome: Outcome) -> str:
    if "refuses this client" in outcome.reason:
        return "give this till's certificate by --client-cert and --client-key"
    if "another name" in outcome.reason or "names no server" in outcome.reason:
        return "write the host in --url as the certificate names it"
    if "expired" in outcome.reason or "not valid yet" in outcome.reason:
        return "the server needs a new certificate"
    if wanted.ca is None:
        return "name the authority by --ca, such as make-cert's ca.pem"
    return f"{wanted.ca} is not the authority that the server's certificate is of"


def _failure(outcome: Outcome) -> CommandFailure | None:
    """Why the server has made an end of it; None if we did."""
    if outcome.code == _REVOKED or outcome.status in _REFUSED:
        return CommandFailure(printable(outcome.reason), os.EX_NOPERM)
    if outcome.code is not None or outcome.status is not None:
        return CommandFailure(printable(outcome.reason), os.EX_UNAVAILABLE)
    return None
