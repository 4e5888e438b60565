"""Connection strings as libpq reads them; what it refuses is tested in tests/config."""

from __future__ import annotations

from psycopg2.extensions import parse_dsn
from twisted.trial.unittest import SynchronousTestCase

from posd.database.dsn import rotate_hosts


class RotatedTests(SynchronousTestCase):
    def test_hosts_and_their_ports_move_together(self) -> None:
        dsn = "host=a,b,c port=1,2,3 dbname=posd user=posd"
        turned = parse_dsn(rotate_hosts(dsn, 1))
        self.assertEqual(
            turned, {"host": "b,c,a", "port": "2,3,1", "dbname": "posd", "user": "posd"}
        )
        self.assertEqual(parse_dsn(rotate_hosts(dsn, 5))["host"], "c,a,b")

    def test_a_port_that_counts_for_all_hosts_stays(self) -> None:
        turned = parse_dsn(rotate_hosts("postgresql://posd@a,b:5433/posd", 0))
        self.assertEqual(turned["host"], "a,b")
        turned = parse_dsn(rotate_hosts("host=a,b hostaddr=10.0.0.1,10.0.0.2 port=5433", 1))
        self.assertEqual(turned, {"host": "b,a", "hostaddr": "10.0.0.2,10.0.0.1", "port": "5433"})

    def test_hosts_with_their_ports_in_a_uri(self) -> None:
        turned = parse_dsn(rotate_hosts("postgresql://posd@a:1,b:2/posd", 1))
        self.assertEqual((turned["host"], turned["port"]), ("b,a", "2,1"))

    def test_one_host_is_left_as_it_is(self) -> None:
        for dsn in ("postgresql:///posd", "host=a", "service=posd"):
            self.assertEqual(rotate_hosts(dsn, 3), dsn)

    def test_nothing_moves_before_a_host_was_silent(self) -> None:
        self.assertEqual(rotate_hosts("host=a,b  dbname=posd", 0), "host=a,b  dbname=posd")
