"""Who is calling: a key becomes a `Credential`, or one answer for all that does not fit.

Keys are looked up by their SHA-256. A key that is not in the index of all keys is refused from memory,
whether the tenant exists or not. What a key opens is looked up in the database and remembered for some
seconds. Failed attempts are counted by address; a valid key is never refused for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from posd.database import migrations
from posd.database.pool import Pool
from posd.errors import (
    Forbidden,
    NotFound,
    Refusal,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from posd.security import api_keys as keys
from posd.security.credential_lookup import CredentialLookup
from posd.security.key_index import KeyIndex
from posd.security.log_sampler import LogSampler
from posd.security.rate_limits import FailedAttempts
from posd.store import credentials, tenants
from posd.store.credentials import Credential, CredentialQuery
from posd.values import KeyKind, Principal, Tenant, TenantId

_LONGEST_KEY: Final = 255


class Authenticator:
    """Checks credentials against the index of all keys, and against the database."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        database: Pool,
        index: KeyIndex,
        failed_attempts: FailedAttempts,
        refused: Callable[[str], None] = lambda code: None,
    ) -> None:
        self._database = database
        self._keys = index
        self._lookup = CredentialLookup(reactor, database)
        self._failed_attempts = failed_attempts
        self._refused = refused
        self._used_key_ids: set[int] = set()
        self._expected_migrations = migrations.expected_files()["tenant"]
        self._misfit_log = LogSampler(reactor.seconds)

    async def find_credential(
        self, slug: str, key: str | None, device_id: str | None, address: str
    ) -> Credential:
        """What the key opens at a tenant, for the device that is named besides it.

        Raises `Unauthorized`, `TooManyRequests` when this address failed too often, `Forbidden` when
        the device may not be named with this key, and `Unavailable`.
        """
        sha256 = await self._known_hash(key, slug, address)
        credential = await self._lookup.find(CredentialQuery(slug, sha256, device_id))
        if credential is None:
            raise self._count_failure(address)
        self._used_key_ids.add(credential.principal.key_id)
        self._check_credential(credential, device_id)
        return credential

    async def find_principal(self, key: str | None, address: str) -> Principal:
        """Whom a key speaks for, where no tenant is named; one of all tenants before one of one."""
        sha256 = await self._known_hash(key, None, address)
        found = await credentials.find_key(self._database, sha256)
        if found is None:
            raise self._count_failure(address)
        return found

    async def require_known_key(self, key: str | None, address: str) -> None:
        """Let in a key that may be one of anybody's, where it is yet to be read who the tenant is."""
        await self._known_hash(key, None, address)

    async def trusted_tenant(self, slug: str) -> Tenant:
        """The tenant that a caller names who needs no key, on a trusted listener."""
        tenant = await tenants.by_slug(self._database, slug)
        if tenant is None:
            raise NotFound("There is no such tenant.", code="unknown_tenant")
        return tenant

    def forget_all(self) -> None:
        """Look every key up again when it is used next."""
        self._lookup.forget_all()

    def forget_key(self, key_id: int) -> None:
        """Look it up again when it is used next."""
        self._lookup.forget_key(key_id)

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """Look its keys up again when they are used next."""
        self._lookup.forget_tenant(tenant_id)

    def invalidate(self) -> None:
        """Read the index of all keys anew with the next look: it may be another database."""
        self._keys.invalidate()

    async def refresh(self) -> None:
        """Read which keys are new and which are gone."""
        await self._keys.refresh()

    async def record_used_keys(self) -> None:
        """Write down which keys were used since the last time."""
        used, self._used_key_ids = self._used_key_ids, set()
        if used:
            await credentials.record_use(self._database, used)

    async def _known_hash(self, key: str | None, slug: str | None, address: str) -> bytes:
        """The SHA-256 of a key that may be valid: at this tenant, or anywhere where no slug is given."""
        sha256 = key_hash(key)
        if sha256 is None or not await self._keys.may_be_valid(sha256, slug):
            raise self._count_failure(address)
        return sha256

    def _check_credential(self, credential: Credential, device_id: str | None) -> None:
        """What a valid key may still not do."""
        own_device_id = credential.principal.device_id
        if own_device_id is not None and device_id not in (None, own_device_id):
            raise Forbidden("The key belongs to another device.", code="device_mismatch")
        if own_device_id is None and device_id is not None and credential.device_has_key:
            raise Forbidden("This device has a key of its own.", code="device_key_required")
        if not credential.device_active:
            raise Forbidden("This device is disabled.", code="device_disabled")
        misfit = migrations.version_mismatch(credential.applied, self._expected_migrations)
        if misfit is not None:
            unsaid = self._misfit_log.take(credential.tenant.id)
            if unsaid is not None:
                self._log.error(
                    "requests of a tenant are answered with 503: tenant={tenant} reason={reason!r}"
                    " unsaid={unsaid}",
                    tenant=credential.tenant.slug,
                    reason=misfit,
                    unsaid=unsaid,
                )
            raise Unavailable("This tenant cannot be served at the moment.", retry_after=60)

    def _count_failure(self, address: str) -> Refusal:
        """What somebody hears who failed once more."""
        seconds = self._failed_attempts.seconds_blocked(address)
        refusal: Refusal = Unauthorized()
        if seconds is None:
            self._failed_attempts.record_failure(address)
        else:
            refusal = TooManyRequests(
                "Too many failed attempts.", code="too_many_attempts", retry_after=seconds
            )
        self._refused(refusal.code)
        return refusal


def key_hash(key: str | None) -> bytes | None:
    """What a key is looked up by; None for what cannot be one."""
    if key is None or not 0 < len(key) <= _LONGEST_KEY:
        return None
    return keys.digest(key)


def require_kind(principal: Principal, *kinds: KeyKind) -> None:
    """Raise `Forbidden` unless the key is of one of these kinds."""
    if principal.kind not in kinds:
        raise Forbidden(f"A key of kind {principal.kind.value} may not do this.")
