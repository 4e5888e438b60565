"""A daemon of one's own starts, stops, and says why it does not."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from posd.testing.daemon import DaemonFailed, DaemonProcess
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


class DaemonTests(SynchronousTestCase):
    """There is a database, and a folder for a configuration."""

    def setUp(self) -> None:
        # trial's folders are too deep for the name of a unix socket.
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

    def test_one_that_ends_at_once_leaves_its_reason(self) -> None:
        self.config.write_text("[database]\n")
        error = self.assertRaises(DaemonFailed, DaemonProcess.start, self.config, self.folder)
        self.assertIn("database.dsn", str(error))

    def test_stopping_twice_is_stopping_once(self) -> None:
        self.configure(as_role(migrated_database(), "posd"))
        daemon = DaemonProcess.start(self.config, self.folder)
        daemon.stop()
        daemon.stop()
        self.assertFalse(daemon.running)
