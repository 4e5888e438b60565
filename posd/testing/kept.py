"""A program that a keeper ends when the tests die (see `posd.testing.keeper`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, Self

from attrs import define

from posd.testing import keeper
from posd.testing.account import SystemAccount, environment

_END_SECONDS: Final = 60.0


@define(eq=False)
class KeptProcess:
    """A program with its keeper."""

    pid: int
    """0 if it did not start."""
    _keeper: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        folder: Path,
        account: SystemAccount,
        ending: Literal["QUIT", "TERM"],
        command: Sequence[str],
        environ: Mapping[str, str] = {},
    ) -> Self:
        """Start a program as an account. Its output goes to the file `log` of `folder`.

        If this process dies first, the keeper sends the signal `ending` to the program and removes
        `folder`.
        """
        kept = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", keeper.__file__),
                *(str(folder), str(account.uid), str(account.gid), ending, *command),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={**environment(), **environ},
            # Ctrl-C in the terminal must reach only the tests, which then stop the program.
            start_new_session=True,
        )
        assert kept.stdout is not None
        with kept.stdout as answer:
            return cls(int(answer.readline() or 0), kept)

    @property
    def running(self) -> bool:
        return bool(self.pid) and self._keeper.poll() is None

    def end(self, how: signal.Signals) -> bool:
        """Send a signal to a running program and wait for its end. Return False after a minute."""
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, how)
        try:
            self._keeper.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        return True
