"""Run the examples of docs/tills.md in their order against posd."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from posd.protocol.jsontext import decode, encode
from tests import documents
from tests.documents import Block
from tests.integration.harness import Daemon, Shop
from tests.integration.roads import Response
from tests.integration.wire import Refused, Till
from tests.server_sent import events_in

PAGE = "docs/tills.md"
PATIENCE = 300.0

_MOMENT = re.compile(r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"')
_CHANCE = re.compile(r'("(?:connectionId|requestId)":)"[0-9a-f-]+"')


def comparable(message: str | bytes) -> str:
    """Return a message on one line, without times and random ids."""
    text = encode(decode(message)).decode()
    return _CHANCE.sub(r'\1"…"', _MOMENT.sub('"a moment"', text))


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError("it has not happened")
        time.sleep(0.02)


class LiveCase(SynchronousTestCase):
    """A posd with a tenant `kitchen`, whose stream is new."""

    shop: Shop
    posd: Daemon

    def setUp(self) -> None:
        self.shop = Shop.open()
        self.addCleanup(self.shop.close)
        self.posd = self.shop.start()

    def till(self, key: str, query: str = "") -> Till:
        """Connect a till. Its first message has not been read yet."""
        return self.connection(f"/ws/pos/kitchen{query}", {"X-API-Key": key})

    def connection(self, path: str, headers: dict[str, str]) -> Till:
        till = Till.try_handshake(self.posd, path, headers)
        self.addCleanup(till.hang_up)
        return till

    def greeted(self, till: Till) -> Any:
        greeting: Any = decode(till.receive_text(PATIENCE))
        self.assertEqual(greeting["type"], "connected")
        return greeting

    def head(self) -> int:
        """Return the position of the last event."""
        return int(self.shop.query("SELECT last_seq FROM dinedesk_main.pos_heads")[0][0])

    def acknowledged(self, device: str = "POS_1") -> int:
        """Return the cursor of a device, as it is stored."""
        rows = self.shop.query(
            "SELECT acked_seq FROM dinedesk_main.pos_cursors WHERE device_id = %s", [device]
        )
        return int(rows[0][0]) if rows else 0


class ConversationTests(LiveCase):
    """The examples of the page, in their order."""

    def setUp(self) -> None:
        super().setUp()
        self._keys = {
            "{device key}": self.shop.key("device", device="POS_1"),
            "{tenant key}": self.shop.key(),
        }
        self._stream: tuple[str, str] | None = None
        self._connection: Till | None = None
        self._refusal: Refused | None = None
        self._response: Response | None = None
        self._acked = 0

    def test_everything_happens_as_the_page_says(self) -> None:
        played = 0
        for block in documents.blocks(PAGE):
            action = self.action(block)
            if action is not None:
                played += 1
                try:
                    action(block)
                except Exception as error:
                    raise AssertionError(f"{PAGE}, line {block.line}: {error!r}") from error
        self.leave()
        self.assertGreater(played, 30)

    def action(self, block: Block) -> Callable[[Block], None] | None:
        """Return the function that runs a block of the page."""
        match (block.language, *block.words):
            case ("http", "till"):
                return self.connect
            case ("http", "posd"):
                return self.be_refused
            case ("sql", "shop", *_):
                return self.write
            case ("json", "till" | "mistake"):
                return self.say
            case ("json", "posd"):
                return self.hear
            case ("http", "ask"):
                return self.ask
            case ("json", "answered"):
                return self.be_answered
            case ("text", "streamed"):
                return self.be_streamed
        return None

    def connect(self, block: Block) -> None:
        self.leave()
        first, *lines = self.actual(block.text).strip().splitlines()
        headers = dict(line.split(": ", 1) for line in lines)
        del headers["Host"]
        try:
            self._connection = self.connection(first.split()[1], headers)
        except Refused as refusal:
            self._refusal = refusal

    def be_refused(self, block: Block) -> None:
        assert self._refusal is not None
        refusal = self._refusal
        head, body = block.text.split("\n\n", 1)
        status, *lines = head.splitlines()
        self.assertEqual(status, f"HTTP/1.1 {refusal.status} {refusal.reason}")
        for name, value in (line.split(": ", 1) for line in lines):
            self.assertEqual(refusal.headers[name.lower()], value)
        self.assertEqual(comparable(refusal.body), comparable(body))

    def write(self, block: Block) -> None:
        if "away" in block.words:
            self.leave()
        last = self.head()
        self.shop.query(block.text)
        until(lambda: self.head() > last)

    def say(self, block: Block) -> None:
        assert self._connection is not None
        message: Any = decode(block.text)
        self._connection.send_text(encode(message))
        if message["type"] == "ack" and message.get("id", 99) < 99:
            self._acked = message["id"]

    def hear(self, block: Block) -> None:
        assert self._connection is not None
        came = self._connection.receive_text(PATIENCE)
        message: Any = decode(came)
        if self._stream is None and message["type"] == "connected":
            shown: Any = decode(block.text)
            self._stream = shown["streamId"], message["streamId"]
        self.assertEqual(comparable(came), comparable(self.actual(block.text)))
        self.assertEqual(came, encode(message), "not as compact as it could be")

    def ask(self, block: Block) -> None:
        self.leave()
        head, _, body = self.actual(block.text).partition("\n\n")
        first, *lines = head.strip().splitlines()
        headers = dict(line.split(": ", 1) for line in lines)
        del headers["Host"]
        method, path, _ = first.split()
        if path.endswith("/pending"):
            # posd has sent all orders of the page, and stores this within a second.
            pending = "SELECT 1 FROM dinedesk_kitchen.pos_orders WHERE print_status = 'pending'"
            until(lambda: not self.shop.query(pending))
            # The events of the movements get their positions a moment after the answers.
            until(lambda: not self.shop.query("SELECT 1 FROM dinedesk_main.pos_outbox"))
        self._response = Response.of(self.posd, path, headers, method=method, body=body.encode())
        self.addCleanup(self._response.hang_up)
        self.assertEqual(self._response.status, 200)

    def be_answered(self, block: Block) -> None:
        assert self._response is not None
        came = self._response.text
        self.assertEqual(comparable(came), comparable(self.actual(block.text)))

    def be_streamed(self, block: Block) -> None:
        assert self._response is not None
        unfolded = self.actual(block.text).replace("\n ", "") + "\n"
        for shown in events_in(unfolded.encode()):
            (came,) = self._response.take(1)
            self.assertEqual(comparable(came.data), comparable(shown.data))
            self.assertEqual(evolve(came, data=""), evolve(shown, data=""))

    def leave(self) -> None:
        """Close the connection, and fail if there is another message on it."""
        if self._connection is None:
            return
        self.assertTrue(self._connection.next_is_pong(99))
        self._connection.leave()
        self._connection = None
        until(lambda: self.acknowledged() >= self._acked)

    def actual(self, text: str) -> str:
        """Return a text of the page with the stream and the keys of this test."""
        for shown, key in self._keys.items():
            text = text.replace(shown, key)
        return text.replace(*self._stream) if self._stream is not None else text


class ResyncTests(LiveCase):
    """The advice of the page for a resync."""

    def test_the_stream_can_be_read_again_from_its_beginning(self) -> None:
        for number in range(3):
            self.shop.publish("kitchen", "notice", {"number": number})
        key = self.shop.key("device", device="POS_1")
        until(lambda: self.head() == 3)
        lost = self.greeted(self.till(key, "?last_event_id=9"))
        self.assertEqual((lost["resync"], lost["resumedFrom"]), ("ahead", None))
        till = self.till(key, f"?last_event_id=0&stream_id={lost['streamId']}")
        self.assertEqual(self.greeted(till)["resumedFrom"], 0)
        events: list[Any] = [decode(till.receive_text(PATIENCE)) for _ in range(3)]
        self.assertEqual([event["data"]["number"] for event in events], [0, 1, 2])


class EndingTests(LiveCase):
    """The table of close codes."""

    def ending(self, till: Till) -> int | None:
        """Return the close code of posd, None if there is no Close frame."""
        code = till.ended(PATIENCE).code
        return None if code == 1006 else code

    def named(self, device: str = "POS_1") -> Till:
        till = self.till(self.shop.key("device", device=device))
        self.greeted(till)
        return till

    def test_a_binary_message_is_1003(self) -> None:
        till = self.named()
        till.send_binary(b'{"type":"ping"}')
        self.assertEqual(self.ending(till), 1003)

    def test_broken_text_is_1007(self) -> None:
        till = self.named()
        till.send_text(b"\xff\xfe")
        self.assertEqual(self.ending(till), 1007)

    def test_the_tenth_invalid_message_within_a_minute_is_1008(self) -> None:
        till = self.named()
        for _ in range(9):
            till.send_text(b"nonsense")
        till.send({"type": "ping", "id": 1})
        answers: list[Any] = [decode(till.receive_text(PATIENCE)) for _ in range(10)]
        self.assertEqual([each["type"] for each in answers], ["error"] * 9 + ["pong"])
        till.send_text(b"nonsense")
        self.assertEqual(self.ending(till), 1008)

    def test_a_message_over_64_kib_is_1009(self) -> None:
        till = self.named()
        till.send({"type": "long", "text": "x" * 65536})
        self.assertEqual(self.ending(till), 1009)

    def test_a_revoked_key_is_4001(self) -> None:
        till = self.named()
        self.shop.query("UPDATE dinedesk_main.pos_api_keys SET revoked_at = now()")
        self.assertEqual(self.ending(till), 4001)

    def test_a_disabled_tenant_is_4001(self) -> None:
        till = self.named()
        self.shop.query("UPDATE dinedesk_main.tenants SET is_active = false")
        self.assertEqual(self.ending(till), 4001)

    def test_a_second_till_of_one_device_is_4009_for_the_first(self) -> None:
        key = self.shop.key("device", device="POS_1")
        first, second = self.till(key), self.till(key)
        self.greeted(first)
        self.greeted(second)
        second.send({"type": "ping"})
        self.assertEqual(self.ending(first), 4009)

    def test_a_short_connection_replaces_nothing(self) -> None:
        key = self.shop.key("device", device="POS_1")
        till = self.till(key)
        self.greeted(till)
        self.greeted(trial := self.till(key))
        trial.leave()
        till.send({"type": "ping", "id": 1})
        self.assertEqual(decode(till.receive_text(PATIENCE))["type"], "pong")  # type: ignore[index]

    def test_a_restart_is_1001(self) -> None:
        till = self.till(self.shop.key("device", device="POS_1"), "?last_event_id=0")
        self.greeted(till)
        other = self.connection(
            "/ws/pos/kitchen", {"X-API-Key": self.shop.key(), "X-Device-ID": "POS_2"}
        )
        self.greeted(other)
        self.posd.process.send_signal(signal.SIGTERM)
        self.assertEqual([self.ending(till), self.ending(other)], [1001, 1001])

    def test_a_restart_sends_no_close_frame_to_older_tills(self) -> None:
        nameless, named = self.till(self.shop.key()), self.named()
        self.greeted(nameless)
        self.posd.process.send_signal(signal.SIGTERM)
        self.assertEqual([self.ending(nameless), self.ending(named)], [None, None])


class TryTests(SynchronousTestCase):
    """The commands for the demonstration."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        posctl = self.folder / "posctl"
        posctl.write_text(f'#!/bin/sh\nexec {sys.executable} -m posd.cli "$@"\n')
        posctl.chmod(0o755)
        self.environ = {
            **os.environ,
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(documents.ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        self.blocks = [
            block
            for block in documents.blocks(PAGE)
            if block.section == "Test your till" and block.language == "sh"
        ]

    def demo(self, command: str) -> tuple[subprocess.Popen[str], str]:
        """Start the demonstration, and return it with its port."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        shown = ""
        while "Ctrl-C ends the demonstration" not in shown:
            line = process.stdout.readline()
            self.assertNotEqual(line, "", shown)
            shown += line
        port = re.search(r"wss://localhost:(\d+) ", shown)
        assert port is not None
        return process, port[1]

    def test_every_line_works_as_printed(self) -> None:
        first, *beside = self.blocks
        self.assertEqual(first.words, ("demo",))
        self.assertEqual({block.words for block in beside}, {("beside",)})
        process, port = self.demo(first.text.strip())
        lines = [line for block in beside for line in block.text.splitlines()]
        self.assertGreater(len(lines), 4)
        for line in lines:
            # Another program of this machine may have the usual port.
            ran = subprocess.run(
                ["bash", "-c", line.replace(":9010 ", f":{port} ")],
                cwd=self.folder,
                env=self.environ,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            self.assertEqual(ran.returncode, 0, (line, ran.stdout, ran.stderr))
        # A till can connect before the demonstration has noticed that posd is ready.
        assert process.stdout is not None
        for told in process.stdout:
            if "it was restarted as process" in told:
                break
        else:
            self.fail("the demonstration did not report the posd that was killed")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=300)
        self.assertEqual(process.returncode, 0, out)
        self.assertFalse((self.folder / "demo").exists())


class SmallTillTests(LiveCase):
    """The example till, through the failures that a till has."""

    def setUp(self) -> None:
        super().setUp()
        (program,) = (b for b in documents.blocks(PAGE) if b.of("python", "till"))
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        (self.folder / "till.py").write_text(program.text, "utf-8")
        self.key = self.shop.key("device", device="POS_1")

    def run_till(self) -> subprocess.Popen[str]:
        till = subprocess.Popen(
            [sys.executable, "till.py"],
            cwd=self.folder,
            env={
                **os.environ,
                "POS_URL": f"wss://localhost:{self.posd.port}/ws/pos/kitchen",
                "POS_KEY": self.key,
                "POS_CA": str(self.posd.ca),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(till.communicate)
        self.addCleanup(till.kill)
        return till

    def stored(self) -> list[int]:
        """Return the positions of the events that the till has stored."""
        with closing(sqlite3.connect(self.folder / "till.db")) as store:
            return [row[0] for row in store.execute("SELECT id FROM events ORDER BY id")]

    def connected(self) -> bool:
        return bool(self.shop.query("SELECT 1 FROM dinedesk_main.pos_connected"))

    def test_it_misses_nothing_when_it_is_killed(self) -> None:
        till = self.run_till()
        until(self.connected)
        self.shop.order()
        until(lambda: self.stored() == [1])
        till.kill()
        till.wait()
        self.shop.order()
        self.run_till()
        self.shop.order()
        until(lambda: self.stored() == [1, 2, 3])
        until(lambda: self.acknowledged() == 3)

    def test_after_a_resync_it_fetches_every_pending_order(self) -> None:
        for _ in range(120):
            self.shop.order()
        until(lambda: self.shop.query("SELECT 1 FROM dinedesk_main.pos_heads WHERE last_seq = 120"))
        with closing(sqlite3.connect(self.folder / "till.db")) as store, store:
            store.execute("CREATE TABLE position (one PRIMARY KEY CHECK (one = 1), stream, id)")
            store.execute(f"INSERT INTO position VALUES (1, '{UUID(int=7)}', 9)")
        self.run_till()
        until(self.connected)
        until(lambda: (self.folder / "till.db").exists() and self.kept() == 120)
        self.shop.order()
        until(lambda: self.kept() == 121)

    def kept(self) -> int:
        """Return the number of different orders that the till has stored."""
        with closing(sqlite3.connect(self.folder / "till.db")) as store:
            tables = store.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchall()
            rows = store.execute("SELECT message FROM events").fetchall() if tables else []
        messages = [json.loads(message) for (message,) in rows]
        return len({message.get("data", message)["orderId"] for message in messages})

    def test_it_acknowledges_nothing_that_it_has_not_stored(self) -> None:
        self.run_till()
        until(self.connected)
        self.shop.order()
        until(lambda: self.stored() == [1])
        with closing(sqlite3.connect(self.folder / "till.db")) as store:
            store.execute("BEGIN EXCLUSIVE")
            self.shop.order()
            until(
                lambda: self.shop.query("SELECT 1 FROM dinedesk_main.pos_heads WHERE sent_seq = 2")
            )
            self.assertEqual(self.acknowledged(), 1)
            store.execute("ROLLBACK")
        until(lambda: self.acknowledged() == 2)
        self.assertEqual(self.stored(), [1, 2])

    def test_it_goes_on_after_a_restart_of_posd(self) -> None:
        self.run_till()
        until(self.connected)
        self.shop.order()
        until(lambda: self.stored() == [1])
        self.posd.stop()
        self.shop.order()
        self.posd = self.shop.start(port=self.posd.port)
        until(lambda: self.stored() == [1, 2])

    def test_it_stops_when_its_key_is_revoked(self) -> None:
        till = self.run_till()
        until(self.connected)
        self.shop.query("UPDATE dinedesk_main.pos_api_keys SET revoked_at = now()")
        self.assertEqual(till.wait(PATIENCE), 0)

    def test_it_does_not_try_a_wrong_key_again(self) -> None:
        self.key = "pos_wrong"
        self.assertEqual(self.run_till().wait(PATIENCE), 0)
