"""check-config, doctor and the start judge a configuration alike.

Each case is a configuration with one difference from a valid one. The problems of `posctl check-config`
are those that `posctl doctor --json` marks with `preventsStart`, and that end `twistd posd` with status
78.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from attrs import evolve, field, frozen
from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from posd.maintenance.doctor import files, machine
from posd.protocol import jsontext
from posd.security import private_ca
from posd.testing.ports import reserve
from tests.cli_runner import posctl
from tests.integration import forked
from tests.integration.wire_case import until
from tests.odd_certificates import issue_odd_certificate

SECONDS = 300.0


@frozen
class Setting:
    """The parts of a configuration. `environ` is the environment of posd and posctl."""

    folder: Path
    dsn: str = "host=/nowhere dbname=posd"
    raw_dsn: str | None = None
    endpoints: tuple[str, ...] = ()
    tls: bool = True
    certificate: str = ""
    private_key: str = ""
    more: str = ""
    environ: dict[str, str] = field(factory=dict)

    def write(self) -> Path:
        path = self.folder / "posd.toml"
        listeners = "".join(
            f'[[listen]]\nname = "l{number}"\nendpoint = {quoted(endpoint)}\n'
            f"tls = {'true' if self.tls else 'false'}\n"
            for number, endpoint in enumerate(self.endpoints, 1)
        )
        path.write_text(
            f"[database]\ndsn = {self.raw_dsn or quoted(self.dsn)}\n{listeners}"
            f"[tls]\ncertificate = {quoted(self.certificate)}\n"
            f'private_key = {quoted(self.private_key)}\n[logging]\nformat = "text"\n{self.more}\n'
        )
        path.chmod(0o600)
        return path


def quoted(text: str) -> str:
    return jsontext.encode(text).decode()


class VerdictCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        # Ignore a posd of this machine.
        self.patch(files, "file_reader", lambda *_: None)
        self.patch(machine, "_systemctl", lambda arguments: None)
        made = private_ca.make(self.folder / "tls", ["localhost"])
        self.sound = Setting(
            self.folder,
            endpoints=("tcp:port=0:interface=127.0.0.1",),
            certificate=str(made.certificate_path),
            private_key=str(made.key_path),
        )

    def judged(self, setting: Setting, stops: bool, *words: str) -> str:
        """Check that all three agree, and name the problem with these words."""
        path = setting.write()
        checked = posctl("--config", path, "check-config", environ=setting.environ)
        self.assertEqual(checked.code, os.EX_CONFIG if stops else 0, checked)
        examined = posctl("--config", path, "doctor", "--json", environ=setting.environ).json
        assert isinstance(examined, dict)
        preventing = [line for line in examined["lines"] if line["preventsStart"]]
        self.assertEqual(bool(preventing), stops, examined)
        told = [line["what"] for line in examined["lines"] if line["state"] in ("fault", "warning")]
        for word in words:
            self.assertIn(word, checked.err)
            self.assertTrue(any(word in line for line in told), told)
        self.assertNotIn("mistake of posd's", checked.err)
        printed = self.started(path, setting.environ, stops)
        for word in words if stops else ():
            self.assertIn(word, printed)
        return checked.err

    def started(self, path: Path, environ: dict[str, str], stops: bool) -> str:
        """Start a daemon. It must end with 78, or listen."""
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        arguments = ["--nodaemon", "--pidfile=", "posd", "--config", str(path)]
        daemon = forked.start("twistd", arguments, cwd=self.folder, log=log, environ=environ)

        def judged() -> bool:
            return daemon.poll() is not None or "listening: l1" in log.read_text(errors="replace")

        try:
            until(judged, "it listens or ends", SECONDS)
            if not stops:
                daemon.terminate()
            daemon.wait(SECONDS)
        finally:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
        printed = log.read_text(errors="replace")
        self.assertEqual(daemon.returncode, os.EX_CONFIG if stops else 0, printed)
        self.assertNotIn("Traceback", printed)
        return printed


@contextmanager
def stranger() -> Iterator[int]:
    """Return a port of 127.0.0.1 where another program listens, without a sensible answer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


