"""Who is calling: a key becomes a `Credential`, or one answer for all that does not fit.

Keys are looked up by their SHA-256; those that are valid are remembered for some seconds, and
forgotten at once when the database says that they, or their tenant, have changed. An unknown key
costs one statement every time, the same whether the tenant exists or not. Failed attempts are counted by
address; a valid key is never refused for them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from posd.database import migrations
from posd.database.pool import Database
from posd.errors import (
    Busy,
    Forbidden,
    NotFound,
    Refusal,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from posd.security import api_keys as keys
from posd.security.rate_limits import FailedAttempts
from posd.store import credentials, tenants
from posd.store.credentials import Credential
from posd.values import KeyKind, Principal, Tenant, TenantId

T = TypeVar("T")

_REMEMBER_SECONDS: Final = 10.0
_MOST_REMEMBERED: Final = 10_000
_LONGEST_KEY: Final = 255
_LOOK_UP_SECONDS: Final = 3.5
"""Twice that, for a key and then for the terminal that it names, is less than a till waits for an answer."""

Remembered = tuple[str, bytes, str | None]
"""A slug, the SHA-256 of a key, and the device that was named besides."""


class Authenticator:
    """Checks credentials against the database and remembers them for a moment."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        database: Database,
        failed_attempts: FailedAttempts,
        refused: Callable[[str], None] = lambda code: None,
    ) -> None:
        self._reactor = reactor
        self._database = database
        self._failed_attempts = failed_attempts
        self._refused = refused
        self._valid: OrderedDict[Remembered, tuple[Credential, float]] = OrderedDict()
        self._asking: dict[Remembered, list[Deferred[Credential | None]]] = {}
        self._used: set[int] = set()
        # How often something was to be forgotten: what was asked before may be out of date.
        self._forgotten = 0
        self._wanted = migrations.expected()["tenant"]

    async def at_tenant(
        self, slug: str, key: str | None, device_id: str | None, address: str
    ) -> Credential:
        """What the key opens at a tenant, for the device that is named besides it.

        Raises `Unauthorized`, `TooManyRequests` when this address failed too often, `Forbidden` when
        the device may not be named with this key, and `Unavailable`.
        """
        sha256 = _hash(key)
        credential = None if sha256 is None else await self._find((slug, sha256, device_id))
        if credential is None:
            raise self._refusal(address)
        self._admit(credential, device_id)
        return credential

    async def anywhere(self, key: str | None, address: str) -> Principal:
        """Whom a key speaks for, where no tenant is named; one of all tenants before one of one."""
        sha256 = _hash(key)
        found = None if sha256 is None else await credentials.find_anywhere(self._database, sha256)
        if found is None:
            raise self._refusal(address)
        return found

    async def somewhere(self, key: str | None, address: str) -> int:
        """The id of a valid key of anybody, where it is yet to be read who the tenant is."""
        sha256 = _hash(key)
        key_id = None if sha256 is None else await credentials.known(self._database, sha256)
        if key_id is None:
            raise self._refusal(address)
        return key_id

    async def unasked(self, slug: str) -> Tenant:
        """The tenant that a caller names who needs no key, on a trusted listener."""
        tenant = await tenants.by_slug(self._database, slug)
        if tenant is None:
            raise NotFound("There is no such tenant.", code="unknown_tenant")
        return tenant

    def forget_all(self) -> None:
        """Look every key up again when it is used next."""
        self._forgotten += 1
        self._valid.clear()

    def forget_key(self, key_id: int) -> None:
        """Look it up again when it is used next."""
        self._forgotten += 1
        for remembered, (credential, _) in list(self._valid.items()):
            if credential.principal.key_id == key_id:
                del self._valid[remembered]

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """Look its keys up again when they are used next."""
        self._forgotten += 1
        for remembered, (credential, _) in list(self._valid.items()):
            if credential.tenant.id == tenant_id:
                del self._valid[remembered]

    async def note_used(self) -> None:
        """Write down which keys were used since the last time."""
        used, self._used = self._used, set()
        if used:
            await credentials.touch(self._database, used)

    async def _find(self, wanted: Remembered) -> Credential | None:
        remembered = self._remembered(wanted)
        if remembered is not None:
            return remembered
        waiter: Deferred[Credential | None] = Deferred()
        waiter.addTimeout(_LOOK_UP_SECONDS, self._reactor, onTimeoutCancel=_too_late)
        if wanted in self._asking:
            self._asking[wanted].append(waiter)
        else:
            self._asking[wanted] = [waiter]
            Deferred.fromCoroutine(self._look_up(wanted))
        return await waiter

    async def _look_up(self, wanted: Remembered) -> None:
        """Ask the database, and tell all who wait for it by then; whoever has given up asks anew."""
        forgotten = self._forgotten
        try:
            credential = await credentials.find(self._database, *wanted)
        except Exception as error:
            for each in self._asking.pop(wanted):
                each.errback(error)
            return
        if credential is not None:
            self._used.add(credential.principal.key_id)
            if forgotten == self._forgotten:
                self._remember(wanted, credential)
        for each in self._asking.pop(wanted):
            each.callback(credential)

    def _remembered(self, wanted: Remembered) -> Credential | None:
        credential, until = self._valid.get(wanted, (None, 0.0))
        if credential is None or until <= self._reactor.seconds():
            return None
        if credential.expires_at is not None and credential.expires_at <= datetime.now(UTC):
            return None
        self._used.add(credential.principal.key_id)
        return credential

    def _remember(self, wanted: Remembered, credential: Credential) -> None:
        self._valid[wanted] = credential, self._reactor.seconds() + _REMEMBER_SECONDS
        self._valid.move_to_end(wanted)
        while len(self._valid) > _MOST_REMEMBERED:
            self._valid.popitem(last=False)

    def _admit(self, credential: Credential, device_id: str | None) -> None:
        """What a valid key may still not do."""
        own = credential.principal.device_id
        if own is not None and device_id not in (None, own):
            raise Forbidden("The key belongs to another device.", code="device_mismatch")
        if own is None and device_id is not None and credential.device_has_key:
            raise Forbidden("This device has a key of its own.", code="device_key_required")
        if not credential.device_active:
            raise Forbidden("This device is disabled.", code="device_disabled")
        misfit = migrations.misfit(list(credential.applied), self._wanted)
        if misfit is not None:
            self._log.error(
                "tenant {slug} cannot be served: {reason}",
                slug=credential.tenant.slug,
                reason=misfit,
            )
            raise Unavailable("This tenant cannot be served at the moment.", retry_after=60)

    def _refusal(self, address: str) -> Refusal:
        """What somebody hears who failed once more."""
        seconds = self._failed_attempts.blocked(address)
        refusal: Refusal = Unauthorized()
        if seconds is None:
            self._failed_attempts.failed(address)
        else:
            refusal = TooManyRequests(
                "Too many failed attempts.", code="too_many_attempts", retry_after=seconds
            )
        self._refused(refusal.code)
        return refusal


def _too_late(result: T | Failure, seconds: float) -> T | Failure:
    if isinstance(result, Failure) and result.check(CancelledError):
        raise Busy("The database is busy. Try again.", retry_after=1)
    return result


def _hash(key: str | None) -> bytes | None:
    """What a key is looked up by; None for what cannot be one."""
    if key is None or not 0 < len(key) <= _LONGEST_KEY:
        return None
    return keys.digest(key)


def of_kind(principal: Principal, *kinds: KeyKind) -> None:
    """Raise `Forbidden` unless the key is of one of these kinds."""
    if principal.kind not in kinds:
        raise Forbidden(f"A key of kind {principal.kind.value} may not do this.")
