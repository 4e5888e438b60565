"""Tests of the checks of listeners, with real sockets."""

from __future__ import annotations

import shutil
import socket
import ssl
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from posd import __version__
from posd.config.model import Config, DatabaseConfig, ListenerConfig, TLSConfig
from posd.maintenance.doctor import CheckResult, CheckState, listeners
from posd.security.private_ca import IssuedCertificate, make
from posd.testing.ports import reserve

NOTHING = Config(DatabaseConfig("postgresql:///posd"))


class Answering(HTTPServer):
    """A server that sends the same response to each request."""

    server_name_told = f"posd/{__version__}"
    status = 200
    body = b'{"status":"ok"}'


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Answering)
        self.send_response_only(server.status)
        self.send_header("Server", server.server_name_told)
        self.send_header("Content-Length", str(len(server.body)))
        self.end_headers()
        self.wfile.write(server.body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class ListenerCase(SynchronousTestCase):
    def somebody(self, made: IssuedCertificate | None = None, *, mutual: bool = False) -> Answering:
        server = Answering(("127.0.0.1", 0), _Handler)
        if made is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(made.certificate_path, made.key_path)
            if mutual:
                context.load_verify_locations(made.ca_path)
                context.verify_mode = ssl.CERT_REQUIRED
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server

    def found(
        self, endpoint: str, *, made: IssuedCertificate | None = None, mutual: bool = False
    ) -> list[CheckResult]:
        listener = ListenerConfig("https", endpoint, tls=made is not None)
        tls = TLSConfig()
        if made is not None:
            tls = TLSConfig(
                certificate=str(made.certificate_path),
                private_key=str(made.key_path),
                client_ca=str(made.ca_path) if mutual else None,
            )
        return [*listeners.examine(evolve(NOTHING, listen=(listener,), tls=tls))]

    def only(
        self,
        endpoint: str,
        state: CheckState,
        made: IssuedCertificate | None = None,
        *,
        mutual: bool = False,
    ) -> CheckResult:
        (line,) = self.found(endpoint, made=made, mutual=mutual)
        self.assertEqual((line.part, line.state), ("listener https", state), line)
        return line

    def made(self, name: str = "tls") -> IssuedCertificate:
        return make(Path(self.mktemp()) / name, ["localhost"])


def unused() -> int:
    """Return a free port."""
    with reserve() as reservation:
        return reservation.number


def at(server: Answering) -> str:
    return f"tcp:port={server.server_address[1]}:interface=127.0.0.1"


class FreeTests(ListenerCase):
    def test_an_unused_port_is_free(self) -> None:
        line = self.only(f"tcp:port={unused()}:interface=127.0.0.1", CheckState.OK)
        self.assertIn("is free", line.what)

    def test_an_address_of_another_machine_is_a_fault(self) -> None:
        line = self.only(f"tcp:port={unused()}:interface=192.0.2.1", CheckState.FAULT)
        self.assertIn("no interface of this machine has the address 192.0.2.1", line.what)

    def test_a_socket_in_the_file_system(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="posd-doctor-"))
        self.addCleanup(shutil.rmtree, folder)
        self.assertIn("is free", self.only(f"unix:{folder}/socket:mode=660", CheckState.OK).what)

    def test_a_socket_in_a_folder_that_systemd_creates(self) -> None:
        self.only("unix:/run/posd-nowhere/local.sock:mode=660", CheckState.UNKNOWN)

    def test_a_socket_of_a_posd_that_has_ended_will_be_replaced(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="posd-doctor-"))
        self.addCleanup(shutil.rmtree, folder)
        path = folder / "socket"
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(path))
        self.assertTrue(self.only(f"unix:{path}", CheckState.FAULT).stops)
        (folder / "socket.lock").symlink_to("1234567")
        self.only(f"unix:{path}", CheckState.OK)

    def test_a_socket_of_systemd_is_unknown(self) -> None:
        self.only("systemd:domain=INET:name=https", CheckState.UNKNOWN)

    def test_a_stopped_daemon_is_not_started(self) -> None:
        listener = ListenerConfig("https", at(self.somebody()))
        (line,) = listeners.examine(evolve(NOTHING, listen=(listener,)), asleep=True)
        self.assertEqual(line.state, CheckState.UNKNOWN)


