"""No value of an option or argument of `posctl` causes a traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from twisted.trial.unittest import SynchronousTestCase

from posd.cli import demo, failures, listening, publishing
from posd.cli import posctl as command
from posd.cli.failures import CommandFailure
from posd.testing.postgres import test_server
from tests.cli_runner import migrated_database, posctl

CODES: Final = {0, failures.INTERRUPTED, *range(64, 79)}
TEXTS: Final = (
    *("", " ", "\0", "a\0b", "\udcff", "é" * 300, "\x1b[2J", "a\nb", "a" * 70_000, "../..", "--"),
    *("-1", "0", "1", "9" * 400, "9" * 5000, "99999999999999999999", "2147483648", "-0", "1e308"),
    *("nan", "inf", "0x10", "1_000", "٣", "99999", "9223372036854775808"),
    *("1d", "0s", "-1d", "99999999999d", "999999999999999d", "1ms", "36501d"),
    *("0001-01-01", "9999-12-31T23:59:59-23:59", "99999-01-01", "2026-02-30", "2026-11-25T18:30"),
    *(
        "'; DROP TABLE x; --",
        "kitchen",
        "KITCHEN",
        "Europe/Nowhere",
        "../../etc/passwd",
        "GB",
        "ZZ",
    ),
    *(
        "https://localhost:1",
        "wss://localhost:99999",
        "wss://[::1",
        "wss://localhost:0",
        "ws://é:1",
    ),
    *("hots=foo", "postgresql://[", "port=99999", "host=/nowhere"),
)
VALID: Final = {
    "slug": "kitchen",
    "name": "A name",
    "kind": "notice",
    "key_id": "1",
    "url": "wss://localhost:1",
    "tenant": "kitchen",
    "key": "pos_x",
    "device": "POS_1",
    "first": "1",
    "region": "GB",
    "number": "GC-1",
    "amount": "1",
    "phone": "07700900123",
    "change": "1",
}
"""The value of each parameter while another parameter is tested."""
LONGEST: Final = 1000
"""Characters of an output line, which may contain a long path."""
NEVER: Final = {"help", "version", "as_json", "yes"}


def commands(
    group: click.Group, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, (*words, name))
        else:
            yield (*words, name), found


def written(parameter: click.Parameter, value: str) -> list[str]:
    if isinstance(parameter, click.Argument):
        return [value]
    return [f"{parameter.opts[0]}={value}"]


class HostileCase(SynchronousTestCase):
    dsn: str

    def setUp(self) -> None:
        self.dsn = migrated_database()
        self.addCleanup(test_server().drop_database, self.dsn)
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.odd_files = [*self.files()]

        def unreached(*_: Any, **__: Any) -> Any:
            raise CommandFailure("the value was taken", os.EX_UNAVAILABLE)

        # Do not run code that waits for a server or starts one: other tests do.
        self.patch(listening, "run", unreached)
        self.patch(publishing, "run", unreached)
        self.patch(demo, "demo_server", unreached)

    def files(self) -> Iterator[str]:
        """Yield paths of files that no command expects."""
        for name, content in (
            ("binary", bytes(range(256))),
            ("ff", b"\xff"),
            ("empty", b""),
            ("long", b"a" * 200_000),
            ("json", b'{"a": 1e999999}'),
            ("list", b"[1]"),
            ("deep", b"[" * 100_000),
            ("newlines", b"\r\n\r\n"),
        ):
            path = self.folder / name
            path.write_bytes(content)
            yield str(path)
        closed = self.folder / "closed"
        closed.write_text("x")
        closed.chmod(0)
        loop = self.folder / "loop"
        loop.symlink_to(loop)
        yield from (str(each) for each in (closed, loop, self.folder, self.folder / "none" / "x"))
        yield from ("/dev/null", "/proc/self/mem", "x" * 5000)

    def pipe(self) -> str:
        path = self.folder / "pipe"
        os.mkfifo(path)
        return str(path)

    def faults(self, *arguments: str, dsn: str | None = None) -> Iterator[str]:
        """Run a command; yield what is wrong with its end."""
        shown = " ".join(each[:60] for each in arguments)
        try:
            ran = posctl(*arguments, dsn=dsn, stdin="")
        except Exception as error:
            yield f"{shown}: {type(error).__name__}: {str(error)[:200]}"
            return
        told = f"{shown}: {ran.code}: {ran.err[:300]}"
        if ran.code not in CODES or "Traceback" in ran.out + ran.err or "\x1b" in ran.err:
            yield told
        *question, last = ran.err.splitlines() or [""]
        is_told = last.startswith(("posctl: ", str(self.folder))) and len(last) < LONGEST
        if ran.code and not (is_told and all("[y/N]" in each for each in question)):
            yield told


class MatrixTests(HostileCase):
    def tried(self, wanted: click.Command, chosen: click.Parameter, value: str) -> list[str]:
        """Return the arguments of a command: the value to try, and valid values for required parameters."""
        arguments: list[str] = []
        for parameter in wanted.params:
            if parameter is chosen:
                arguments += written(parameter, value)
            elif parameter.required or parameter.name in ("device", "key", "url"):
                arguments += written(parameter, self.usual(wanted, parameter))
        return arguments

    def usual(self, wanted: click.Command, parameter: click.Parameter) -> str:
        if isinstance(parameter.type, click.Choice):
            return str(parameter.type.choices[0])
        if isinstance(parameter.type, click.File | click.Path):
            path = self.folder / "usual"
            path.write_text("{}")
            return str(path if isinstance(parameter.type, click.File) else self.folder)
        return VALID[str(parameter.name)]

    def test_every_parameter_of_every_command(self) -> None:
        found: list[str] = []
        count = 0
        for words, wanted in commands(command):
            for parameter in wanted.params:
                is_flag = isinstance(parameter, click.Option) and parameter.is_flag
                if is_flag or parameter.name in NEVER:
                    continue
                for value in (*TEXTS, *self.odd_files):
                    arguments = self.tried(wanted, parameter, value)
                    more = ("--json",) if count % 2 else ()
                    found += self.faults(*words, *more, *arguments, dsn=self.dsn)
                    count += 1
        self.assertFalse(found, "\n" + "\n".join(found))
        self.assertGreater(count, 1000)

    def test_the_configuration(self) -> None:
        for name in (*self.odd_files, self.pipe(), "", " ", "\udcff", "a\0b"):
            ran = posctl("--config", name, "tenant", "list")
            with self.subTest(name=name):
                self.assertIn(ran.code, CODES - {0})
                self.assertNotIn("Traceback", ran.err)
                for line in ran.err.splitlines():
                    self.assertTrue(line.startswith((str(Path(name)), "posctl: ")), ran.err)

    def test_the_connection(self) -> None:
        found: list[str] = []
        for value in TEXTS:
            found += self.faults(f"--dsn={value}", "tenant", "list")
        self.assertFalse(found, "\n" + "\n".join(found))
