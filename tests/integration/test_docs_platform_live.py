"""Run the SQL, commands, calls and programs of docs/platform.md in their order."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from psycopg2.extensions import connection as Connection  # noqa: N812
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from posd.protocol.jsontext import decode
from tests import documents
from tests.documents import ROOT, Block
from tests.integration.harness import Daemon, Shop, free_port
from tests.integration.test_docs_tills_live import PATIENCE, comparable
from tests.integration.wire import Till

PAGE = "docs/platform.md"
_ADDRESS, _SOCKET = "https://pos.example.com:9010", "/run/posd/local.sock"
_ROLE = "webshop"
_CURL = 'silent\nshow-error\nwrite-out = "\\n%{http_code}"\n'


class PageTests(SynchronousTestCase):
    """The tenant `kitchen` with one till, and a platform that runs the examples."""

    def setUp(self) -> None:
        if shutil.which("curl") is None:
            raise SkipTest("curl is not installed")
        self.shop = Shop.open()
        self.addCleanup(self.shop.close)
        self.addCleanup(self.forget_role)
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.socket = self.shop.folder / "local.sock"
        self.posd = self.shop.start(
            f'[[listen]]\nname = "local"\nendpoint = "unix:{self.socket}:mode=660"\ntrusted = true'
        )
        shutil.copy(self.posd.ca, self.folder / "ca.pem")
        (self.folder / ".curlrc").write_text(_CURL)
        self._till = till(self.posd, self.shop.key())
        self.addCleanup(self._till.hang_up)
        self._session: Connection | None = None
        self._key = ""
        self._said = ""
        self._rows: list[tuple[Any, ...]] = []

    def forget_role(self) -> None:
        """Drop the role: it belongs to the cluster, which other tests also use."""
        if self._session is not None:
            self._session.close()
        if self.shop.query("SELECT 1 FROM pg_roles WHERE rolname = %s", [_ROLE]):
            self.shop.query(f"DROP OWNED BY {_ROLE} CASCADE; DROP ROLE {_ROLE}")

    def test_everything_happens_as_the_page_says(self) -> None:
        played = 0
        for block in documents.blocks(PAGE):
            action = self.action(block)
            try:
                action(block)
            except Exception as error:
                raise AssertionError(f"{PAGE}, line {block.line}: {error!r}") from error
            played += 1
        self.assertGreater(played, 40)

    def action(self, block: Block) -> Callable[[Block], None]:
        actions: dict[tuple[str, ...], Callable[[Block], None]] = {
            ("sql", "admin"): self.administer,
            ("sql", "shop"): self.write,
            ("sh", "operator"): self.operate,
            ("sh", "platform"): self.call,
            ("python", "platform"): self.run_program,
            ("json", "event"): self.hear,
            ("json", "answer"): self.be_answered,
            ("text", "says"): self.be_told,
            ("text", "rows"): self.get_rows,
        }
        return actions[block.language, block.words[0]]

    def administer(self, block: Block) -> None:
        """Run a statement after posd has logged all earlier publications."""
        deadline = time.monotonic() + PATIENCE
        while self.shop.query("SELECT 1 FROM dinedesk_main.pos_outbox LIMIT 1"):
            self.assertLess(time.monotonic(), deadline, "the outbox is not emptied")
            time.sleep(0.01)
        self._rows = self.shop.query(block.text)

    def write(self, block: Block) -> None:
        """Run statements with the role of the platform, one at a time as psql does."""
        if self._session is None:
            self._session = self.shop.connect()
            with self._session.cursor() as cursor:
                cursor.execute(f"SET SESSION AUTHORIZATION {_ROLE}")
        with self._session.cursor() as cursor:
            for statement in re.split(r";\n", block.text):
                if statement.strip():
                    cursor.execute(statement)
            self._rows = cursor.fetchall() if cursor.description else []

    def operate(self, block: Block) -> None:
        posctl = f'posctl() {{ "{sys.executable}" -m posd.cli --dsn "{self.shop.dsn}" "$@"; }}\n'
        self._said = self.bash(posctl + block.text)
        if "key create" in block.text:
            self._key = self._said.split()[0]

    def call(self, block: Block) -> None:
        self._said = self.bash(self.actual(block.text), KEY=self._key, CURL_HOME=str(self.folder))

    def run_program(self, block: Block) -> None:
        (self.folder / "shop.py").write_text(self.actual(block.text), "utf-8")
        self._said = self.bash(f'"{sys.executable}" shop.py', KEY=self._key)

    def hear(self, block: Block) -> None:
        """Compare a block with the event of its id. The page leaves out some earlier events."""
        wanted: Any = decode(block.text)
        while True:
            came = self._till.receive_text(PATIENCE)
            event: Any = decode(came)
            if event.get("id") == wanted["id"]:
                break
            self.assertLess(event.get("id", 0), wanted["id"])
        self.assertEqual(comparable(came), comparable(block.text))

    def be_answered(self, block: Block) -> None:
        body, _, status = self._said.strip().rpartition("\n")
        self.assertEqual(status, block.words[1], body)
        self.assertEqual(comparable(body), comparable(block.text))

    def be_told(self, block: Block) -> None:
        self.assertEqual(self._said.strip(), block.text.strip())

    def get_rows(self, block: Block) -> None:
        shown = [
            tuple(cell.strip() for cell in line.split("|"))
            for line in block.text.strip().splitlines()[2:]
        ]
        came = [tuple({False: "f", True: "t"}.get(c, str(c)) for c in row) for row in self._rows]
        self.assertEqual(came, shown)

    def bash(self, script: str, **environ: str) -> str:
        """Return the output of a script, stdout and stderr."""
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=3000,
        )
        return ran.stdout

    def actual(self, text: str) -> str:
        """Return a text of the page with the addresses of this posd."""
        return text.replace(_ADDRESS, self.posd.url).replace(_SOCKET, str(self.socket))


class OtherClaimsTests(SynchronousTestCase):
    """Statements of the page without an example."""

    def setUp(self) -> None:
        self.shop = Shop.open()
        self.addCleanup(self.shop.close)
        self.posd = self.shop.start()
        self.platform = self.shop.key("platform")

    def test_a_repeated_call_says_so(self) -> None:
        body = {"type": "notice", "data": {"message": "closed"}}
        headers = {"Idempotency-Key": "notice-1"}
        first, second = (
            self.posd.request(
                "POST", "/api/kitchen/events", body, key=self.platform, headers=headers
            )
            for _ in range(2)
        )
        self.assertNotIn("idempotent-replayed", first.headers)
        self.assertEqual(second.headers["idempotent-replayed"], "true")
        self.assertEqual(first.json["id"], second.json["id"])

    def test_an_order_is_safe_to_repeat_and_another_event_is_not(self) -> None:
        order = {"type": "new_order", "data": {"orderId": "1", "totalAmount": 1}}
        self.assertEqual([self.publish(order), self.publish(order)], [(201, 1), (200, None)])
        notice = {"type": "notice", "data": {}}
        self.assertEqual([self.publish(notice), self.publish(notice)], [(201, 2), (201, 3)])

    def test_a_batch_is_published_all_or_none(self) -> None:
        good, bad = {"type": "notice", "data": {}}, {"type": "new_order", "data": {}}
        refused = self.posd.request(
            "POST", "/api/kitchen/events", {"events": [good, bad]}, key=self.platform
        )
        self.assertEqual((refused.status, refused.json["code"]), (422, "invalid_event"))
        self.assertEqual(self.publish(good), (201, 1))

    def test_a_platform_key_connects_no_till(self) -> None:
        with self.assertRaisesRegex(Exception, "403"):
            till(self.posd, self.platform)

    def test_on_any_other_listener_the_older_call_needs_a_key(self) -> None:
        refused = self.posd.request(
            "POST", "/broadcast", {"tenant": "kitchen", "event": {"type": "notice", "data": {}}}
        )
        self.assertEqual(refused.status, 401)

    def test_a_trusted_listener_takes_no_request_of_a_browser(self) -> None:
        port = free_port()
        self.posd.stop()
        self.shop.start(
            f'[[listen]]\nname = "local"\nendpoint = "tcp:port={port}:interface=127.0.0.1"\n'
            "trusted = true"
        )
        json_type, origin = {"Content-Type": "application/json"}, {"Origin": "http://evil.example"}
        for headers, status in (
            (json_type, 200),
            ({**json_type, **origin}, 403),
            ({**json_type, "Host": "evil.example"}, 403),
            ({"Content-Type": "text/plain"}, 415),
        ):
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
                connection.request(
                    "POST",
                    "/broadcast",
                    '{"tenant":"kitchen","event":{"type":"notice","data":{}}}',
                    headers,
                )
                self.assertEqual(connection.getresponse().status, status, headers)

    def test_the_older_call_answers_a_missing_event_as_before(self) -> None:
        refused = self.posd.request("POST", "/broadcast", {"tenant": "kitchen"}, key=self.platform)
        self.assertEqual((refused.status, refused.json["error"]), (400, "Missing tenant or event"))

    def publish(self, event: object) -> tuple[int, int | None]:
        answer = self.posd.request("POST", "/api/kitchen/events", event, key=self.platform)
        return answer.status, answer.json["id"]


def till(posd: Daemon, key: str) -> Till:
    """Connect a till of the kitchen, and read its first message."""
    return Till.dial(posd, "/ws/pos/kitchen", {"X-API-Key": key})
