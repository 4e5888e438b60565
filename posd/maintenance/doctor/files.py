"""The configuration and the files that it names: what is wrong in them, who can read and write them."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen
from psycopg2.extensions import parse_dsn

from posd.config import model as config
from posd.config.files import Problems, find_files
from posd.config.model import Config
from posd.database import dsn as dsn_syntax
from posd.errors import ConfigError
from posd.maintenance.doctor import CheckResult, CheckState, fault, ok, unknown, warning
from posd.security import server_tls

USER: Final = "posd"
"""Whom the unit runs the daemon as."""

CREDENTIALS: Final = Path("/run/credentials/posd.service")
"""Where systemd keeps the unit's credentials while it runs, for root and the daemon (systemd.exec(5))."""


@frozen
class FileReader:
    """Somebody who reads files: a user with the groups that they are in."""

    name: str
    uid: int
    gids: frozenset[int]

    def may(self, path: Path, bit: int) -> bool:
        """Whether the modes of a file let them; access control lists are not looked at."""
        found = path.stat()
        if self.uid == 0:
            return True
        if found.st_uid == self.uid:
            return bool(found.st_mode & (bit << 6))
        if found.st_gid in self.gids:
            return bool(found.st_mode & (bit << 3))
        return bool(found.st_mode & bit)

    def can_read(self, path: Path) -> Path | None:
        """None if they can, else what is in the way: the file or a folder above it."""
        for folder in reversed(path.resolve().parents):
            if not self.may(folder, 0o1):
                return folder
        return None if self.may(path, 0o4) else path


