"""The delivery guarantee with Node's `ws`, the library of deployed tills."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from unittest import SkipTest

from attrs import define, field

from tests.integration.wire import Message
from tests.integration.wire_case import WireCase

_SCRIPT: Final = Path(__file__).with_name("node") / "till.mjs"
_VERSION: Final = "8"
_SECONDS: Final = 300


@functools.cache
def modules() -> Path | str:
    """Return a folder whose node_modules has `ws`, made once, or the reason why there is none."""
    programs = [shutil.which(name) for name in ("node", "npm")]
    if not all(programs):
        return "not run: node and npm are not installed"
    folder = Path(tempfile.mkdtemp(prefix="posd-node-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder)]
    try:
        subprocess.run(
            [*install, f"ws@{_VERSION}"], check=True, capture_output=True, timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"not run: npm could not install ws: {error}"
    return folder


@define
class Run:
    """The report of one run of the script."""

    said: Message | None = None
    events: list[Message] = field(factory=list)
    closed: Message | None = None
    refused: Message | None = None


class NodeTests(WireCase):
    def setUp(self) -> None:
        found = modules()
        if isinstance(found, str):
            print(found)
            raise SkipTest(found)
        self.modules = found
        super().setUp()

    def run_till(
        self, *, query: str = "", headers: Mapping[str, str] = {}, key: str = "", **plan: object
    ) -> Run:
        """Run the script to its end. `plan` has `count`, `ack`, `crash`, `say`, `deflate`."""
        whole = {
            "modules": str(self.modules),
            "ca": str(self.posd.ca),
            "url": f"wss://localhost:{self.posd.port}/ws/pos/{self.slug}{query}",
            "headers": {"X-API-Key": key or self.key, **headers},
            **plan,
        }
        ran = subprocess.run(
            ["node", str(_SCRIPT), json.dumps(whole)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        self.assertEqual((ran.returncode, ran.stderr), (0, ""), ran.stdout)
        run = Run()
        for line in ran.stdout.splitlines():
            self.note(run, json.loads(line))
        return run

    def note(self, run: Run, told: dict[str, Any]) -> None:
        match told:
            case {"said": said}:
                run.said = said
            case {"event": event, "isBinary": binary}:
                self.assertFalse(binary)
                run.events.append(event)
            case {"closed": closed}:
                run.closed = closed
            case {"refused": refused}:
                run.refused = refused

    def test_it_is_let_in_without_compression_and_gets_everything_after_its_position(self) -> None:
        self.publish(20)
        run = self.run_till(query="?last_event_id=5", count=15)
        assert run.said is not None
        self.assertEqual((run.said["resumedFrom"], run.said["extensions"]), (5, ""))
        self.assert_ids(run.events, 6, 20)
        self.assertEqual(run.closed, {"code": 1000, "reason": ""})

    def test_it_resumes_by_header_and_with_the_name_of_the_history(self) -> None:
        self.publish(4)
        stream = self.value("SELECT stream_id::text FROM dinedesk_main.pos_heads WHERE {mine}")
        run = self.run_till(query=f"?stream_id={stream}", headers={"Last-Event-ID": "1"}, count=3)
        self.assert_ids(run.events, 2, 4)

    def test_a_named_till_that_crashes_over_and_over_misses_nothing(self) -> None:
        device = {"X-Device-ID": "POS_NODE_1"}
        self.publish(30)
        first = self.run_till(headers=device, query="?last_event_id=0", count=10, ack=True)
        self.reaches("POS_NODE_1", 10)
        self.proves_itself("POS_NODE_1")
        seen = [each["id"] for each in first.events]
        while not seen or seen[-1] < 30:
            run = self.run_till(
                headers=device, count=4 if seen[-1] < 26 else 30 - seen[-1], ack=True, crash=True
            )
            assert run.said is not None
            resumed = run.said["resumedFrom"]
            # At least once: events acknowledged in the last moment may be sent again.
            self.assertLessEqual(resumed, seen[-1])
            ids = [each["id"] for each in run.events]
            self.assertEqual(ids, list(range(resumed + 1, resumed + 1 + len(ids))))
            seen += ids
        self.assertEqual(sorted(set(seen)), list(range(1, 31)))

    def test_events_that_are_committed_meanwhile_join_without_a_gap(self) -> None:
        self.publish(100)
        with ThreadPoolExecutor(1) as beside:
            running = beside.submit(self.run_till, query="?last_event_id=0", count=400)
            for n in range(30):
                self.publish(10, first=101 + 10 * n)
            self.assert_ids(running.result(_SECONDS).events, 1, 400)

    def test_what_it_says_is_answered(self) -> None:
        self.publish(1)
        say = [{"type": "ping", "id": 7}, {"type": "ack", "id": 1}]
        with ThreadPoolExecutor(1) as beside:
            running = beside.submit(self.run_till, count=1, say=say)
            while not running.done() and self.head() < 100:
                self.publish(1)
            events = running.result(_SECONDS).events
        self.assertIn(7, [each.get("echo") for each in events])
        self.assertIn("no_device", [each.get("code") for each in events])

    def test_a_refusal_reaches_it_as_json(self) -> None:
        run = self.run_till(key="no such key")
        assert run.refused is not None
        self.assertEqual(
            (run.refused["status"], run.refused["body"]["code"]), (401, "unauthorized")
        )
        run = self.run_till(query="?last_event_id=latest")
        assert run.refused is not None
        self.assertEqual(run.refused["status"], 400)

    def test_a_close_code_reaches_it(self) -> None:
        run = self.run_till(say=[{"no": "type"}] * 10)
        self.assertEqual(run.closed, {"code": 1008, "reason": "too many invalid messages"})