class HeldTests(ListenerCase):
    def test_posd_that_is_ready_is_ok(self) -> None:
        self.assertIn("ready", self.only(at(self.somebody()), CheckState.OK).what)

    def test_posd_that_is_ready_over_tls_is_ok(self) -> None:
        made = self.made()
        self.assertIn("ready", self.only(at(self.somebody(made)), CheckState.OK, made).what)

    def test_posd_that_is_not_ready_is_a_passing_fault(self) -> None:
        server = self.somebody()
        server.status, server.body = 503, b'{"status":"unavailable","missing":["database"]}'
        line = self.only(at(server), CheckState.FAULT)
        self.assertTrue(line.passing)
        self.assertIn("is not ready: database", line.what)

    def test_posd_of_another_version_needs_a_restart(self) -> None:
        server = self.somebody()
        server.server_name_told = "posd/0.0.1"
        _, line = self.found(at(server))
        self.assertEqual((line.state, line.remedy), (CheckState.WARNING, "systemctl restart posd"))

    def test_another_certificate_than_in_the_file_needs_a_reload(self) -> None:
        _, line = self.found(at(self.somebody(self.made("old"))), made=self.made("new"))
        self.assertEqual(line.state, CheckState.WARNING)
        self.assertIn("uses another certificate", line.what)

    def test_another_program_is_named_by_its_server_field(self) -> None:
        server = self.somebody()
        server.server_name_told = "nginx"
        self.assertIn("nginx answers", self.only(at(server), CheckState.FAULT).what)

    def test_a_slow_listener_may_be_the_running_posd(self) -> None:
        self.patch(listeners, "_SECONDS", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            endpoint = f"tcp:port={silent.getsockname()[1]}:interface=127.0.0.1"
            settings = evolve(NOTHING, listen=(ListenerConfig("https", endpoint),))
            (line,) = listeners.examine(settings, running=True)
            self.assertEqual(
                (line.state, line.passing, line.stops), (CheckState.FAULT, True, False)
            )
            (line,) = listeners.examine(settings)
            self.assertEqual(
                (line.state, line.passing, line.stops), (CheckState.FAULT, False, True)
            )

    def test_a_program_without_tls_is_another_program(self) -> None:
        line = self.only(at(self.somebody()), CheckState.FAULT, self.made())
        self.assertIn("is in use by another program", line.what)

    def test_a_required_client_certificate_is_ok_if_configured(self) -> None:
        made = self.made()
        line = self.only(at(self.somebody(made, mutual=True)), CheckState.OK, made, mutual=True)
        self.assertIn("requires a client certificate, as configured", line.what)

    def test_a_required_client_certificate_that_is_not_configured_is_another_program(self) -> None:
        made = self.made()
        line = self.only(at(self.somebody(made, mutual=True)), CheckState.FAULT, made)
        self.assertIn("is in use by another program", line.what)

    def test_a_listener_that_only_closes_does_not_require_a_certificate(self) -> None:
        line = self.only(at(self.somebody()), CheckState.FAULT, self.made(), mutual=True)
        self.assertIn("is in use by another program", line.what)

    def test_a_program_without_http_is_another_program(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=_hang_up, args=(server,))
            thread.start()
            line = self.only(
                f"tcp:port={server.getsockname()[1]}:interface=127.0.0.1", CheckState.FAULT
            )
            thread.join()
        self.assertIn("is in use by another program", line.what)


def _hang_up(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(1024)
        connection.sendall(b"220 mail.example.net\r\n")
