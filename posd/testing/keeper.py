"""The process between a test and its PostgreSQL: the server lives exactly as long as both do.

Run as a program, `keeper.py FOLDER UID GID SIGNAL COMMAND…`. It starts the command, prints its process
id and waits for its end. Standard input reaches its end however the owner dies: then the keeper sends
the server the signal, such as QUIT, and removes the folder when the server has ended. If the keeper
itself is killed, Linux sends the server the same signal (`PR_SET_PDEATHSIG`, prctl(2)); that signal
follows the *thread* that forked, which is why a process with a single one does it and not the test.

It imports nothing but the standard library and runs with `python -I -S`: starting is quick, and
what the tests do to their environment cannot reach it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Keep one server; the exit status is the server's, or 1 if it ended by a signal."""
    folder, uid, gid, name, *command = arguments
    ending = signal.Signals[f"SIG{name}"]
    unprivileged = uid != str(os.geteuid())
    with open(os.path.join(folder, "log"), "ab") as log:  # noqa: PTH118, PTH123
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            user=int(uid) if unprivileged else None,
            group=int(gid) if unprivileged else None,
            extra_groups=[] if unprivileged else None,
            preexec_fn=_die_with_parent(os.getpid(), ending),
        )
    print(server.pid, flush=True)
    abandoned = threading.Event()

    def wait_for_owner() -> None:
        os.read(0, 1)
        abandoned.set()
        server.send_signal(ending)

    threading.Thread(target=wait_for_owner, daemon=True).start()
    status = server.wait()
    if abandoned.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 1


def _die_with_parent(parent: int, ending: signal.Signals) -> Callable[[], None]:
    """What the child does before it becomes the server, so that it can be ended by our signal."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def prepare() -> None:
        # A shell without job control has what it starts by `&` ignore it, and exec keeps that.
        signal.signal(ending, signal.SIG_DFL)
        if prctl is not None:
            # After the change of user, which would clear it.
            prctl(_PR_SET_PDEATHSIG, int(ending), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return prepare


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
