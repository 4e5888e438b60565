"""The Debian package on a bare Debian 12: installed, upgraded, removed, purged, and built twice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import posd
from tests.documents import ROOT
from tests.system import debian_package, debian_tree, machine

KITCHEN = "[limits]\nconnections_per_tenant = 7\n"
LATER_MIGRATION = "opt/posd/lib/python3.11/site-packages/posd/data/sql/main/999_later.sql"
SITE = "/opt/posd/lib/python3.11/site-packages"


class PackageTests(SynchronousTestCase):
    """A minimal server of Debian's installer."""

    def setUp(self) -> None:
        debian = debian_tree.debian()
        self.package = debian_package.package()
        self.shelf = Path(self.mktemp()).absolute()
        self.shelf.mkdir()
        self.server = machine.boot(
            self, debian.tree, [debian.packages, self.package.parent, self.shelf]
        )
        self.server.path("/etc/apt/sources.list").write_text(debian.source)
        self.run_("apt-get", "update")

    def run_(self, *command: str, user: str | None = None) -> str:
        """Run a command without a terminal. Return its output and standard error."""
        return self.server.run(
            *("sh", "-c", 'exec "$@" 2>&1 </dev/null', "sh", *command),
            user=user,
            environ={"DEBIAN_FRONTEND": "noninteractive"},
            seconds=600,
        )

    def install(self, *packages: str, options: Iterable[str] = ()) -> str:
        return self.run_(
            "apt-get", "install", "--yes", "--no-install-recommends", *options, *packages
        )

    def later(self, version: str, *appended: tuple[str, str]) -> str:
        return str(debian_package.next_version(self.package, version, self.shelf, *appended))

    def posctl(self, *arguments: str, user: str = "posd") -> str:
        return self.run_("posctl", *arguments, user=user)

    def as_superuser(self, *arguments: str) -> str:
        return self.posctl("--dsn", "postgresql:///posd", *arguments, user="postgres")

    def state(self) -> str:
        """Return the state of posd in systemd, as one word."""
        shown = self.run_("systemctl", "show", "--property=ActiveState", "--value", "posd")
        return shown.strip()

    def process(self) -> int:
        return int(self.run_("systemctl", "show", "--property=MainPID", "--value", "posd"))

    def set_up(self) -> None:
        """Do the steps of the operators' guide between installation and start."""
        self.install("postgresql")
        self.as_superuser("bootstrap")
        self.as_superuser("migrate")
        tls = "/etc/posd/tls"
        self.run_("posctl", "make-cert", "--dir", tls, "--name", "localhost")
        self.run_("chgrp", "posd", f"{tls}/privkey.pem")
        self.run_("chmod", "640", f"{tls}/privkey.pem")

    def files(self) -> set[str]:
        """Return all files and folders of the server, except databases and files of apt, dpkg and the
        journal.
        """
        of_others = ("dpkg", "apt", "postgresql")
        kept = [*(f"/var/lib/{name}" for name in of_others), "/var/cache", "/var/log"]
        pruned = [word for path in kept for word in ("-path", path, "-prune", "-o")]
        return set(self.run_("find", "/", "-xdev", *pruned, "-print").splitlines())

    def test_as_installed_it_is_enabled_and_not_started_and_says_what_is_next(self) -> None:
        said = self.install(str(self.package))
        self.assertIn("posd is enabled and was not started", said)
        self.assertIn("/etc/posd/tls/fullchain.pem", said)
        guide = re.search(r"Follow (/usr/share/doc/[^\s,]+),", said)
        assert guide is not None
        self.assertTrue(self.server.path(guide[1]).is_file())
        self.assertEqual(self.run_("systemctl", "is-enabled", "posd"), "enabled\n")
        self.assertEqual(self.state(), "inactive")
        self.assertEqual(self.run_("posctl", "--version").split()[-1], posd.__version__)
        daemon = ("/opt/posd/bin/twistd", "posd", "--help")
        self.assertIn("--config", self.run_(*daemon, user="posd"))
        units = sorted(self.server.path("/lib/systemd/system").glob("posd*"))
        self.assertIn("posd.service", [unit.name for unit in units])
        for unit in units:
            name = unit.name.replace("@", "@1")
            self.assertEqual(self.run_("systemd-analyze", "verify", name), "", name)

    def test_as_installed_everything_belongs_to_root_and_secrets_are_for_the_daemon(self) -> None:
        self.install(str(self.package))
        of_posd = self.run_("find", "/opt/posd", "-not", "-user", "root", "-o", "-perm", "/022")
        links = self.run_("find", "/opt/posd", "-type", "l")
        self.assertEqual(set(of_posd.split()) - set(links.split()), set())
        for path, expected in {
            "/etc/posd": "755 root root",
            "/etc/posd/posd.toml": "640 root posd",
            "/etc/posd/conf.d": "750 root posd",
            "/etc/posd/tls": "750 root posd",
        }.items():
            self.assertEqual(self.run_("stat", "-c", "%a %U %G", path), f"{expected}\n", path)
        self.assertRegex(self.run_("getent", "passwd", "posd"), r":/usr/sbin/nologin\n\Z")

    def test_the_first_start_finds_everything_written_that_it_would_write(self) -> None:
        self.install(str(self.package))
        plugins = f"{SITE}/twisted/plugins"
        before = self.run_("stat", "-c", "%y %i", f"{plugins}/dropin.cache")
        # Run as root, which could write all files.
        self.run_("/opt/posd/bin/twistd", "posd", "--help")
        self.run_("posctl", "--help")
        self.assertEqual(self.run_("stat", "-c", "%y %i", f"{plugins}/dropin.cache"), before)
        written = ("-type", "f", "-newer", f"{plugins}/dropin.cache")
        self.assertEqual(self.run_("find", "/opt/posd", *written), "")
        sources = self.run_("find", SITE, "-name", "*.py").split()
        compiled = self.run_("find", SITE, "-name", "*.pyc").split()
        self.assertEqual(len(sources), len(compiled))

    def test_an_upgrade_keeps_the_configuration_and_restarts_only_what_can_start(self) -> None:
        self.install(str(self.package))
        self.set_up()
        config = self.server.path("/etc/posd/posd.toml")
        edited = config.read_text("utf-8").replace("#pool_size = 8", "pool_size = 3")
        config.write_text(edited, "utf-8")
        self.server.path("/etc/posd/conf.d/kitchen.toml").write_text(KITCHEN)

        # A stopped service stays stopped.
        self.install(self.later("99.1"))
        self.assertEqual(self.state(), "inactive")
        self.assertEqual(config.read_text("utf-8"), edited)

        self.run_("systemctl", "start", "posd")
        first = self.process()
        shipped = ("etc/posd/posd.toml", "\n# More is explained in this version.\n")
        self.install(
            self.later("99.2", shipped), options=["--option=Dpkg::Options::=--force-confold"]
        )
        second = self.process()
        self.assertEqual(self.state(), "active")
        self.assertNotEqual(second, first)
        self.assertEqual(config.read_text("utf-8"), edited)
        self.assertEqual(self.server.path("/etc/posd/conf.d/kitchen.toml").read_text(), KITCHEN)
        owner = self.run_("stat", "-c", "%a %U %G", "/etc/posd/posd.toml")
        self.assertEqual(owner, "640 root posd\n")

        said = self.install(
            self.later("99.3", (LATER_MIGRATION, "SELECT 1;\n"), shipped),
            options=["--option=Dpkg::Options::=--force-confold"],
        )
        self.assertIn("posd was not restarted, because this version would not start", said)
        self.assertIn("lacks main/999_later.sql; run `posctl migrate`", said)
        self.assertEqual((self.state(), self.process()), ("active", second))
        self.as_superuser("migrate")
        self.run_("systemctl", "restart", "posd")
        self.assertEqual(self.state(), "active")

    def test_removed_it_leaves_the_configuration_and_purged_nothing(self) -> None:
        self.install("python3", "procps", "postgresql")
        before = self.files()
        self.install(str(self.package))
        self.set_up()
        self.run_("systemctl", "start", "posd")
        self.run_("apt-get", "remove", "--yes", "posd")
        self.assertEqual((self.state(), self.process()), ("inactive", 0))
        self.assertFalse(self.server.path("/opt/posd").exists())
        self.assertFalse(self.server.path("/lib/systemd/system/posd.service").exists())
        self.assertTrue(self.server.path("/etc/posd/posd.toml").exists())
        self.assertTrue(self.server.path("/etc/posd/tls/privkey.pem").exists())

        self.install(str(self.package))
        self.assertEqual(self.run_("systemctl", "is-enabled", "posd"), "enabled\n")
        self.run_("systemctl", "disable", "--now", "posd")
        self.run_("systemctl", "enable", "--now", "posd@1", "posd@1.socket", "posd@2")
        self.assertEqual(self.run_("systemctl", "is-active", "posd@2"), "active\n")

        self.run_("apt-get", "purge", "--yes", "posd")
        running = self.run_("systemctl", "list-units", "--no-legend", "--state=active", "posd*")
        self.assertEqual(running, "")
        # The user still exists, and also the files that its creation has changed.
        self.run_("getent", "passwd", "posd")
        users = {f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow")}
        self.assertEqual(self.files() - before - users, set())


class ReproducibleTests(SynchronousTestCase):
    def test_whoever_makes_the_package_elsewhere_gets_the_same_one(self) -> None:
        package = debian_package.package()
        again = debian_package.built_elsewhere(Path(self.mktemp()).absolute())
        self.assertEqual(again.name, package.name)
        self.assertEqual(checksum(again), checksum(package))

    def test_nothing_in_the_package_tells_where_it_was_made(self) -> None:
        tree = Path(self.mktemp()).absolute()
        debian_package.run("dpkg-deb", "--raw-extract", str(debian_package.package()), str(tree))
        place = str(ROOT).encode()
        files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
        self.assertGreater(len(files), 1000)
        self.assertEqual([path for path in files if place in path.read_bytes()], [])


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