def file_reader(name: str = USER) -> FileReader | None:
    """The user of this name, or None if there is none on this machine."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    groups = {each.gr_gid for each in grp.getgrall() if name in each.gr_mem}
    return FileReader(name, entry.pw_uid, frozenset({entry.pw_gid, *groups}))


def runs_as_posd() -> bool:
    """Whether this process sees of files what the daemon does."""
    who = file_reader()
    return who is not None and who.uid == os.geteuid()


@contextmanager
def as_user(name: str | None) -> Iterator[None]:
    """Be that user as far as others can see, where root asks and there is one of this name.

    PostgreSQL's peer authentication asks the kernel who has connected, and gets the effective user.
    """
    who = None if name is None or os.geteuid() != 0 else file_reader(name)
    if who is None:
        yield
        return
    os.seteuid(who.uid)
    try:
        yield
    finally:
        os.seteuid(0)


def daemon_environment(environ: Mapping[str, str], folder: Path = CREDENTIALS) -> Mapping[str, str]:
    """The environment with the credentials of the daemon in it, where it runs and they can be read."""
    if "CREDENTIALS_DIRECTORY" in environ or not os.access(folder, os.R_OK | os.X_OK):
        return environ
    return {**environ, "CREDENTIALS_DIRECTORY": str(folder)}


def load_configuration(
    path: Path, environ: Mapping[str, str]
) -> tuple[Config | None, list[CheckResult]]:
    """Load the configuration as the daemon does; return it and one line for each problem.

    It is None if it cannot be used at all. One whose certificates alone cannot be used is returned
    all the same, so that the rest of it can be examined.
    """
    try:
        found = config.load(path, environ, server_tls.problems, dsn_syntax.find_problem)
    except ConfigError as error:
        lines = [_problem(each, environ) for each in error.problems]
    else:
        return found, [ok("configuration", f"{path} can be used")]
    try:
        return config.load(path, environ, dsn_problem=dsn_syntax.find_problem), lines
    except ConfigError:
        return None, lines


def _problem(problem: str, environ: Mapping[str, str]) -> CheckResult:
    """Tell one problem of the configuration. Each of them stops the daemon when it starts."""
    if "asks for the credential" in problem and "CREDENTIALS_DIRECTORY" not in environ:
        remedy = "credentials are there while posd runs: ask again as root then"
        return CheckResult("configuration", CheckState.WARNING, problem, remedy, stops=True)
    if ": tls." in problem and "(Permission denied)" in problem and not runs_as_posd():
        # Whether posd can read it is told by `examine_permissions`.
        return CheckResult(
            "configuration", CheckState.UNKNOWN, problem, "ask again as root", stops=True
        )
    remedy = "change the file and see `posctl check-config`; /etc/posd/posd.toml explains each key"
    if "cannot be read: Permission denied" in problem:
        remedy = "run this as root or as the user posd"
    return fault("configuration", problem, remedy, stops=True)


def examine_permissions(
    path: Path, settings: Config | None, who: FileReader | None
) -> Iterator[CheckResult]:
    """Who else can read or write what the daemon relies on."""
    if who is None:
        yield unknown(
            "files", f"there is no user {USER!r} here, so nothing is said of rights on files"
        )
    secret = settings is not None and any(
        dsn is not None and _has_password(dsn)
        for dsn in (
            settings.database.dsn,
            settings.database.reader_dsn,
            settings.database.admin_dsn,
        )
    )
    for file in find_files(path, Problems()):
        yield from _file("files", file, who, secret=secret)
    if settings is not None:
        yield from _of_dsn("database.dsn", settings.database.dsn, who)
        if settings.database.reader_dsn is not None:
            yield from _of_dsn("database.reader_dsn", settings.database.reader_dsn, who)
    tls = (
        None if settings is None or not any(each.tls for each in settings.listen) else settings.tls
    )
    if tls is not None:
        for name, secret in (
            (tls.certificate, False),
            (tls.private_key, True),
            (tls.client_ca, False),
        ):
            if name is not None:
                yield from _file("files", Path(name), who, secret=secret)


def _of_dsn(key: str, dsn: str, who: FileReader | None) -> Iterator[CheckResult]:
    """The files that libpq reads for the daemon. It says nothing of one that it cannot read."""
    for option, path, consequence in dsn_syntax.named_files(dsn):
        try:
            path.stat()
            unreadable = who is not None and who.can_read(path) is not None
        except OSError as error:
            what = f"{key} names {path} as {option}: {error.strerror}, {consequence}"
            yield warning("files", what, f"put the file there, or change {option}")
            continue
        if unreadable and who is not None:
            what = f"{key} names {path} as {option}, which {who.name} cannot read, {consequence}"
            yield warning("files", what, f"chown {who.name} {path}")
        elif _is_too_open(option, path):
            what = f"{key} names {path} as {option}, which others can read, {consequence}"
            yield warning("files", what, f"chmod 0600 {path}")


def _is_too_open(option: str, path: Path) -> bool:
    """Whether libpq passes over a password file, or refuses a key, since others may read it.

    A key of root's may be read by its group (libpq manual, "Client Certificates").
    """
    found = path.stat()
    mine, grouped = not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO), found.st_uid == 0
    if option == "sslkey":
        return not mine and not (grouped and not found.st_mode & stat.S_IRWXO)
    return option == "passfile" and not mine


def _file(part: str, path: Path, who: FileReader | None, *, secret: bool) -> Iterator[CheckResult]:
    lines: list[CheckResult] = []
    try:
        mode = path.stat().st_mode
        owner = path.stat().st_uid
        if mode & stat.S_IWOTH:
            what = f"{path} can be written by everybody"
            lines.append(fault(part, what, f"chmod o-w {path}"))
        if secret and mode & stat.S_IROTH:
            what = f"{path} has a secret in it and can be read by everybody"
            lines.append(fault(part, what, f"chown root:posd {path} && chmod 0640 {path}"))
        if who is not None:
            obstacle = who.can_read(path)
            if obstacle is not None:
                what = f"{path} cannot be read by {who.name}"
                remedy = f"chown root:{who.name} {path} && chmod 0640 {path}"
                if obstacle != path:
                    what, remedy = f"{what}: {obstacle} is in the way", f"chmod o+x {obstacle}"
                lines.append(fault(part, what, remedy, stops=True))
            elif owner not in (0, who.uid):
                what = f"{path} belongs to neither root nor {who.name}"
                lines.append(warning(part, what, f"chown root:{who.name} {path}"))
    except OSError as error:
        # What cannot be used because of that is told where it is used.
        lines.append(unknown(part, f"{path}: {error.strerror}"))
    yield from lines or [ok(part, f"{path} has the rights that it should have")]


def _has_password(dsn: str) -> bool:
    return "password" in parse_dsn(dsn)
