"""The modules that read this machine's clock, with the reasons.

A time that the database has written must be compared with the database's clock, in a statement or with a
time from a statement, because the machine's clock may differ by a day. A module that reads the machine's
clock and has no row in the table fails the test. So does a row that is no longer needed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from tests.test_layering import MODULES

READS = {
    "posd.broadcaster.calls": "an HTTP date in Retry-After, from another machine",
    "posd.cli.adopting": "the time in the shop's zone, for an operator to compare",
    "posd.cli.configuration": "certificates, which TLS judges by this machine's clock",
    "posd.cli.demo_run": "how long an event took on one machine",
    "posd.cli.doctor": "certificates, and how far the two clocks are apart",
    "posd.client.connection": "an HTTP date in Retry-After, from another machine",
    "posd.daemon.gauges": "for how long a certificate is valid, which TLS asks this machine's clock",
    "posd.delivery.feed": "compares the two clocks",
    "posd.delivery.hub": "the time in `connected` and `pong`, which is this machine's",
    "posd.maintenance.doctor.database": "compares the two clocks",
    "posd.monitoring.database_clock": "compares the two clocks",
    "posd.monitoring.tenant_survey": "a metric that Prometheus compares with its own clock",
    "posd.security.certificate_watch": "certificates, which TLS judges by this machine's clock",
    "posd.security.private_ca": "certificates, from when until when they are valid",
    "posd.web.api.health": "the time in an answer, which is this machine's",
    "posd.web.api.loyalty": "the offset of a shop's zone; the day itself is the database's",
    "posd.web.api.status": "the time in an answer, which is this machine's",
    "posd.web.api.terminals": "the time in an answer, which is this machine's",
    "posd.web.http.headers": "the field Date of an answer, which is this machine's",
    "posd.web.openapi.event_schemas": "an example",
}
_CLOCKS = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}
_CLOCKS |= {("time", "time"), ("time", "time_ns"), ("time", "gmtime"), ("time", "localtime")}


def readings(tree: ast.AST) -> Iterator[str]:
    """Yield the places where code names a clock of the time of day."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in _CLOCKS:
                yield f"{module}.{name}"
            case ast.Attribute(attr="wall_clock"):
                yield "wall_clock"


class ClockTests(SynchronousTestCase):
    def test_who_reads_the_machines_clock_has_a_reason(self) -> None:
        found = {
            name
            for name, path in MODULES.items()
            if not name.startswith("posd.testing")
            and any(readings(ast.parse(path.read_text("utf-8"))))
        }
        self.assertEqual(found, {*READS})

    def test_readings_are_found(self) -> None:
        for code in (
            "datetime.now(UTC)",
            "x = time.time",
            "date.today()",
            "self._clock.wall_clock()",
        ):
            self.assertEqual(len(list(readings(ast.parse(code)))), 1, code)
        self.assertEqual(list(readings(ast.parse("time.monotonic(); self.now(); time(1)"))), [])
