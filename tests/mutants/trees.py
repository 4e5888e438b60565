"""Copies of the checkout in which mutants are tested, one after the other in each."""

from __future__ import annotations

import compileall
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import frozen

from tests.documents import ROOT
from tests.mutants.by_hand import Mutant

_WITHOUT: Final = shutil.ignore_patterns(
    ".*_cache", ".git", ".hypothesis", ".venv*", "__pycache__", "_trial_temp*", "build", "dist"
)
_ENDED: Final = 124
"""The exit status that stands for a run that took too long, as that of timeout(1)."""


@frozen
class Tree:
    """A copy of the checkout."""

    folder: Path

    @classmethod
    def copy(cls, folder: Path) -> Tree:
        """Copy the checkout, and compile it once."""
        shutil.copytree(ROOT, folder, ignore=_WITHOUT)
        # Below the hidden folder of a virtual environment nothing is copied, so all of it is the checkout's.
        compileall.compile_dir(folder, quiet=2)
        return cls(folder)

    def notices(self, mutant: Mutant, seconds: float) -> bool:
        """Whether one of the tests fails, or one of the runs takes longer than that."""
        file = self.folder / mutant.path
        file.write_text(mutant.text, "utf-8")
        try:
            return any(self.run(each, seconds) for each in mutant.tests)
        finally:
            # With its time, by which Python knows that the compiled file is that of this text.
            shutil.copy2(ROOT / mutant.path, file)

    def run(self, tests: str, seconds: float) -> int:
        """Run tests until the first one fails; trial's exit status."""
        with subprocess.Popen(
            [sys.executable, "-m", "twisted.trial", "--exitfirst", tests],
            cwd=self.folder,
            # A mutant may be as long and as old as the one before: no compiled file is left of it.
            env={**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                return _ENDED
            finally:
                # Also what the tests have started and left, apart from PostgreSQL, which ends by itself.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
