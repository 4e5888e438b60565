"""The reactor of one command, in a process of its own, because a reactor runs only once."""

from __future__ import annotations

import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.harness import ROOT

SECONDS = 300.0

_EARLY = """
import os, signal, sys
from twisted.internet.defer import Deferred
from posd.cli.reactor import run

async def main(reactor):
    reactor.addSystemEventTrigger("before", "shutdown", print, "shut down")
    # A Deferred keeps what is raised in a callback.
    early = Deferred().addCallback(lambda _: os.kill(os.getpid(), signal.NAME))
    early.addErrback(print).callback(None)
    await Deferred()

try:
    run(main)
except KeyboardInterrupt:
    print("interrupted")
"""


class SignalTests(SynchronousTestCase):
    def test_a_signal_before_the_reactor_runs_stops_it(self) -> None:
        for name in ("SIGINT", "SIGTERM"):
            with self.subTest(name=name):
                ran = subprocess.run(
                    [sys.executable, "-c", _EARLY.replace("NAME", name)],
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    capture_output=True,
                    text=True,
                    timeout=SECONDS,
                    check=False,
                )
                self.assertEqual((ran.stdout, ran.stderr), ("shut down\ninterrupted\n", ""))