class DsnTests(VerdictCase):
    """`database.dsn`, as libpq parses it."""

    def test_a_dsn_that_libpq_refuses_is_named(self) -> None:
        for dsn, word in (
            ("hots=foo", '"hots"'),
            ("dbname=posd sslmode=maybe", 'sslmode value: "maybe"'),
            ("dbname=posd port=99999", '"99999"'),
            ("dbname=posd connect_timeout=soon", '"connect_timeout"'),
            ("service=no-such-service", '"no-such-service"'),
            ("postgresql:///posd?hots=1", '"hots"'),
        ):
            with self.subTest(dsn=dsn):
                said = self.judged(evolve(self.sound, dsn=dsn), True, "database.dsn", word)
                self.assertEqual(len(said.splitlines()), 1)

    def test_a_password_is_never_shown(self) -> None:
        for dsn in (
            "dbname=posd password=my hunter2",
            "password=my hunter2=x",
            "password=hunter2 sslmode=hunter2",
        ):
            with self.subTest(dsn=dsn):
                said = self.judged(evolve(self.sound, dsn=dsn), True, "database.dsn")
                self.assertNotIn("hunter2", said)

    def test_a_missing_server_is_not_a_problem_of_the_configuration(self) -> None:
        for dsn in ("host=/nowhere dbname=posd", "host=127.0.0.1 port=1 passfile=/nowhere"):
            with self.subTest(dsn=dsn):
                self.judged(evolve(self.sound, dsn=dsn), False)

    def test_files_that_libpq_ignores_are_warnings(self) -> None:
        password = self.folder / "pgpass"
        password.write_text("*:*:*:*:x")
        password.chmod(0o644)
        for option, word in (
            (f"passfile={self.folder}/none", "No such file or directory"),
            (f"passfile={password}", "others can read"),
            (f"sslrootcert={self.folder}/root.pem", "sslrootcert"),
        ):
            with self.subTest(option=option):
                said = self.judged(evolve(self.sound, dsn=f"host=/nowhere {option}"), False, word)
                self.assertRegex(said, r"\Awarning: files: database\.dsn names ")
        password.chmod(0o600)
        sound = evolve(self.sound, dsn=f"host=/nowhere passfile={password} sslrootcert=system")
        self.assertEqual(
            self.judged(evolve(sound, dsn=f"{sound.dsn} sslmode=verify-full"), False), ""
        )

    def test_a_missing_credential_is_named(self) -> None:
        (self.folder / "credentials").mkdir()
        environ = {"CREDENTIALS_DIRECTORY": str(self.folder / "credentials")}
        asking = evolve(self.sound, raw_dsn='{ credential = "dsn" }', environ=environ)
        self.judged(asking, True, 'the credential "dsn"')
        (self.folder / "credentials" / "dsn").write_bytes(b"\xef\xbb\xbfhost=/nowhere\r\n")
        self.judged(asking, False)


class FileTests(VerdictCase):
    """The files that the configuration names."""

    def test_unusable_files_are_named(self) -> None:
        folder, empty, pipe = self.folder / "d", self.folder / "empty.pem", self.folder / "pipe"
        folder.mkdir()
        empty.write_bytes(b"")
        os.mkfifo(pipe)
        for name, word in (
            (self.folder / "none.pem", "No such file"),
            (folder, "Is a directory"),
            (empty, "no readable certificate"),
            (pipe, "Not a regular file"),
        ):
            with self.subTest(name=name):
                self.judged(
                    evolve(self.sound, certificate=str(name)), True, "tls.certificate", word
                )

    def test_a_key_of_another_certificate(self) -> None:
        other = private_ca.make(self.folder / "other", ["localhost"])
        wrong = evolve(self.sound, private_key=str(other.key_path))
        self.judged(wrong, True, "tls.private_key", "does not belong")

    def test_a_key_that_all_users_can_read_is_a_warning(self) -> None:
        Path(self.sound.private_key).chmod(0o644)
        said = self.judged(self.sound, False, "every user can read it")
        self.assertRegex(said, r"\Awarning: files: .*; chown ")

    def test_an_expired_certificate_is_a_warning(self) -> None:
        name = x509.DNSName("localhost")
        made = issue_odd_certificate(
            self.folder / "odd", "localhost", [name], datetime(2026, 1, 3, tzinfo=UTC)
        )
        ended = evolve(
            self.sound, certificate=str(made.certificate_path), private_key=str(made.key_path)
        )
        self.assertIn("warning: certificate: ", self.judged(ended, False, "expired on"))


