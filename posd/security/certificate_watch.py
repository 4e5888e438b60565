"""Loads renewed certificates without a reload, and warns before a certificate expires.

Certificates are renewed by certbot, by another ACME client, by `posctl make-cert --replace` or by a person.
The files are replaced one after the other and may be incomplete for a moment. A new certificate and key are
loaded when they belong together. If they still do not at the next check, an error is logged.
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

_CHECK_SECONDS: Final = 10.0
_REMIND_SECONDS: Final = 24 * 3600.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class CertificateWatch(Service):
    """Checks the files of `[tls]` and the expiry of their certificates every ten seconds.

    `now` returns the time of day in UTC.
    """

    _log = Logger()

    def __init__(
        self, reactor: IReactorTime, tls: ServerTLS, *, now: Callable[[], datetime] = _utc_now
    ) -> None:
        self._tls = tls
        self._utc_now = now
        self._seconds = reactor.seconds
        self._loop = LoopingCall(self._check_safely)
        self._loop.clock = reactor
        # The problem of the last check with the stamps of its files, and the problem that was logged.
        self._suspected: tuple[Sequence[Stamp], str] | None = None
        self._unusable = ""
        self._logged_serial = ""
        self._reported: dict[str, tuple[CertificateState, float]] = {}

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._loop.start(_CHECK_SECONDS)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._loop.running:
            self._loop.stop()

    @property
    def has_unusable_files(self) -> bool:
        """Whether the files have changed and cannot be loaded."""
        return bool(self._unusable)

    @property
    def trouble(self) -> str:
        """The present problems in one line, for `systemctl status`. Empty if there are none."""
        now = self._utc_now()
        ends = (_expiry_summary(file, each, now) for file, each in self._tls.validities.items())
        unusable = self._unusable and f"renewed certificate not loaded: {self._unusable}"
        return "; ".join(filter(None, (*ends, unusable)))

    def _check_safely(self) -> None:
        # An exception would stop the LoopingCall, and the next renewal would go unnoticed.
        try:
            self.check()
        except Exception:
            self._log.failure("the files of [tls] could not be checked; posd checks again in 10 s")

    def check(self) -> None:
        """Load changed files if they are usable, and log certificates that expire soon."""
        if self._tls.is_stale:
            self._reload()
        else:
            self._suspected, self._unusable = None, ""
        self._log_in_force()
        for file, validity in self._tls.validities.items():
            self._log_expiry(file, validity)

    def _reload(self) -> None:
        file_stamps = self._tls.file_stamps()
        try:
            is_new = self._tls.reload()
        except StartError as error:
            self._note_unusable(file_stamps, "; ".join(str(error).splitlines()))
        else:
            self._suspected, self._unusable = None, ""
            if is_new:
                self._log.info("renewed files of [tls] are in force")

    def _note_unusable(self, file_stamps: Sequence[Stamp], problem: str) -> None:
        """Log a problem when two checks find the same files. Files that change are still being written."""
        if (file_stamps, problem) == self._suspected and problem != self._unusable:
            self._unusable = problem
            self._log.error(
                "renewed files cannot be used, posd keeps the old certificate: {problem}",
                problem=problem,
            )
        self._suspected = file_stamps, problem

    def _log_in_force(self) -> None:
        """Log each certificate that comes into force, at the start, by a renewal or by a reload."""
        serial = f"{self._tls.serial_number:x}"
        if serial != self._logged_serial:
            self._logged_serial = serial
            self._log.info(
                "{file} is in force until {ends}, its serial number is {serial}",
                file=self._tls.settings.certificate,
                ends=self._tls.expires_at,
                serial=serial,
            )

    def _log_expiry(self, file: str, validity: Validity) -> None:
        """Log an expiry that is near or past, when the state changes and then once a day."""
        now, seconds = self._utc_now(), self._seconds()
        state = validity.state(now)
        reported_state, reported_at = self._reported.get(file, (CertificateState.GOOD, seconds))
        if state is reported_state and (
            state is CertificateState.GOOD or seconds - reported_at < _REMIND_SECONDS
        ):
            return
        self._reported[file] = state, seconds
        if state is CertificateState.ENDED:
            self._log.error(
                "{file} expired on {ends}, clients that verify it refuse it: renew it",
                file=file,
                ends=validity.ends,
            )
        elif state is CertificateState.ENDING:
            self._log.warn(
                "{file} expires in {left}, on {ends}: renew it",
                file=file,
                left=validity.time_left(now),
                ends=validity.ends,
            )
        elif state is CertificateState.FUTURE:
            self._log.warn(
                "{file} is not valid before {begins}: check this machine's clock",
                file=file,
                begins=validity.begins,
            )


def _expiry_summary(file: str, validity: Validity, now: datetime) -> str:
    match validity.state(now):
        case CertificateState.ENDED:
            return f"{file} has expired"
        case CertificateState.ENDING:
            return f"{file} expires in {validity.time_left(now)}"
        case CertificateState.FUTURE:
            return f"{file} is not valid yet"
        case _:
            return ""
