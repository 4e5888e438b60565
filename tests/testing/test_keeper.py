"""The keeper: the server ends with its owner, even if signals are ignored."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from posd.testing import keeper

SECONDS = 300.0
_WAIT = "import signal; signal.pause()"
_AS_IN_THE_BACKGROUND = 'trap "" QUIT INT; exec "$@"'
"""The signal settings of `command &` in a shell without job control (POSIX, Shell Command Language §2.11)."""


class BackgroundTests(SynchronousTestCase):
    """A server without signal handlers in the background of a script."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.keeper = subprocess.Popen(
            [
                *("sh", "-c", _AS_IN_THE_BACKGROUND, "sh", sys.executable, "-I", "-S"),
                *(keeper.__file__, str(self.folder), str(os.geteuid()), str(os.getegid()), "QUIT"),
                *(sys.executable, "-c", _WAIT),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.enterContext(self.keeper)
        self.addCleanup(self.keeper.kill)
        assert self.keeper.stdout is not None
        self.server = int(self.keeper.stdout.readline())
        self.addCleanup(self.end_server)

    def end_server(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server, signal.SIGKILL)

    def test_it_ends_with_its_owner(self) -> None:
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        self.assertEqual(self.keeper.wait(SECONDS), 1)
        self.assertFalse(self.folder.exists())

    def test_it_ends_with_its_keeper(self) -> None:
        if sys.platform != "linux":
            raise SkipTest("prctl(PR_SET_PDEATHSIG) is Linux's")
        server = os.pidfd_open(self.server)
        self.addCleanup(os.close, server)
        self.keeper.kill()
        ended, _, _ = select.select([server], [], [], SECONDS)
        self.assertEqual(ended, [server])
