"""`twistd posd`: its start, refused configurations, reload and stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from posd.daemon.service import is_local
from posd.security import private_ca as certificates
from posd.testing.postgres import test_server
from tests.integration.harness import ROOT, TWISTD, Daemon, Shop
from tests.integration.wire import Till
from tests.scrapes import read_samples

SECONDS = 300.0


def run(arguments: list[str], folder: Path, program: str = "twistd") -> tuple[int, str]:
    """Run posd until it ends by itself. Return its exit status and output."""
    before = [] if program == "twist" else ["-n"]
    ended = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *before, "posd", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return ended.returncode, ended.stdout


def eventually(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {SECONDS} s: {what}")
        time.sleep(0.02)


class RefusingTests(SynchronousTestCase):
    """Permanent errors: a line, and status 78."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        self.made = certificates.make(self.folder / "tls", ["localhost"])

    def configured(self, **values: object) -> Path:
        """Return a valid configuration, except for the given values."""
        settings = {
            "dsn": "host=/nowhere dbname=posd",
            "endpoint": "tcp:port=0:interface=127.0.0.1",
            "certificate": self.made.certificate_path,
            "private_key": self.made.key_path,
            "more": "",
        } | values
        path = self.folder / "posd.toml"
        path.write_text(
            '[database]\ndsn = "{dsn}"\n'
            '[[listen]]\nname = "https"\nendpoint = "{endpoint}"\ntls = true\n'
            '[tls]\ncertificate = "{certificate}"\nprivate_key = "{private_key}"\n'
            '[logging]\nformat = "text"\n{more}\n'.format(**settings)
        )
        return path

    @contextmanager
    def taken(self) -> Iterator[int]:
        """A port that another socket listens on."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            yield taken.getsockname()[1]

    def refused(self, path: Path, *words: str, program: str = "twistd") -> None:
        status, printed = run(["--config", str(path)], self.folder, program)
        self.assertEqual(status, 78, printed)
        said = [line for line in printed.splitlines() if all(word in line for word in words)]
        self.assertEqual(len(said), 1, printed)
        self.assertNotIn("Traceback", printed)
        self.assertEqual([*self.folder.glob("*.pid")], [], "twistd has cleared up")

    def test_a_missing_configuration_ends_the_start(self) -> None:
        self.refused(self.folder / "none.toml", "none.toml")

    def test_a_mistake_in_the_configuration_ends_the_start(self) -> None:
        self.refused(self.configured(more="[limits]\nconnections = -1"), "limits.connections")

    def test_an_invalid_endpoint_ends_the_start(self) -> None:
        self.refused(self.configured(endpoint="carrier-pigeon:coop=3"), "carrier-pigeon")

    def test_a_missing_certificate_ends_the_start(self) -> None:
        path = self.configured(certificate=self.folder / "none.pem")
        self.refused(path, f"{path}: tls.certificate:", "none.pem")

    def test_a_key_of_another_certificate_ends_the_start(self) -> None:
        other = certificates.make(self.folder / "other", ["localhost"])
        self.refused(self.configured(private_key=other.key_path), "key")

    def test_a_port_in_use_ends_the_start(self) -> None:
        with self.taken() as port:
            self.refused(self.configured(endpoint=at(port)), "https", str(port), "in use")

    def test_twist_prints_a_mistake_in_the_configuration(self) -> None:
        self.refused(
            self.configured(more="[limits]\nconnections = -1"),
            "limits.connections",
            program="twist",
        )

    def test_twist_prints_that_a_port_is_in_use(self) -> None:
        with self.taken() as port:
            self.refused(self.configured(endpoint=at(port)), "in use", program="twist")

    def test_a_database_without_the_schema_ends_the_start(self) -> None:
        dsn = test_server().fresh_database()
        self.addCleanup(test_server().drop_database, dsn)
        self.refused(self.configured(dsn=dsn), "posctl bootstrap")

    def test_an_older_schema_ends_the_start(self) -> None:
        shop = Shop.open([])
        self.addCleanup(shop.close)
        shop.query(
            "DELETE FROM dinedesk_main.schema_versions WHERE file = 'main/009_idempotency.sql'"
        )
        self.refused(self.configured(dsn=shop.dsn), "main/009_idempotency.sql", "older")

    def test_a_newer_schema_ends_the_start(self) -> None:
        shop = Shop.open([])
        self.addCleanup(shop.close)
        shop.query(
            "INSERT INTO dinedesk_main.schema_versions (schema_name, file, checksum)"
            " VALUES ('dinedesk_main', 'main/999_tomorrow.sql', '')"
        )
        self.refused(self.configured(dsn=shop.dsn), "main/999_tomorrow.sql", "newer")

    def test_version_is_printed(self) -> None:
        status, printed = run(["--version"], self.folder)
        self.assertEqual(status, 0)
        self.assertRegex(printed, r"posd \d+\.\d+")


def at(port: int) -> str:
    return f"tcp:port={port}:interface=127.0.0.1"


class RunningTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.shop = Shop.open()
        self.addCleanup(self.shop.close)

    def test_sigterm_is_a_clean_stop(self) -> None:
        daemon = self.shop.start(twistd=TWISTD)
        self.assertEqual(daemon.stop(), 0)
        self.assertNotIn("Traceback", daemon.log())
        self.assertNotIn("Unhandled", daemon.log())
        self.assertEqual(self.shop.query("SELECT * FROM dinedesk_main.pos_nodes"), [])

    def test_sigterm_stops_posd_while_it_waits_for_the_database(self) -> None:
        self.shop.dsn = "host=/nowhere dbname=none"
        daemon = self.shop.start(wait=False)
        daemon.wait_listening()
        self.assertEqual(daemon.stop(), 0)

    def test_twist_runs_posd(self) -> None:
        daemon = self.shop.start(wait=False)
        config = self.shop.folder / f"posd-{daemon.port}.toml"
        daemon.kill()
        with (self.shop.folder / "twist.log").open("wb") as log:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("twist")), "posd", "--config", str(config)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        twist = Daemon(daemon.port, self.shop.ca, self.shop.folder / "twist.log", process)
        self.addCleanup(twist.kill)
        twist.wait_ready()
        self.assertEqual(twist.stop(), 0, twist.log())

    def test_a_reload_applies_good_files_and_keeps_the_old_values_otherwise(self) -> None:
        daemon = self.shop.start(twistd=TWISTD)
        path = self.shop.folder / f"posd-{daemon.port}.toml"
        good = path.read_text()
        path.write_text(good + "[limits]\nfailed_auth_per_minute = 1\n")
        self.reload(daemon, "reloaded", 1)
        statuses = [self.attempt(daemon) for _ in range(2)]
        self.assertEqual(statuses, [401, 429])
        self.assertFalse(self.reload_failed(daemon))
        path.write_text(good + "[limits]\nfailed_auth_per_minute = 0\n")
        self.reload(daemon, "not reloaded", 1)
        self.assertIn("limits.failed_auth_per_minute", daemon.log())
        self.assertEqual(self.attempt(daemon), 429)
        self.assertTrue(self.reload_failed(daemon))
        path.write_text(good + "[limits]\nfailed_auth_per_minute = 50\n")
        self.reload(daemon, "#info] reloaded", 2)
        self.assertEqual(self.attempt(daemon), 401)
        self.assertFalse(self.reload_failed(daemon))
        self.assertEqual(daemon.stop(), 0)

    def test_a_till_stays_connected_and_new_connections_get_the_renewed_certificate(self) -> None:
        daemon = self.shop.start()
        key, before = self.shop.key(), self.served(daemon)
        till = Till.dial(daemon, "/ws/pos/kitchen", {"X-API-Key": key})
        self.addCleanup(till.hang_up)
        # One bad value between two good ones, with a good limit in the same file.
        path = self.shop.folder / f"posd-{daemon.port}.toml"
        good, certificate = path.read_text(), self.shop.folder / "tls" / "fullchain.pem"
        intact = certificate.read_bytes()
        certificate.write_bytes(b"no certificate")
        path.write_text(good + "[limits]\nconnections = 1\n")
        self.reload(daemon, "#error] not reloaded", 1)
        self.assertEqual(self.served(daemon), before)
        Till.dial(daemon, "/ws/pos/kitchen", {"X-API-Key": key}).hang_up()
        path.write_text(good)
        certificate.write_bytes(intact)
        # Of the same authority, which the till trusts.
        certificates.make(self.shop.folder / "tls", ["localhost"], replace=True)
        self.reload(daemon, "#info] reloaded", 1)
        self.assertNotEqual(self.served(daemon), before)
        self.shop.publish("kitchen", "note", {"n": 1})
        self.assertEqual(till.receive()["data"], {"n": 1})
        self.assertTrue(till.next_is_pong(1))
        self.assertEqual(daemon.stop(), 0)

    def test_renewed_files_are_loaded_without_a_reload(self) -> None:
        daemon = self.shop.start()
        before = self.served(daemon)
        certificates.make(self.shop.folder / "tls", ["localhost"], replace=True)
        eventually(lambda: self.served(daemon) != before, "the renewed certificate is served")
        self.assertIn("renewed files of [tls] are in force", daemon.log())

    def test_a_reload_finds_keys_that_were_revoked_without_a_notification(self) -> None:
        daemon = self.shop.start()
        till = Till.dial(daemon, "/ws/pos/kitchen", {"X-API-Key": self.shop.key()})
        self.addCleanup(till.hang_up)
        with closing(self.shop.connect()) as connection, connection.cursor() as cursor:
            # Without the trigger that notifies every posd, as after a restored backup.
            cursor.execute("SET session_replication_role = replica")
            cursor.execute("UPDATE dinedesk_main.pos_api_keys SET revoked_at = now()")
        self.reload(daemon, "#info] reloaded", 1)
        self.assertEqual(till.ended().code, 4001)

    def test_systemd_is_notified_of_a_reload_and_its_result(self) -> None:
        with self.manager() as manager:
            daemon = self.shop.start(wait=False)
            self.heard(manager, "READY=1")
            path = self.shop.folder / f"posd-{daemon.port}.toml"
            good = path.read_text()
            for text, status in (
                (good + "[limits]\nconnections = 0\n", "not reloaded"),
                (good, "0 terminals connected"),
            ):
                path.write_text(text)
                before = time.monotonic_ns() // 1000
                daemon.process.send_signal(signal.SIGHUP)
                told = self.heard(manager, "RELOADING=1")
                usec = int(told.partition("MONOTONIC_USEC=")[2])
                self.assertTrue(before <= usec <= time.monotonic_ns() // 1000)
                self.assertIn(status, self.heard(manager, "STATUS="))
                self.heard(manager, "READY=1")

    def test_a_reload_before_posd_is_ready_does_not_end_the_start(self) -> None:
        with self.manager() as manager:
            daemon = self.shop.start(wait=False, dsn="host=/nowhere dbname=none")
            daemon.wait_listening()
            self.reload(daemon, "#info] reloaded", 1)
            self.assertEqual(daemon.stop(), 0)
            said = []
            manager.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    said.append(manager.recv(4096).decode())
        self.assertIn("STOPPING=1", said)
        self.assertEqual([each for each in said if each.startswith(("READY", "RELOADING"))], [])

    def test_the_status_of_a_stop_has_the_number_of_terminals(self) -> None:
        with self.manager() as manager:
            daemon = self.shop.start()
            till = Till.dial(
                daemon, "/ws/pos/kitchen?last_event_id=0", {"X-API-Key": self.shop.key()}
            )
            self.addCleanup(till.hang_up)
            daemon.terminate()
            self.heard(manager, "STOPPING=1")
            self.assertIn("disconnecting 1 terminal", self.heard(manager, "STATUS="))
            self.assertEqual(till.ended().code, 1001)
            self.assertEqual(daemon.stop(), 0)
        self.assertIn("1 terminal disconnected", daemon.log())

    @contextmanager
    def manager(self) -> Iterator[socket.socket]:
        """The service manager's end of the notifications of daemons that start now."""
        address = str(self.shop.folder / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(address)
            manager.settimeout(SECONDS)
            self.patch(os, "environ", {**os.environ, "NOTIFY_SOCKET": address})
            yield manager

    def heard(self, manager: socket.socket, words: str) -> str:
        """Return the next notification with this beginning."""
        while not (told := manager.recv(4096).decode()).startswith(words):
            pass
        return told

    def reload(self, daemon: Daemon, told: str, times: int) -> None:
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: daemon.log().count(told) >= times, told)

    def attempt(self, daemon: Daemon) -> int:
        return daemon.request("GET", "/api/kitchen/pos-status", key="pos_wrong").status

    def reload_failed(self, daemon: Daemon) -> bool:
        """Return the metric of a failed reload."""
        answered = daemon.request("GET", "/metrics", key=self.shop.key("admin", None))
        return bool(read_samples(answered.content.decode())["posd_reload_failed",])

    def served(self, daemon: Daemon) -> bytes:
        """Return the certificate that the server sends."""
        pem = ssl.get_server_certificate(("127.0.0.1", daemon.port))
        return pem.encode()


