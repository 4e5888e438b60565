"""`posctl demo` as a process, until an order reaches the till."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from posd.cli.sample_orders import sample_order
from posd.events import normalise
from posd.protocol.jsontext import decode
from tests.integration.harness import ROOT

PATIENCE = 300.0


class DemoTests(SynchronousTestCase):
    """A user tries the demonstration."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def demo(self, *options: str, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "posd.cli", "demo", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        )

        def end() -> None:
            process.kill()
            process.communicate()

        self.addCleanup(end)
        return process

    def test_once_places_an_order_each_way_and_prints_the_times(self) -> None:
        process = self.demo("--once", "--json")
        out, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0, err)
        times = decode(out)
        assert isinstance(times, dict)
        self.assertEqual(list(times), ["sql", "rest"])
        for number, road in enumerate(times.values(), 1):
            self.assertEqual(road["id"], number)
            self.assertTrue(0 < road["milliseconds"] < 300_000, road)

    def test_it_runs_until_ctrl_c_and_removes_everything(self) -> None:
        process = self.demo("--json")
        assert process.stdout is not None
        about = decode(process.stdout.readline())
        assert isinstance(about, dict)
        self.assertEqual(
            list(about), ["url", "tenant", "device", "ca", "config", "pidFile", "dsn", "keys"]
        )
        first, second = (decode(process.stdout.readline()) for _ in range(2))
        assert isinstance(first, dict)
        assert isinstance(second, dict)
        self.assertEqual((first["road"], first["id"]), ("sql", 1))
        self.assertEqual((second["road"], second["id"]), ("rest", 2))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0, err)
        self.assertTrue(err.endswith("The till has received 2 orders.\n"), err)
        self.assertFalse(Path(about["config"]).parent.exists())

    def test_the_printed_files_work_and_are_removed_even_after_a_kill(self) -> None:
        process = self.demo("--json")
        assert process.stdout is not None
        about = decode(process.stdout.readline())
        assert isinstance(about, dict)
        listening = subprocess.run(
            [
                *(sys.executable, "-m", "posd.cli", "listen", "--json", "--count", "1"),
                *("--url", about["url"], "--ca", about["ca"], "--tenant", about["tenant"]),
                *("--key", about["keys"]["till"], "--after", "0"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        event = decode(listening.stdout)
        assert isinstance(event, dict)
        self.assertEqual((event["type"], event["id"]), ("new_order", 1))

        host, port = "localhost", int(about["url"].rpartition(":")[2])
        process.kill()
        self.soon(lambda: not Path(about["config"]).parent.exists())
        self.soon(lambda: not _listens(host, port))

    def test_a_killed_posd_is_restarted_on_the_same_database(self) -> None:
        process = self.demo("--json", "--host", "localhost", "--dir", str(self.folder / "demo"))
        assert process.stdout is not None
        about = decode(process.stdout.readline())
        assert isinstance(about, dict)
        self.assertEqual(about["pidFile"], str(self.folder / "demo" / "posd.pid"))
        self.assertTrue(about["url"].startswith("wss://localhost:"), about)
        ids = []
        for how in (signal.SIGKILL, signal.SIGTERM, None):
            order = decode(process.stdout.readline())
            assert isinstance(order, dict)
            ids.append(order["id"])
            if how is not None:
                before = Path(about["pidFile"]).read_text()
                os.kill(int(before), how)
                self.soon(partial(self.is_changed, Path(about["pidFile"]), before))
        self.assertEqual(ids, [1, 2, 3])
        # An order can arrive before the demonstration has noticed that the restarted posd is ready.
        assert process.stderr is not None
        told: list[str] = []
        while len(told) < 2:
            line = process.stderr.readline()
            self.assertNotEqual(line, "", "the demo ended without a word about posd")
            if "posd ended; it was restarted as process" in line:
                told.append(line)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0, err)
        self.assertNotIn("restarted", err)
        self.assertFalse((self.folder / "demo").is_symlink())

    def test_it_listens_at_the_address_of_host(self) -> None:
        process = self.demo("--json", "--host", "127.0.0.2")
        assert process.stdout is not None
        about = decode(process.stdout.readline())
        assert isinstance(about, dict)
        self.assertTrue(about["url"].startswith("wss://127.0.0.2:"), about)
        trusted = ssl.create_default_context(cafile=about["ca"])
        port = int(about["url"].rpartition(":")[2])
        for name in ("127.0.0.2", "localhost"):
            with socket.create_connection((name, port)) as plain:
                trusted.wrap_socket(plain, server_hostname=name).close()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0, err)

    def test_a_host_that_is_not_this_machine_is_refused(self) -> None:
        for host, code, word in (
            ("0.0.0.0", os.EX_USAGE, "hostname -I"),
            ("::", os.EX_USAGE, "hostname -I"),
            ("192.0.2.1", os.EX_NOHOST, "not this machine"),
            ("no-such-host.invalid", os.EX_NOHOST, "neither an IP address nor"),
        ):
            process = self.demo("--host", host)
            _, err = process.communicate(timeout=PATIENCE)
            self.assertEqual(process.returncode, code, err)
            self.assertRegex(err, rf"\Aposctl: --host {host!r}.*{word}.*\n\Z".replace("'", "'?"))

    def test_dir_replaces_only_the_link_of_a_killed_demonstration(
        self,
    ) -> None:
        (self.folder / "mine").mkdir()
        process = self.demo("--once", "--dir", str(self.folder / "mine"))
        _, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, os.EX_CANTCREAT, err)
        self.assertIn("already exists", err)
        (self.folder / "left").symlink_to("/tmp/posd-demo-that-is-gone")
        process = self.demo("--once", "--dir", str(self.folder / "left"))
        out, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0, err)
        self.assertRegex(out, r"\ASQL → till [\d.]+ ms\nREST → till [\d.]+ ms\n\Z")

    def test_a_port_in_use_is_refused_at_once(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            process = self.demo("--port", port)
            _, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, os.EX_UNAVAILABLE)
        self.assertEqual(err, f"posctl: port {port} is in use: choose another with --port\n")

    def test_without_a_postgresql_the_error_says_how_to_install_one(self) -> None:
        process = self.demo(POSD_PG_BIN=str(self.folder))
        out, err = process.communicate(timeout=PATIENCE)
        self.assertEqual((process.returncode, out), (os.EX_UNAVAILABLE, ""))
        self.assertRegex(err, rf"\Aposctl: POSD_PG_BIN={self.folder} has no .*\n\Z")

    def is_changed(self, path: Path, before: str) -> bool:
        return path.read_text() not in ("", before)

    def soon(self, holds: Callable[[], bool]) -> None:
        """Wait for another process."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)


class SampleOrderTests(SynchronousTestCase):
    """The sample orders are valid orders."""

    def test_the_amounts_add_up(self) -> None:
        for number in range(50):
            data = sample_order(number).data()
            items = data["items"]
            assert isinstance(items, list)
            self.assertEqual(
                data["totalAmount"],
                sum(item["price"] * item["quantity"] for item in items) + Decimal("2.50"),
            )

    def test_sample_orders_need_no_repair(self) -> None:
        data = sample_order(7).data()
        draft = normalise.draft("new_order", data)
        self.assertEqual(
            {name: draft.data[name] for name in ("orderId", "totalAmount")},
            {
                "orderId": "DEMO-0007",
                "totalAmount": data["totalAmount"],
            },
        )

    def test_the_same_number_is_the_same_order(self) -> None:
        self.assertEqual(sample_order(3), sample_order(3))
        self.assertNotEqual(sample_order(3), sample_order(4))


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
