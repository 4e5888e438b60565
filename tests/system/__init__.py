"""Tests of what is installed: they boot a real systemd, build packages, run the operators' guide.

They need root and some of Debian's tools, and `make test` leaves them out: no module here is called
`test_…`. `make system` runs each module whose name ends in `_system`. One that cannot run where it
is skips with `not run: REASON`, which `machine.missing()` and its like give:

    class Installation(SynchronousTestCase):
        def setUp(self) -> None:
            self.machine = machine.boot(self)

        def test_systemd_is_there(self) -> None:
            self.assertEqual(self.machine.run("systemctl", "is-system-running"), "running\\n")

Who needs a posd that is installed, with a PostgreSQL and a shop, has it by `installation.shared()`.
"""
