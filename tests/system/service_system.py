"""The daemon as an installed unit: started, reloaded, killed, hung, restarted and stopped.

All tests share one machine. Each test prints how long its action took in this run on this machine.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from tests.system import installation
from tests.system.installation import LOCAL, PLACE
from tests.system.machine import CommandFailed
from tests.system.till import Till

_WRONG: Final = "/etc/posd/conf.d/wrong.toml"
_HANG: Final = "/etc/systemd/system/posd.service.d/hang.conf"
_HANGING: Final = """
import signal, threading

def stuck_in_here():
    threading.Event().wait()

def hang(*_):
    from twisted.internet import reactor
    reactor.callFromThread(stuck_in_here)

signal.signal(signal.SIGUSR1, hang)
"""
"""A module that makes the reactor hang at SIGUSR1. Python imports it at the start."""

_CALLING: Final = """
import collections, json, socket, ssl, sys, threading

context = ssl.create_default_context(cafile="/etc/posd/tls/ca.pem")
enough = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), enough.set()), daemon=True).start()
came = collections.Counter()
while not enough.is_set():
    try:
        with socket.create_connection(("localhost", 9010), 60) as raw:
            with context.wrap_socket(raw, server_hostname="localhost") as line:
                line.sendall(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
                came[line.recv(1000).decode().split()[1]] += 1
    except OSError as error:
        came[type(error).__name__] += 1
    if came.total() == 1:
        print("calling", flush=True)
print(json.dumps(came))
"""


def told(what: str, seconds: float) -> None:
    print(f"\n    {what}: {seconds:.2f} s", file=sys.__stdout__, flush=True)


class ServiceTestCase(SynchronousTestCase):
    """Begins with a running posd, and the socket in front of it."""

    def setUp(self) -> None:
        self.posd = installation.shared()
        self.posd.systemctl("start", "posd")

    def till(self) -> Till:
        till = self.posd.till()
        self.addCleanup(till.stop)
        return till

    def pid(self) -> str:
        return self.posd.shown("posd", "MainPID")

    def health(self, at: str = LOCAL) -> Any:
        return json.loads(self.posd.ask("/health", at))

    def await_state(self, unit: str, state: str) -> None:
        what = f"{unit} is {state}"
        self.posd.machine.await_(lambda: self.posd.shown(unit, "ActiveState") == state, what)


class Running(ServiceTestCase):
    def test_once_it_is_started_it_serves(self) -> None:
        self.posd.systemctl("stop", "posd.socket", "posd")
        began = time.monotonic()
        self.posd.systemctl("start", "posd")
        told("start to READY", time.monotonic() - began)
        self.assertEqual(self.health()["status"], "ok")

    def test_it_has_no_privilege_and_nothing_that_it_could_change(self) -> None:
        status = self.posd.machine.run("cat", f"/proc/{self.pid()}/status")
        facts = dict(re.findall(r"^(\w+):\t(.+)$", status, re.MULTILINE))
        uid = self.posd.machine.run("id", "--user", "posd").strip()
        self.assertEqual(set(facts["Uid"].split()), {uid})
        self.assertEqual((int(facts["CapEff"], 16), int(facts["CapBnd"], 16)), (0, 0))
        self.assertEqual((facts["NoNewPrivs"], facts["Seccomp"]), ("1", "2"))
        for place in "/etc/posd", "/opt/posd", "/var", "/":
            with self.assertRaises(CommandFailed) as caught:
                seen = ("nsenter", "--target", self.pid(), "--mount")
                self.posd.machine.run(*seen, "touch", f"{place}/changed")
            self.assertIn("Read-only file system", caught.exception.output)

    def test_its_process_is_in_the_metrics(self) -> None:
        metrics = self.posd.ask("/metrics")
        for name in "resident_memory_bytes", "cpu_seconds_total", "open_fds":
            self.assertRegex(metrics, rf"(?m)^process_{name} [0-9]")

    def test_an_order_that_a_shop_writes_comes_to_a_till_over_tls(self) -> None:
        till = self.till()
        self.posd.order("SQL-1")
        till.await_order("SQL-1")

    def test_a_reload_shows_a_new_certificate_and_leaves_the_till_connected(self) -> None:
        till, before = self.till(), self.posd.shown_certificate()
        installation.make_certificate(self.posd)
        began = time.monotonic()
        self.posd.systemctl("reload", "posd")
        self.posd.machine.await_(
            lambda: self.posd.shown_certificate() == self.posd.certificate(), "the new certificate"
        )
        told("reload, until a new connection sees the new certificate", time.monotonic() - began)
        self.assertNotEqual(self.posd.certificate(), before)
        self.posd.order("RELOADED-1")
        till.await_order("RELOADED-1")
        self.assertEqual(till.connections, 1)


class Failing(ServiceTestCase):
    def test_killed_it_comes_back_and_the_till_gets_everything_once(self) -> None:
        till, pid = self.till(), self.pid()
        self.posd.order("KILLED-1")
        till.await_order("KILLED-1")
        began = time.monotonic()
        self.posd.machine.run("kill", "-KILL", pid)
        self.posd.order("KILLED-2")
        till.await_order("KILLED-2")
        told("kill to resumed till", time.monotonic() - began)
        self.posd.order("KILLED-3")
        till.await_order("KILLED-3")
        self.assertEqual(till.orders_like("KILLED"), ["KILLED-1", "KILLED-2", "KILLED-3"])
        self.assertEqual(till.connections, 2)
        self.assertNotIn(self.pid(), ("0", pid))

    def test_a_hung_event_loop_is_ended_by_the_watchdog_which_says_where_it_hung(self) -> None:
        self.posd.write("/opt/hang/sitecustomize.py", _HANGING)
        patience = "WatchdogSec=2s\nEnvironment=PYTHONPATH=/opt/hang\n"
        self.posd.write(_HANG, f"[Service]\n{patience}")
        self.addCleanup(self.posd.systemctl, "daemon-reload")
        self.addCleanup(self.posd.machine.path(_HANG).unlink)
        self.posd.systemctl("daemon-reload")
        self.posd.systemctl("restart", "posd")
        till, pid = self.till(), self.pid()
        began = time.monotonic()
        self.posd.machine.run("kill", "-USR1", pid)
        self.posd.order("HUNG-1")
        till.await_order("HUNG-1")
        told("hang to resumed till, of a watchdog of 2 s", time.monotonic() - began)
        journal = self.posd.machine.journal("posd", f"_PID={pid}", "+", "_PID=1")
        self.assertIn("Watchdog timeout", journal)
        self.assertIn("in stuck_in_here", journal)

    def test_a_wrong_configuration_ends_it_with_78_and_it_is_not_tried_again(self) -> None:
        self.posd.systemctl("stop", "posd.socket", "posd")
        self.posd.systemctl("disable", "posd.socket")
        self.addCleanup(self.posd.systemctl, "enable", "posd.socket")
        self.misconfigure()
        with self.assertRaises(CommandFailed):
            self.posd.systemctl("start", "posd")
        self.assertEqual(self.posd.shown("posd", "ActiveState"), "failed")
        self.assertEqual(self.posd.shown("posd", "ExecMainStatus"), "78")
        self.assertEqual(self.posd.shown("posd", "NRestarts"), "0")
        critical = self.posd.machine.journal("posd", "--priority=crit", "--lines=20")
        self.assertIn("limits.event_bytes", critical)

    def test_nor_do_tills_at_the_socket_have_it_tried_for_ever(self) -> None:
        till = self.till()
        self.misconfigure()
        self.posd.systemctl("stop", "posd")
        self.await_state("posd.socket", "failed")
        self.assertEqual(self.posd.shown("posd", "ExecMainStatus"), "78")
        self.posd.machine.path(_WRONG).unlink()
        self.posd.systemctl("start", "posd")
        till.await_connections(2)

    def misconfigure(self) -> None:
        self.posd.write(_WRONG, '[limits]\nevent_bytes = "1B"\n')
        self.addCleanup(self.posd.machine.path(_WRONG).unlink, missing_ok=True)


class Ending(ServiceTestCase):
    def test_restarted_behind_its_socket_it_refuses_nobody_and_loses_nothing(self) -> None:
        till, pid = self.till(), self.pid()
        calling = self.call()
        began = time.monotonic()
        self.posd.systemctl("restart", "--no-block", "posd")
        self.posd.order("RESTARTED-1")
        till.await_order("RESTARTED-1")
        self.posd.machine.await_(lambda: self.pid() not in ("0", pid), "another process")
        self.await_state("posd", "active")
        told("restart through the socket", time.monotonic() - began)
        came = json.loads(calling.communicate(timeout=60)[0])
        self.assertNotIn("ConnectionRefusedError", came)
        self.assertGreater(came["404"], 1, came)
        self.assertEqual(till.orders_like("RESTARTED"), ["RESTARTED-1"])
        # The connection waited until the database was available, and was not refused.
        self.assertNotIn("503", " ".join(till.said))

    def call(self) -> subprocess.Popen[str]:
        """Connect repeatedly, beginning before the action."""
        calling = subprocess.Popen(
            self.posd.machine.entering(f"{PLACE}/bin/python", "-c", _CALLING),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(calling.kill)
        assert calling.stdout is not None
        self.assertEqual(calling.stdout.readline(), "calling\n")
        return calling

    def test_stopped_it_sends_the_till_away_and_ends_with_0(self) -> None:
        till = self.till()
        self.posd.systemctl("stop", "posd.socket")
        began = time.monotonic()
        self.posd.systemctl("stop", "posd")
        told("stop", time.monotonic() - began)
        self.assertEqual(self.posd.shown("posd", "Result"), "success")
        self.assertEqual(self.posd.shown("posd", "ExecMainStatus"), "0")
        till.await_said("closed with 1001")


class Journal(ServiceTestCase):
    def test_it_has_priorities_one_line_for_each_connections_end_and_nothing_secret(self) -> None:
        self.posd.systemctl("restart", "posd")
        invocation = self.posd.shown("posd", "InvocationID")
        till = self.till()
        self.posd.order("SECRET-1", name="Zebedee Discreet")
        till.await_order("SECRET-1")
        till.stop()
        self.spoil_the_certificate()
        self.posd.systemctl("stop", "posd.socket", "posd")
        entries = [
            entry for entry in self.entries() if entry.get("_SYSTEMD_INVOCATION_ID") == invocation
        ]
        ends = [entry for entry in entries if "till gone" in entry["MESSAGE"]]
        self.assertEqual(len(ends), 1, ends)
        self.assertIn("device=POS_1", ends[0]["MESSAGE"])
        refused = [entry for entry in entries if "not reloaded" in entry["MESSAGE"]]
        self.assertEqual({entry["PRIORITY"] for entry in refused}, {"3"})
        self.assertEqual({entry["PRIORITY"] for entry in entries} - {"3", "4"}, {"6"})
        everything = json.dumps(self.entries())
        for secret in self.posd.key, "Zebedee", "Discreet":
            self.assertNotIn(secret, everything)

    def spoil_the_certificate(self) -> None:
        """Make a reload fail."""
        self.posd.write(_WRONG, '[tls]\ncertificate = "/etc/posd/posd.toml"\n')
        self.addCleanup(self.posd.machine.path(_WRONG).unlink)
        self.posd.systemctl("reload", "posd")
        self.posd.machine.await_(
            lambda: "not reloaded" in self.posd.machine.journal("posd", "--lines=5"), "a refusal"
        )

    def entries(self) -> list[dict[str, str]]:
        """Return the journal entries of all units since the boot."""
        lines = self.posd.machine.run("journalctl", "--output=json", "--no-pager").splitlines()
        return [json.loads(line) for line in lines]


class Instances(ServiceTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.posd.systemctl("stop", "posd.socket", "posd")
        self.addCleanup(self.posd.systemctl, "stop", "posd@*.socket", "posd@*.service")

    def test_two_share_the_port_and_a_till_goes_from_one_to_the_other(self) -> None:
        self.posd.systemctl("start", "posd@1")
        till = self.till()
        self.posd.systemctl("start", "posd@2")
        for instance in "1", "2":
            self.assertEqual(self.health(f"/run/posd-{instance}/local.sock")["status"], "ok")
        self.posd.order("SHARED-1")
        till.await_order("SHARED-1")
        self.posd.systemctl("stop", "posd@1.socket", "posd@1.service")
        self.posd.order("SHARED-2")
        till.await_order("SHARED-2")
        self.posd.systemctl("start", "posd@1")
        self.assertEqual(till.orders_like("SHARED"), ["SHARED-1", "SHARED-2"])
        self.assertEqual(till.connections, 2)
