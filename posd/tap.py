"""`twistd posd` and `twist posd`: the command line, and the service that it asks for.

What is wrong with the configuration or a certificate ends the process before it has begun, with a
line each and status 78 (EX_CONFIG).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, NoReturn, cast

from twisted.application.service import IService
from twisted.internet.base import ReactorBase
from twisted.python.usage import Options as UsageOptions

from posd import __version__
from posd.config import model as config
from posd.daemon import systemd
from posd.daemon.service import EX_CONFIG, Daemon
from posd.database import dsn
from posd.errors import ConfigError, StartError
from posd.monitoring.logs import LEVELS
from posd.monitoring.monotonic import schedule_by_monotonic_clock
from posd.security import server_tls as tls

_DEFAULT_CONFIG: Final = "/etc/posd/posd.toml"


class Options(UsageOptions):
    """The command line of `twistd posd`."""

    synopsis = "[--config FILE]"
    longdesc = "Delivers a restaurant's online orders to its tills, at once, every one, in order."
    optParameters = [["config", "c", None, f"The configuration ($POSD_CONFIG, {_DEFAULT_CONFIG})."]]

    def opt_version(self) -> None:
        """Print posd's version and exit."""
        print(f"posd {__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        path = Path(self["config"] or os.environ.get("POSD_CONFIG") or _DEFAULT_CONFIG)
        self["path"] = path
        try:
            self["loaded"] = config.load(path, os.environ, tls.problems, dsn.find_problem)
        except ConfigError as error:
            _exit_config_error(str(error))


def makeService(options: Options) -> IService:
    """Put the daemon together. Ends the process if a certificate cannot be used."""
    from twisted.internet import reactor

    schedule_by_monotonic_clock(cast(ReactorBase, reactor))
    try:
        return Daemon(reactor, options["path"], options["loaded"], os.environ)
    except StartError as error:
        _exit_config_error(str(error))


def _exit_config_error(message: str) -> NoReturn:
    # [logging] is not in force yet.
    critical = f"<{LEVELS['critical']}>" if systemd.is_journal(os.environ, sys.stderr) else ""
    for line in message.splitlines():
        print(f"{critical}posd: {line}", file=sys.stderr)
    sys.exit(EX_CONFIG)
