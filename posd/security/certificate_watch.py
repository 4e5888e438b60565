"""Certificates while posd runs: renewed files are taken by themselves, and an end is told in time.

Who renews certificates (certbot, another ACME client, `posctl make-cert --replace`, a person) need not
tell posd. Files are replaced one after the other, and may be half written: only what fits together is
taken, and what does not is complained of when it still does not at the next look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from posd.errors import StartError
from posd.security.server_tls import ServerTLS, Stamp
from posd.security.validity import CertificateState, Validity

_LOOK_SECONDS: Final = 10.0
_REMIND_SECONDS: Final = 24 * 3600.0


def _now() -> datetime:
    return datetime.now(UTC)


class Renewal(Service):
    """Looks at the files of `[tls]` every ten seconds, and at the end of what they hold.

    `trouble` is what is wrong at this moment, empty if nothing is. `now` is the time of day in UTC.
    """

    _log = Logger()

    def __init__(
        self, reactor: IReactorTime, tls: ServerTLS, *, now: Callable[[], datetime] = _now
    ) -> None:
        self._tls = tls
        self._now = now
        self._seconds = reactor.seconds
        self._looks = LoopingCall(self._look)
        self._looks.clock = reactor
        # What stood in the way at the last look, with which files; and of that what was told.
        self._suspected: tuple[Sequence[Stamp], str] | None = None
        self._unusable = ""
        self._announced = ""
        self._told: dict[str, tuple[CertificateState, float]] = {}

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._looks.start(_LOOK_SECONDS)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._looks.running:
            self._looks.stop()

    @property
    def refused(self) -> bool:
        """Whether there are new files that cannot be used."""
        return bool(self._unusable)

    @property
    def trouble(self) -> str:
        """What somebody has to see to, in a line."""
        now = self._now()
        ends = (_shortly(file, each, now) for file, each in self._tls.validities.items())
        unusable = self._unusable and f"renewed certificate not taken: {self._unusable}"
        return "; ".join(filter(None, (*ends, unusable)))

    def _look(self) -> None:
        # A look that fails is the last one otherwise, and nobody would see to the next renewal.
        try:
            self.look()
        except Exception:
            self._log.failure("the files of [tls] could not be looked at")

    def look(self) -> None:
        """Take what is new and fits, and say what is to be said of the end of what is in force."""
        if self._tls.stale:
            self._take()
        else:
            self._suspected, self._unusable = None, ""
        self._announce()
        for file, validity in self._tls.validities.items():
            self._remind(file, validity)

    def _take(self) -> None:
        found = self._tls.found()
        try:
            is_new = self._tls.reload()
        except StartError as error:
            self._doubt(found, "; ".join(str(error).splitlines()))
        else:
            self._suspected, self._unusable = None, ""
            if is_new:
                self._log.info("renewed files of [tls] are in force")

    def _doubt(self, found: Sequence[Stamp], problem: str) -> None:
        """Complain once of what was so at two looks: files that change are still being written."""
        if (found, problem) == self._suspected and problem != self._unusable:
            self._unusable = problem
            self._log.error(
                "renewed files cannot be used, what was in force stays so: {problem}",
                problem=problem,
            )
        self._suspected = found, problem

    def _announce(self) -> None:
        """Tell of each certificate that comes into force, by whichever way."""
        serial = f"{self._tls.serial_number:x}"
        if serial != self._announced:
            self._announced = serial
            self._log.info(
                "{file} is in force until {ends}, its serial number is {serial}",
                file=self._tls.settings.certificate,
                ends=self._tls.expires_at,
                serial=serial,
            )

    def _remind(self, file: str, validity: Validity) -> None:
        """Tell of an end that is near, when it becomes so and every day."""
        now, seconds = self._now(), self._seconds()
        standing = validity.standing(now)
        told, told_at = self._told.get(file, (CertificateState.GOOD, seconds))
        if standing is told and (
            standing is CertificateState.GOOD or seconds - told_at < _REMIND_SECONDS
        ):
            return
        self._told[file] = standing, seconds
        if standing is CertificateState.ENDED:
            self._log.error(
                "{file} ended on {ends}, and is refused by who verifies it: renew it",
                file=file,
                ends=validity.ends,
            )
        elif standing is CertificateState.ENDING:
            self._log.warn(
                "{file} ends in {left}, on {ends}: renew it",
                file=file,
                left=validity.left(now),
                ends=validity.ends,
            )
        elif standing is CertificateState.FUTURE:
            self._log.warn(
                "{file} is not valid before {begins}: check this machine's clock",
                file=file,
                begins=validity.begins,
            )


def _shortly(file: str, validity: Validity, now: datetime) -> str:
    match validity.standing(now):
        case CertificateState.ENDED:
            return f"{file} has ended"
        case CertificateState.ENDING:
            return f"{file} ends in {validity.left(now)}"
        case CertificateState.FUTURE:
            return f"{file} is not valid yet"
        case _:
            return ""
