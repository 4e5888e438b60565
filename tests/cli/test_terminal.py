"""`posctl` with terminals and pipes that are not UTF-8, narrow, dumb or closed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from posd.cli.commands import SECTIONS
from posd.testing.postgres import test_server
from tests.cli_runner import execute, migrated_database
from tests.integration.harness import ROOT

SECONDS = 300.0
NAME = "Café 店 – „Zur Post“ …"
PLACES = {
    "C": {"LC_ALL": "C"},
    "POSIX, and nothing that Python makes of it": {
        "LC_ALL": "POSIX",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    },
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "Latin-1, strictly": {"PYTHONIOENCODING": "latin-1:strict"},
    "cp437": {"PYTHONIOENCODING": "cp437"},
    "narrow and dumb": {"COLUMNS": "40", "TERM": "dumb", "NO_COLOR": "1"},
}


def environ(**changed: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LC_", "LANG", "PYTHONIO", "PYTHONUTF8", "POSD_", "COLUMNS"))
    }
    return {**kept, "PYTHONPATH": str(ROOT), **changed}


class TerminalCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.dsn = migrated_database()
        self.addCleanup(test_server().drop_database, self.dsn)
        execute(self.dsn, "UPDATE dinedesk_main.tenants SET name = %s", NAME)
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        # The output of the doctor has arrows only if there is a fault.
        self.wrong = self.folder / "posd.toml"
        self.wrong.write_text('[database]\ndsn = "dbname=posd"\nlisten = "—"\n', "utf-8")

    def commands(self) -> list[list[str]]:
        helped = [[name, "--help"] for names in SECTIONS.values() for name in names]
        return [
            *helped,
            ["--dsn", self.dsn, "tenant", "list"],
            ["--dsn", self.dsn, "tenant", "list", "--json"],
            ["--dsn", self.dsn, "status", "--tenant", "kitchen"],
            ["--dsn", self.dsn, "tenant", "add", "café"],
            ["--dsn", self.dsn, "status", "--tenant", "„Post“"],
            ["--dsn", self.dsn, "audit"],
            ["--config", str(self.wrong), "check-config"],
            ["--config", str(self.wrong), "doctor"],
        ]


class EncodingTests(TerminalCase):
    """Many commands in each environment, with one process for all commands of an environment."""

    def test_no_character_makes_a_command_fail(self) -> None:
        for place, changed in PLACES.items():
            with self.subTest(place=place):
                ran = subprocess.run(
                    [sys.executable, "-c", _EVERY, ascii(self.commands())],
                    env=environ(**changed),
                    capture_output=True,
                    timeout=SECONDS * 2,
                    check=False,
                )
                told = (ran.stdout + ran.stderr).decode("latin-1")
                self.assertNotIn("Traceback", told)
                self.assertNotIn("Error: ", told)
                self.assertEqual(ran.returncode, 0, told[-2000:])
                self.assertIn("Caf", told)

    def test_characters_outside_the_encoding_are_replaced(self) -> None:
        ran = subprocess.run(
            [sys.executable, "-m", "posd.cli", "--dsn", self.dsn, "tenant", "list"],
            env=environ(PYTHONIOENCODING="ascii"),
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
        self.assertIn(b'Caf? ? - ?Zur Post" .', ran.stdout)


_EVERY = """
import sys, contextlib
from posd.cli import main
wrong = []
for arguments in eval(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as ended:
        if ended.code not in {0, *range(64, 79)}:
            wrong.append((arguments, ended.code))
sys.exit(repr(wrong) if wrong else 0)
"""


class PipeTests(TerminalCase):
    def shell(self, line: str, **changed: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line}"],
            env=environ(POSCTL=f"{sys.executable} -m posd.cli", DSN=self.dsn, **changed),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )

    def test_a_closed_pipe_causes_no_traceback(self) -> None:
        for line in (
            '$POSCTL --dsn "$DSN" tenant list | head -c 1',
            '$POSCTL --dsn "$DSN" tenant list --json | true',
            "$POSCTL --help | true",
            f"$POSCTL --config {self.wrong} doctor | true",
        ):
            with self.subTest(line=line):
                self.assertEqual(self.shell(line).stderr, b"")

    def test_closed_streams_cause_no_failure(self) -> None:
        for closed in (">&-", "2>&-", ">&- 2>&-", "<&-"):
            with self.subTest(closed=closed):
                ran = self.shell(f'$POSCTL --dsn "$DSN" tenant list {closed}')
                self.assertEqual((ran.returncode, ran.stderr), (0, b""))

    def test_a_full_disk_is_reported(self) -> None:
        ran = self.shell('$POSCTL --dsn "$DSN" tenant list --json >/dev/full')
        self.assertNotIn(b"Traceback", ran.stderr)
        self.assertIn(b"No space left on device", ran.stderr)
        self.assertNotEqual(ran.returncode, 0)

    def test_tables_fit_into_a_narrow_terminal(self) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "posd.cli", "--config", str(self.wrong), "doctor"],
            env=environ(TERM="dumb", PYTHONIOENCODING="ascii"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError), os.fdopen(ours, "rb", buffering=0) as screen:
            while piece := screen.read(4096):
                shown += piece
        process.wait(SECONDS)
        self.assertNotIn(b"Traceback", shown)
        # The arrow before a remedy, which ASCII does not have. Columns of 12 characters break the words.
        self.assertIn(b"> ", shown)
        self.assertLessEqual(max(map(len, shown.decode("ascii").splitlines()[:-1])), 40)
