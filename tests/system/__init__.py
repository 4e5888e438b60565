"""Tests of the installed service: they boot systemd, build packages, and run the guides for operators.

They need root and some tools of Debian. `make test` does not run them, because no module here is called
`test_…`. `make system` runs the modules whose names end in `_system`. A test that cannot run on a machine
is skipped with `not run: REASON`, which `machine.missing()` and similar functions return:

    class Installation(SynchronousTestCase):
        def setUp(self) -> None:
            self.machine = machine.boot(self)

        def test_systemd_is_there(self) -> None:
            self.assertEqual(self.machine.run("systemctl", "is-system-running"), "running\\n")

`installation.shared()` returns an installed posd with a PostgreSQL and a shop.
"""
