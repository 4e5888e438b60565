"""Run docs/rest.md from top to end: every call, and its answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from posd.protocol.jsontext import decode, encode
from tests import documents
from tests.description_case import operations
from tests.documents import ROOT, Block
from tests.integration.harness import Shop
from tests.integration.test_docs_tills_live import comparable, until

PAGE = "docs/rest.md"
_HOST = "pos.example.com:9010"
_CURL = 'silent\nshow-error\nwrite-out = "\\n%{http_code}"\ncacert = "ca.pem"\n'
_CHANCE = re.compile(r'("(?:streamId|transactionId|key|preview|next)":)"[^"]+"')


class PageTests(SynchronousTestCase):
    """The tenant `kitchen`, and a user with a shell who follows the page."""

    def setUp(self) -> None:
        if shutil.which("curl") is None:
            raise SkipTest("curl is not installed")
        self.shop = Shop.open()
        self.addCleanup(self.shop.close)
        self.posd = self.shop.start()
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        shutil.copy(self.posd.ca, self.folder / "ca.pem")
        (self.folder / ".curlrc").write_text(_CURL)
        self.keys: dict[str, str] = {}
        self.said = ""

    def test_everything_happens_as_the_page_says(self) -> None:
        played = 0
        for block in documents.blocks(PAGE):
            if not block.words:
                continue
            try:
                self.action(block)(block)
            except Exception as error:
                raise AssertionError(f"{PAGE}, line {block.line}: {error!r}") from error
            played += 1
        self.assertGreater(played, 40)

    def action(self, block: Block) -> Callable[[Block], None]:
        actions: dict[tuple[str, str], Callable[[Block], None]] = {
            ("sh", "operator"): self.operate,
            ("sh", "call"): self.call,
            ("json", "answer"): self.be_answered,
            ("text", "stream"): self.be_sent,
            ("text", "says"): self.be_told,
        }
        return actions[block.language, block.words[0]]

    def operate(self, block: Block) -> None:
        """Create the keys, and store them for the calls."""
        posctl = f'posctl() {{ "{sys.executable}" -m posd.cli --dsn "{self.shop.dsn}" "$@"; }}\n'
        names = re.findall(r"^([A-Z]+)=", block.text, re.MULTILINE)
        shown = self.bash(posctl + block.text + "".join(f'echo "${name}"\n' for name in names))
        keys = [line.split()[0] for line in shown.splitlines() if line.startswith("pos_")]
        self.keys = dict(zip(names, keys, strict=True))

    def call(self, block: Block) -> None:
        # A movement becomes an event after a moment, and the page shows it in order. A reader of the stream
        # is removed from the database after a moment.
        for table in ("pos_outbox", "pos_connections"):
            waiting = f"SELECT 1 FROM dinedesk_main.{table} LIMIT 1"
            until(lambda: not self.shop.query(waiting))  # noqa: B023  over before the next
        self.said = self.bash(block.text, POSD=self.posd.url, CURL_HOME=str(self.folder))

    def be_answered(self, block: Block) -> None:
        body, _, status = self.said.strip().rpartition("\n")
        body = body.replace(f"localhost:{self.posd.port}", _HOST)
        self.assertEqual(status, block.words[1], body)
        if "part" in block.words:
            self.assertTrue(is_part(decode(steady(block.text)), decode(steady(body))), body)
        else:
            self.assertEqual(steady(body), steady(block.text))

    def be_sent(self, block: Block) -> None:
        """Return the first events of a stream, without their data, in this order."""
        lines = [line for line in self.said.splitlines() if line.startswith(("event:", "id:"))]
        shown = block.text.splitlines()
        self.assertEqual(lines[: len(shown)], shown)

    def be_told(self, block: Block) -> None:
        self.assertTrue(self.said.startswith(block.text), self.said[:200])

    def bash(self, script: str, **environ: str) -> str:
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **self.keys, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=300,
        )
        return ran.stdout


class CompletenessTests(SynchronousTestCase):
    """The page has all operations."""

    def test_every_operation_is_called(self) -> None:
        called = [call(block.text) for block in documents.blocks(PAGE) if block.of("sh", "call")]
        missing = [
            f"{operation.method} {operation.path}"
            for operation in operations()
            if not any(
                method == operation.method and re.fullmatch(pattern(operation.path), address)
                for method, address in called
            )
        ]
        self.assertEqual(missing, [], f"show these in {PAGE}, by curl")


def pattern(path: str) -> str:
    """Return a pattern for the addresses of a template."""
    return re.sub(r"{\w+}", "[^/]+", path)


def call(script: str) -> tuple[str, str]:
    """Return the method and the address of a call by curl."""
    method = re.search(r"-X ([A-Z]+)", script)
    default = "POST" if " -d " in script else "GET"
    address = re.search(r'"\$POSD(/[^"?]*)', script)
    assert address is not None, script
    return method[1] if method else default, address[1]


def steady(text: str) -> str:
    """Return an answer on one line, without values that differ each time."""
    return _CHANCE.sub(r'\1"…"', comparable(text))


def is_part(shown: object, whole: object) -> bool:
    """Return whether an answer contains all of an example; lists at the same places."""
    if isinstance(shown, Mapping) and isinstance(whole, Mapping):
        return all(name in whole and is_part(shown[name], whole[name]) for name in shown)
    if isinstance(shown, list) and isinstance(whole, list):
        return len(shown) <= len(whole) and all(map(is_part, shown, whole))
    return encode(shown) == encode(whole)
