"""Imported by Python at its start where this folder is on PYTHONPATH: writes down what opens files.

To `POSD_AUDIT`, a line for each file that is opened or looked for, each module that is imported, and each
name that is looked up, with where in the code that was.
"""

import os
import sys
from types import FrameType

_FILES = frozenset(
    (
        *("open", "import", "os.listdir", "os.scandir", "os.chdir", "os.mkdir", "tempfile.mkstemp"),
        *("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"),
        *("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"),
    )
)
"""Audit events (https://docs.python.org/3/library/audit_events.html) that no request may cause."""

_descriptor = os.open(os.environ["POSD_AUDIT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event not in _FILES:
        return
    where: list[str] = []
    frame: FrameType | None
    try:
        frame = sys._getframe(1)
    except ValueError:
        # Python itself opens the program that it is to run.
        return
    while frame is not None and len(where) < 12:
        code = frame.f_code
        if not code.co_filename.startswith("<frozen"):
            where.append(f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno}")
        frame = frame.f_back
    line = f"{event} {arguments[0]!r} {' < '.join(where)}\n"
    os.write(_descriptor, line.encode(errors="replace"))


sys.addaudithook(_hook)