class ListenerTests(VerdictCase):
    """The addresses of the listeners."""

    def setUp(self) -> None:
        super().setUp()
        self.plain = evolve(self.sound, tls=False)

    def test_two_listeners_on_one_socket_are_a_problem(self) -> None:
        with reserve() as reservation:
            port = reservation.number
        for first, second in (
            (f"tcp:port={port}:interface=127.0.0.1", f"tcp:port={port}:interface=localhost"),
            (f"tcp:port={port}", f"tcp:port={port}:interface=127.0.0.1"),
            (f"tcp:port={port}:interface=127.0.0.1", rf"tcp:port={port}:interface=\:\:"),
            (f"haproxy:tcp:{port}:interface=127.0.0.1", f"tcp:port={port}:interface=127.0.0.1"),
            (f"unix:{self.folder}/s", f"unix:address={self.folder}/s:mode=660"),
        ):
            with self.subTest(second=second):
                twice = evolve(self.plain, endpoints=(first, second))
                self.judged(twice, True, "listen[l2].endpoint")

    def test_two_listeners_on_two_sockets_are_no_problem(self) -> None:
        any_port = "tcp:port=0:interface=127.0.0.1"
        self.judged(evolve(self.plain, endpoints=(any_port, any_port)), False)
        with reserve() as reservation:
            port = reservation.number
        apart = (f"tcp:port={port}:interface=127.0.0.1", rf"tcp:port={port}:interface=\:\:1")
        self.judged(evolve(self.plain, endpoints=apart), False)

    def test_a_port_of_another_program_is_a_problem(self) -> None:
        self.patch_patience()
        with stranger() as port:
            held = evolve(self.plain, endpoints=(f"tcp:port={port}:interface=127.0.0.1",))
            self.judged(held, True, str(port))

    def test_an_address_that_this_machine_does_not_have(self) -> None:
        # TEST-NET-1 (RFC 5737) is used by no machine.
        self.judged(evolve(self.plain, endpoints=("tcp:port=0:interface=192.0.2.1",)), True)

    def test_an_address_of_another_machine_within_haproxy_is_a_problem(self) -> None:
        elsewhere = "haproxy:tcp:port=0:interface=192.0.2.1"
        self.judged(evolve(self.plain, endpoints=(elsewhere,)), True, "192.0.2.1")

    def test_an_unknown_kind_of_endpoint_is_a_problem(self) -> None:
        self.judged(evolve(self.plain, endpoints=("carrier-pigeon:coop=3",)), True, "pigeon")

    def test_paths_of_sockets(self) -> None:
        # The path of a socket has at most 107 bytes (unix(7)). That of a checkout may be longer.
        short = tempfile.TemporaryDirectory()
        self.addCleanup(short.cleanup)
        folder = Path(short.name)
        there = folder / "file"
        there.write_text("")
        left = folder / "left"
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(left))
        cases: tuple[tuple[str, bool], ...] = (
            (f"unix:{folder}/none/socket", True),
            (f"unix:{folder}/{'x' * 110}", True),
            (f"unix:{there}", True),
            (f"unix:{left}", True),
            (f"unix:{folder}/free", False),
        )
        for endpoint, stops in cases:
            with self.subTest(endpoint=endpoint):
                self.judged(evolve(self.plain, endpoints=(endpoint,)), stops)

    def patch_patience(self) -> None:
        from posd.maintenance.doctor import listeners

        self.patch(listeners, "_SECONDS", 0.2)


class ShapeTests(VerdictCase):
    """The configuration itself."""

    def test_a_valid_configuration_has_no_problems(self) -> None:
        self.assertEqual(self.judged(self.sound, False), "")

    def test_invalid_configurations_are_named(self) -> None:
        for more, word in (
            ("[limits]\nconnections = -1", "limits.connections"),
            ("[limit]\nconnections = 1", "limit"),
            ("[logging]\n", "TOML"),
        ):
            with self.subTest(more=more):
                self.judged(evolve(self.sound, more=more), True, word)

    def test_a_path_that_is_not_a_file_is_refused(self) -> None:
        def folder(path: Path) -> None:
            path.mkdir()

        made: tuple[Callable[[Path], object], ...] = (folder, os.mkfifo)
        for number, make in enumerate(made):
            path = self.folder / f"odd-{number}.toml"
            make(path)
            with self.subTest(number=number):
                self.assertIn(posctl("--config", path, "check-config").code, (64, 78))
                self.assertIn("cannot be read", self.started(path, {}, True))
