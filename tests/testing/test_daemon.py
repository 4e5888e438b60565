"""The daemon process of the tests starts, stops, and reports why it does not start."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from posd.testing.daemon import DaemonFailed, DaemonProcess, _ServiceManager
from tests.cli_runner import as_role, migrated_database

CONFIGURATION = """
[database]
dsn = "{dsn}"
[[listen]]
name = "local"
endpoint = "unix:{folder}/local.sock"
[logging]
format = "text"
"""


def blocked_signals(thread: threading.Thread) -> int:
    """The bit mask of the signals that a thread of this process blocks (proc_pid_status(5))."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text("ascii")
    (line,) = (each for each in status.splitlines() if each.startswith("SigBlk:"))
    return int(line.split()[1], 16)


class ThreadTests(SynchronousTestCase):
    def test_the_thread_takes_no_signal_from_the_main_thread(self) -> None:
        """A command that blocks SIGINT in its main thread until its reactor runs would be interrupted."""
        with tempfile.TemporaryDirectory(prefix="posd-daemon-") as folder:
            manager = _ServiceManager(Path(folder) / "notify")
            blocked = blocked_signals(manager._reading)
            manager.close()
        for number in (signal.SIGINT, signal.SIGTERM):
            self.assertTrue(blocked & 1 << number - 1, number)
            self.assertNotIn(number, signal.pthread_sigmask(signal.SIG_BLOCK, ()))


class DaemonTests(SynchronousTestCase):
    """A database, and a folder for a configuration."""

    def setUp(self) -> None:
        # The path of trial's folder is too long for a unix socket.
        folder = tempfile.TemporaryDirectory(prefix="posd-daemon-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.config = self.folder / "posd.toml"

    def configure(self, dsn: str) -> None:
        self.config.write_text(CONFIGURATION.format(dsn=dsn, folder=self.folder))

    def test_it_is_ready_when_it_has_started_and_gone_when_it_has_stopped(self) -> None:
        self.configure(as_role(migrated_database(), "posd"))
        with DaemonProcess.start(self.config, self.folder) as daemon:
            self.assertTrue(daemon.running)
            self.assertTrue((self.folder / "local.sock").is_socket())
            os.kill(daemon.pid, 0)
        self.assertFalse(daemon.running)
        self.assertRaises(ProcessLookupError, os.kill, daemon.pid, 0)

    def test_the_error_has_the_log_of_a_daemon_that_ends_at_once(self) -> None:
        self.config.write_text("[database]\n")
        error = self.assertRaises(DaemonFailed, DaemonProcess.start, self.config, self.folder)
        self.assertIn("database.dsn", str(error))

    def test_it_may_be_stopped_twice(self) -> None:
        self.configure(as_role(migrated_database(), "posd"))
        daemon = DaemonProcess.start(self.config, self.folder)
        daemon.stop()
        daemon.stop()
        self.assertFalse(daemon.running)
