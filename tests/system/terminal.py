"""Terminals of a machine: a shell that executes block after block."""

from __future__ import annotations

import subprocess
import time
from select import select
from typing import Final

from attrs import define

from tests.system.machine import Machine

_FOLDER: Final = "/run/terminals"
# The longest block installs PostgreSQL.
_BLOCK_SECONDS: Final = 600.0
_LOOK_SECONDS: Final = 0.05
_ENVIRON: Final = {
    "COLUMNS": "110",
    "TERM": "dumb",
    # A reader that comes later gets the earlier output too.
    "DEBIAN_FRONTEND": "noninteractive",
}


class BlockFailed(Exception):
    """A command of a block ended with a status other than 0. The text is the output of the block."""


@define(eq=False)
class Terminal:
    """A root shell. It ends at the first command that fails."""

    _machine: Machine
    name: str
    _shell: subprocess.Popen[str]
    _typed: int = 0

    @classmethod
    def open(cls, machine: Machine, name: str) -> Terminal:
        """Log in."""
        machine.run("mkdir", "-p", _FOLDER)
        shell = subprocess.Popen(
            machine.entering("bash", "-e", environ=_ENVIRON),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return cls(machine, name, shell)

    def type(self, block: str) -> str:
        """Run a block and wait for its end. Return its output. The shell keeps its folder and variables."""
        began = self.begin(block)
        return self.end(began)

    def begin(self, block: str) -> str:
        """Run a block without waiting. Return its name, for `end`."""
        self._typed += 1
        file = f"{_FOLDER}/{self.name}-{self._typed}"
        self._machine.path(file).write_text(block, "utf-8")
        self._machine.path(f"{file}.out").touch()
        assert self._shell.stdin is not None
        self._shell.stdin.write(f". {file} >{file}.out 2>&1 </dev/null; echo done\n")
        self._shell.stdin.flush()
        return file

    def end(self, began: str) -> str:
        """Wait for the end of a block. Return its output."""
        assert self._shell.stdout is not None
        if not select([self._shell.stdout], [], [], _BLOCK_SECONDS)[0]:
            raise BlockFailed(f"{self.screen(began)}… and no end within {_BLOCK_SECONDS:.0f} s")
        if self._shell.stdout.readline() != "done\n":
            raise BlockFailed(self.screen(began))
        return self.screen(began)

    def screen(self, began: str) -> str:
        """Return the output of a block so far."""
        return self._machine.path(f"{began}.out").read_text("utf-8", "replace")

    def await_(self, began: str, text: str, seconds: float) -> None:
        """Wait until a running block has printed a text."""
        deadline = time.monotonic() + seconds
        while text not in self.screen(began):
            if self._shell.poll() is not None or time.monotonic() > deadline:
                raise BlockFailed(self.screen(began))
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """End the shell."""
        self._shell.kill()
        self._shell.communicate()
