"""A process between a test and its PostgreSQL server. The server ends when either of them dies.

Usage: `keeper.py FOLDER UID GID SIGNAL COMMAND…`. The keeper starts the command, prints its process id
and waits for its end. When the owner dies, standard input reaches its end: the keeper sends the signal,
such as QUIT, to the server, and removes the folder after the server has ended. If the keeper is killed,
Linux sends the same signal to the server (`PR_SET_PDEATHSIG`, prctl(2)). Linux sends it when the
*thread* that forked ends. Therefore a process with a single thread starts the server, and not the test.

The keeper imports only the standard library and runs with `python -I -S`, so that it starts fast and
does not depend on the environment of the tests.
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
    """Run one server. Return its exit status, or 1 if a signal ended it."""
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
    """Return the function that the child calls before exec, so that it ends with its parent."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def prepare() -> None:
        # A shell without job control makes background processes ignore SIGQUIT, and exec keeps that.
        signal.signal(ending, signal.SIG_DFL)
        if prctl is not None:
            # Python calls this function after the change of user, which would clear the setting.
            prctl(_PR_SET_PDEATHSIG, int(ending), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return prepare


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
