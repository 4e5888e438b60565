"""Tests of renewed and expiring certificates while posd runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attrs import evolve
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from posd.config.model import TLSConfig
from posd.security.certificate_watch import CertificateWatch
from posd.security.private_ca import IssuedCertificate, make
from posd.security.server_tls import ServerTLS

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LOOK = 10
DAY = 24 * 3600


class RenewalCase(SynchronousTestCase):
    """A certificate for 90 days, made at noon, and its CertificateWatch."""

    days = 90

    def setUp(self) -> None:
        self.clock = Clock()
        self.folder = Path(self.mktemp()).absolute()
        self.made = make(self.folder, ["localhost"], days=self.days, now=NOON)
        self.watch(TLSConfig(str(self.made.certificate_path), str(self.made.key_path)))

    def watch(self, settings: TLSConfig) -> None:
        self.tls = ServerTLS(settings, seconds=self.clock.seconds)
        self.renewal = CertificateWatch(self.clock, self.tls, now=self.now)

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.clock.seconds())

    def start(self) -> list[str]:
        with capturedLogs() as logs:
            self.renewal.startService()
            self.addCleanup(self.renewal.stopService)
        return self.told(logs)

    def after(self, seconds: int) -> list[str]:
        """Advance the clock by so many seconds, in steps of an hour at most, and return the log lines."""
        step = LOOK if seconds < 3600 else 3600
        with capturedLogs() as logs:
            self.clock.pump([step] * int(seconds / step))
        return self.told(logs)

    def fail_unforeseen(self) -> bool:
        raise RuntimeError("nobody thought of it")

    def told(self, logs: Sequence[LogEvent]) -> list[str]:
        return [f"{event['log_level'].name} {formatEvent(event)}" for event in logs]

    def renewed(self, folder: Path | None = None) -> IssuedCertificate:
        """Make a new certificate of the same authority, in other files or in the same files."""
        if folder is None:
            folder = Path(self.mktemp()).absolute()
            folder.mkdir()
            for name in ("ca.pem", "ca-key.pem"):
                (folder / name).write_bytes((self.folder / name).read_bytes())
        return make(folder, ["localhost"], days=self.days, now=self.now(), replace=True)


class TakingTests(RenewalCase):
    def test_the_certificate_is_logged_at_the_start(self) -> None:
        (line,) = self.start()
        self.assertTrue(line.startswith(f"info {self.made.certificate_path} is in force until"))
        self.assertIn(f"{self.tls.serial_number:x}", line)

    def test_files_that_are_replaced_are_in_force_within_ten_seconds(self) -> None:
        self.start()
        before = self.tls.serial_number
        self.assertEqual(self.after(100), [])
        self.renewed(self.folder)
        self.assertEqual(self.tls.serial_number, before)
        renewed, announced = self.after(LOOK)
        self.assertNotEqual(self.tls.serial_number, before)
        self.assertEqual(renewed, "info renewed files of [tls] are in force")
        self.assertIn(f"{self.tls.serial_number:x}", announced)
        self.assertEqual(self.after(1000), [])

    def test_a_failing_check_is_logged_and_repeated(self) -> None:
        self.start()
        before = self.tls.serial_number
        self.renewed(self.folder)
        broken = self.patch(self.tls, "reload", self.fail_unforeseen)
        self.after(LOOK)
        broken.restore()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.after(LOOK)
        self.assertNotEqual(self.tls.serial_number, before)

    def test_changed_symbolic_links_are_followed(self) -> None:
        # As with certbot: live/NAME/fullchain.pem is a link to a file in archive/NAME/.
        live = self.folder / "live"
        live.mkdir()
        links = live / "fullchain.pem", live / "privkey.pem"
        for link in links:
            link.symlink_to(self.folder / link.name)
        self.watch(TLSConfig(str(links[0]), str(links[1])))
        self.start()
        before, other = self.tls.serial_number, self.renewed()
        for link, file in zip(links, (other.certificate_path, other.key_path), strict=True):
            link.unlink()
            link.symlink_to(file)
        self.after(LOOK)
        self.assertNotEqual(self.tls.serial_number, before)
        self.assertEqual(self.tls.expires_at, other.expires_at)

    def test_files_overwritten_in_place_are_loaded(self) -> None:
        self.start()
        before, other = self.tls.serial_number, self.renewed()
        self.made.certificate_path.write_bytes(other.certificate_path.read_bytes())
        self.made.key_path.write_bytes(other.key_path.read_bytes())
        self.after(LOOK)
        self.assertNotEqual(self.tls.serial_number, before)

    def test_a_replaced_authority_of_the_tills_is_loaded(self) -> None:
        clients = self.folder / "clients.pem"
        clients.write_bytes((self.folder / "ca.pem").read_bytes())
        self.watch(evolve(self.tls.settings, client_ca=str(clients)))
        self.start()
        other = make(Path(self.mktemp()), ["localhost"], now=NOON - timedelta(days=7))
        clients.write_bytes(other.ca_path.read_bytes())
        self.assertEqual(self.after(LOOK), ["info renewed files of [tls] are in force"])
        self.assertEqual(
            self.tls.validities[str(clients)].ends - NOON,
            timedelta(days=3650 - 7) - timedelta(hours=1),
        )

    def test_touched_files_without_changes_are_not_logged(self) -> None:
        self.start()
        self.made.certificate_path.touch()
        self.made.key_path.chmod(0o640)
        self.assertEqual(self.after(100), [])
        self.assertFalse(self.tls.is_stale)

    def test_nothing_is_looked_at_after_the_end(self) -> None:
        self.start()
        self.renewal.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class HalfWrittenTests(RenewalCase):
    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.before = self.tls.serial_number
        self.other = self.renewed()

    def write_key(self) -> None:
        self.made.key_path.write_bytes(self.other.key_path.read_bytes())

    def write_certificate(self, size: int | None = None) -> None:
        self.made.certificate_path.write_bytes(self.other.certificate_path.read_bytes()[:size])

    def test_a_key_before_its_certificate_is_not_a_problem(self) -> None:
        self.write_key()
        self.assertEqual(self.after(LOOK), [])
        self.assertEqual((self.tls.serial_number, self.renewal.trouble), (self.before, ""))
        self.write_certificate()
        self.assertEqual(len(self.after(LOOK)), 2)
        self.assertNotEqual(self.tls.serial_number, self.before)

    def test_a_certificate_before_its_key_is_not_a_problem(self) -> None:
        self.write_certificate()
        self.assertEqual(self.after(LOOK), [])
        self.assertEqual(self.tls.serial_number, self.before)
        self.write_key()
        self.assertEqual(len(self.after(LOOK)), 2)
        self.assertNotEqual(self.tls.serial_number, self.before)

    def test_half_a_certificate_is_not_taken(self) -> None:
        self.write_key()
        for size in (0, 1, 30, 400):
            self.write_certificate(size)
            self.assertEqual(self.after(LOOK), [], size)
            self.assertEqual(self.tls.serial_number, self.before)
        self.write_certificate()
        self.assertEqual(len(self.after(LOOK)), 2)

    def test_a_lasting_mismatch_is_logged_once_and_shown_in_the_status(self) -> None:
        self.write_key()
        self.after(LOOK)
        (line,) = self.after(LOOK)
        self.assertTrue(line.startswith("error renewed files cannot be used"), line)
        self.assertIn(f"{self.made.key_path} does not belong to", line)
        self.assertIn(f"{self.made.key_path} does not belong to", self.renewal.trouble)
        self.assertTrue(self.renewal.has_unusable_files)
        self.assertEqual(self.after(2 * DAY), [])
        self.write_certificate()
        self.after(LOOK)
        self.assertEqual((self.renewal.trouble, self.renewal.has_unusable_files), ("", False))

    def test_another_problem_is_logged_again(self) -> None:
        self.write_key()
        self.after(2 * LOOK)
        self.made.certificate_path.unlink()
        (line,) = self.after(2 * LOOK)
        self.assertIn("No such file or directory", line)

    def test_restored_files_clear_the_problem(self) -> None:
        kept = self.made.key_path.read_bytes()
        self.write_key()
        self.after(2 * LOOK)
        self.made.key_path.write_bytes(kept)
        self.assertEqual(self.after(LOOK), [])
        self.assertEqual((self.renewal.trouble, self.tls.serial_number), ("", self.before))


class EndTests(RenewalCase):
    def test_the_last_fourteen_days_are_told_every_day_as_a_warning(self) -> None:
        self.start()
        # The 90 days begin an hour before noon, for tills whose clocks are behind.
        self.assertEqual(self.after(76 * DAY - 7200), [])
        (first,) = self.after(7200)
        self.assertRegex(first, r"^warn .*fullchain.pem expires in 13 days, on .*: renew it$")
        self.assertIn("expires in 13 days", self.renewal.trouble)
        lines = self.after(12 * DAY)
        self.assertEqual(len(lines), 12)
        self.assertRegex(lines[-1], "^warn .* expires in 47 hours")

    def test_an_expired_certificate_is_logged_every_day_as_an_error(self) -> None:
        self.start()
        self.after(89 * DAY)
        lines = [line for line in self.after(3 * DAY) if not line.startswith("warn")]
        self.assertEqual(len(lines), 3)
        for line in lines:
            self.assertRegex(line, r"^error .*fullchain.pem expired on 2026-04-01")
        self.assertIn("has expired", self.renewal.trouble)

    def test_at_the_start_too(self) -> None:
        self.clock.advance(85 * DAY)
        lines = self.start()
        self.assertEqual([line.split()[0] for line in lines], ["info", "warn"])

    def test_a_renewal_ends_it(self) -> None:
        self.start()
        self.after(80 * DAY)
        self.renewed(self.folder)
        self.after(LOOK)
        self.assertEqual(self.renewal.trouble, "")
        self.assertEqual(self.after(60 * DAY), [])
        self.assertNotEqual(self.after(20 * DAY), [])

    def test_a_certificate_of_the_future_is_logged_with_a_hint_to_the_clock(self) -> None:
        early = make(Path(self.mktemp()), ["localhost"], now=NOON + timedelta(days=2))
        self.watch(TLSConfig(str(early.certificate_path), str(early.key_path)))
        _, line = self.start()
        self.assertTrue(line.startswith("warn "), line)
        self.assertIn("check this machine's clock", line)
        self.assertIn("not valid yet", self.renewal.trouble)

    def test_an_expiring_authority_of_the_tills_is_logged_too(self) -> None:
        old = make(Path(self.mktemp()), ["localhost"], now=NOON - timedelta(days=3640))
        self.watch(evolve(self.tls.settings, client_ca=str(old.ca_path)))
        _, line = self.start()
        self.assertTrue(line.startswith(f"warn {old.ca_path} expires in 9 days"), line)


class ShortLivedTests(RenewalCase):
    days = 6

    def test_one_of_six_days_is_warned_of_in_the_last_two(self) -> None:
        self.start()
        self.assertEqual(self.after(4 * DAY - 2 * 3600), [])
        lines = self.after(2 * DAY)
        self.assertEqual(len(lines), 2)
        self.assertRegex(lines[0], "^warn .* expires in 47 hours")