class OutageTests(SynchronousTestCase):
    def test_posd_waits_for_the_database_at_the_start_and_later(self) -> None:
        server = test_server().another(durable=True)
        self.addCleanup(server.stop)
        shop = Shop.open(server=server)
        self.addCleanup(shop.close)
        key = shop.key("platform")
        server.kill()
        daemon = shop.start(wait=False)
        eventually(lambda: "listening" in daemon.log(), "it listens")
        ready = daemon.request("GET", "/health/ready")
        self.assertEqual((ready.status, ready.headers["retry-after"]), (503, "2"))
        self.assertIn("database", ready.json["missing"])
        self.assertEqual(daemon.request("GET", "/health/live").status, 200)
        event = {"type": "notice", "data": {}}
        self.assertEqual(daemon.request("POST", "/api/kitchen/events", event, key=key).status, 503)
        server.restart()
        daemon.wait_ready()

        def published(call: str) -> int:
            """Return the position, for a publisher that tries until it is answered."""
            headers = {"Idempotency-Key": call}
            for _ in range(200):
                answer = daemon.request(
                    "POST", "/api/kitchen/events", event, key=key, headers=headers
                )
                if answer.status == 201:
                    return int(answer.json["id"])
                self.assertEqual(answer.status, 503)
                time.sleep(0.02)
            raise AssertionError("it was never published")

        self.assertEqual(published("a"), 1)
        server.restart()
        self.assertEqual(published("b"), 2)
        self.assertEqual(daemon.stop(), 0)
        self.assertNotIn("Unhandled", daemon.log())


