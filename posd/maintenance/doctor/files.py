"""Check the configuration and the files that it names: their contents, and who can read and write them."""

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
"""The user of the daemon in the systemd unit."""

CREDENTIALS: Final = Path("/run/credentials/posd.service")
"""The unit's credentials while it runs, readable for root and the daemon (systemd.exec(5))."""


@frozen
class FileReader:
    """A user and the groups of that user, for checks of file permissions."""

    name: str
    uid: int
    gids: frozenset[int]

    def may(self, path: Path, bit: int) -> bool:
        """Return whether the mode of a file grants `bit` (4 read, 1 search). ACLs are ignored."""
        found = path.stat()
        if self.uid == 0:
            return True
        if found.st_uid == self.uid:
            return bool(found.st_mode & (bit << 6))
        if found.st_gid in self.gids:
            return bool(found.st_mode & (bit << 3))
        return bool(found.st_mode & bit)

    def can_read(self, path: Path) -> Path | None:
        """Return None if the user can read the file, else the file or parent folder that prevents it."""
        for folder in reversed(path.resolve().parents):
            if not self.may(folder, 0o1):
                return folder
        return None if self.may(path, 0o4) else path


def file_reader(name: str = USER) -> FileReader | None:
    """Return the user of this name, or None if this machine has no such user."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    groups = {each.gr_gid for each in grp.getgrall() if name in each.gr_mem}
    return FileReader(name, entry.pw_uid, frozenset({entry.pw_gid, *groups}))


def runs_as_posd() -> bool:
    """Return whether this process has the user id of the daemon."""
    who = file_reader()
    return who is not None and who.uid == os.geteuid()


@contextmanager
def as_user(name: str | None) -> Iterator[None]:
    """Switch the effective user id to that of `name`, if the process is root and the user exists.

    PostgreSQL's peer authentication sees the effective user of the client.
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
    """Return the environment, with `CREDENTIALS_DIRECTORY` of the running daemon if it is readable."""
    if "CREDENTIALS_DIRECTORY" in environ or not os.access(folder, os.R_OK | os.X_OK):
        return environ
    return {**environ, "CREDENTIALS_DIRECTORY": str(folder)}


def load_configuration(
    path: Path, environ: Mapping[str, str]
) -> tuple[Config | None, list[CheckResult]]:
    """Load the configuration as the daemon does. Return the configuration and a result for each problem.

    The configuration is None if it cannot be used. If only the certificates cannot be used, the
    configuration is returned, so that the other checks can be made.
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
    """Return the result for one problem of the configuration. Each problem prevents a start of posd."""
    if "asks for the credential" in problem and "CREDENTIALS_DIRECTORY" not in environ:
        remedy = "credentials exist only while posd runs: start posd and try again as root"
        return CheckResult("configuration", CheckState.WARNING, problem, remedy, stops=True)
    if ": tls." in problem and "(Permission denied)" in problem and not runs_as_posd():
        # `examine_permissions` reports whether the user posd can read the file.
        return CheckResult(
            "configuration", CheckState.UNKNOWN, problem, "try again as root", stops=True
        )
    remedy = "correct the file and run `posctl check-config`; /etc/posd/posd.toml explains each key"
    if "cannot be read: Permission denied" in problem:
        remedy = "run this as root or as the user posd"
    return fault("configuration", problem, remedy, stops=True)


def examine_permissions(
    path: Path, settings: Config | None, who: FileReader | None
) -> Iterator[CheckResult]:
    """Check who can read and write the files of the configuration, and whether `who` can read them."""
    if who is None:
        yield unknown(
            "files",
            f"this machine has no user {USER!r}, so it is unknown whether posd can read files",
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
    """Check the files that a connection string names. libpq ignores an unreadable file silently."""
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
    """Return whether libpq ignores a password file, or rejects a key, because other users can read it.

    The group may read a key that root owns (PostgreSQL manual, libpq, "Client Certificates").
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
            what = f"every user can write {path}"
            lines.append(fault(part, what, f"chmod o-w {path}"))
        if secret and mode & stat.S_IROTH:
            what = f"{path} contains a secret, and every user can read it"
            lines.append(fault(part, what, f"chown root:posd {path} && chmod 0640 {path}"))
        if who is not None:
            obstacle = who.can_read(path)
            if obstacle is not None:
                what = f"{who.name} cannot read {path}"
                remedy = f"chown root:{who.name} {path} && chmod 0640 {path}"
                if obstacle != path:
                    what, remedy = (
                        f"{what}: no permission to search {obstacle}",
                        f"chmod o+x {obstacle}",
                    )
                lines.append(fault(part, what, remedy, stops=True))
            elif owner not in (0, who.uid):
                what = f"the owner of {path} is neither root nor {who.name}"
                lines.append(warning(part, what, f"chown root:{who.name} {path}"))
    except OSError as error:
        # The check of the configuration reports a file that the daemon needs and cannot use.
        lines.append(unknown(part, f"{path}: {error.strerror}"))
    yield from lines or [ok(part, f"the permissions of {path} are correct")]


def _has_password(dsn: str) -> bool:
    return "password" in parse_dsn(dsn)
