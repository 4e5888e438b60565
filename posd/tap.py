"""The plugin `posd` of `twistd` and `twist`: its options and its service.

If the configuration or a certificate cannot be used, the process prints one line for each problem and exits
with status 78 (EX_CONFIG).
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
    longdesc = (
        "Delivers a restaurant's online orders to its tills: all of them, at once and in order."
    )
    optParameters = [
        [
            "config",
            "c",
            None,
            f"The configuration file (default: $POSD_CONFIG or {_DEFAULT_CONFIG}).",
        ]
    ]

    def opt_version(self) -> None:
        """Print the version of posd and exit."""
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
    """Create the daemon. Exits with status 78 if a certificate cannot be used."""
    from twisted.internet import reactor

    schedule_by_monotonic_clock(cast(ReactorBase, reactor))
    try:
        return Daemon(reactor, options["path"], options["loaded"], os.environ)
    except StartError as error:
        _exit_config_error(str(error))


def _exit_config_error(message: str) -> NoReturn:
    # The log observer of [logging] is not installed yet, so the journal's priority is written here.
    critical = f"<{LEVELS['critical']}>" if systemd.is_journal(os.environ, sys.stderr) else ""
    for line in message.splitlines():
        print(f"{critical}posd: {line}", file=sys.stderr)
    sys.exit(EX_CONFIG)