class LocalTests(SynchronousTestCase):
    def test_where_a_listener_without_keys_may_be(self) -> None:
        for address, local in (
            (UNIXAddress("/run/posd/local.sock"), True),
            (IPv4Address("TCP", "127.0.0.1", 80), True),
            (IPv6Address("TCP", "::1", 80), True),
            (IPv4Address("TCP", "0.0.0.0", 80), False),
            (IPv4Address("TCP", "192.0.2.1", 80), False),
            (IPv6Address("TCP", "::", 80), False),
            (None, False),
        ):
            with self.subTest(address=address):
                self.assertEqual(is_local(address), local)

    def test_an_inherited_socket_that_others_can_reach_cannot_be_trusted(self) -> None:
        shop = Shop.open([])
        self.addCleanup(shop.close)
        path = shop.folder / "posd.toml"
        path.write_text(
            f'[database]\ndsn = "{shop.dsn}"\n'
            '[[listen]]\nname = "local"\nendpoint = "tcp:port=0:interface=127.0.0.1"\n'
            'trusted = true\n[logging]\nformat = "text"\n'
        )
        with socket.socket() as everywhere:
            everywhere.bind(("0.0.0.0", 0))
            everywhere.listen()
            # Like systemd: the descriptor is 3, and the variables name the process itself.
            script = (
                "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
                "os.execv(sys.argv[2], sys.argv[2:])"
            )
            ended = subprocess.run(
                [
                    *(sys.executable, "-c", script, str(everywhere.fileno())),
                    *(str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "posd"),
                    *("--config", str(path)),
                ],
                cwd=shop.folder,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "LISTEN_FDS": "1",
                    "LISTEN_FDNAMES": "local",
                },
                pass_fds=[everywhere.fileno(), *([3] if everywhere.fileno() == 3 else [])],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        self.assertEqual(ended.returncode, 78, ended.stdout)
        self.assertIn("trusted = true is not allowed", ended.stdout)
