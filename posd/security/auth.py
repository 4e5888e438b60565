"""Authentication: the key of a request becomes a `Credential`.

A missing key, a wrong key and an unknown tenant get the same answer. Keys are looked up by their SHA-256.
A key that is not in the index of all keys is refused without a statement. Otherwise the database decides,
and the credential is cached for some seconds. Failed attempts are counted by address. They never block a
valid key.
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
    """Checks keys against the index of all keys, and against the database.

    `refused` is called with the code of the error at each failed attempt.
    """

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
        """Return the credential of a key at a tenant, for the device that the request names.

        Raises `Unauthorized`, `TooManyRequests` if the address has failed too often, `Forbidden` if the
        key must not be used for this device, and `Unavailable`.
        """
        sha256 = await self._known_hash(key, slug, address)
        credential = await self._lookup.find(CredentialQuery(slug, sha256, device_id))
        if credential is None:
            raise self._count_failure(address)
        self._used_key_ids.add(credential.principal.key_id)
        self._check_credential(credential, device_id)
        return credential

    async def find_principal(self, key: str | None, address: str) -> Principal:
        """Look up a key when the URL names no tenant. A key for all tenants wins over a tenant's own.

        Raises `Unauthorized`, `TooManyRequests` and `Unavailable`.
        """
        sha256 = await self._known_hash(key, None, address)
        found = await credentials.find_key(self._database, sha256)
        if found is None:
            raise self._count_failure(address)
        return found

    async def require_known_key(self, key: str | None, address: str) -> None:
        """Check that the key is in the index, for a request whose body names the tenant.

        Raises `Unauthorized`, `TooManyRequests` and `Unavailable`.
        """
        await self._known_hash(key, None, address)

    async def trusted_tenant(self, slug: str) -> Tenant:
        """Return the tenant of a request on a trusted listener, which needs no key. Raises `NotFound`."""
        tenant = await tenants.by_slug(self._database, slug)
        if tenant is None:
            raise NotFound("There is no such tenant.", code="unknown_tenant")
        return tenant

    def forget_all(self) -> None:
        """Clear the cache of credentials."""
        self._lookup.forget_all()

    def forget_key(self, key_id: int) -> None:
        """Drop the cached credentials of a key."""
        self._lookup.forget_key(key_id)

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """Drop the cached credentials of a tenant."""
        self._lookup.forget_tenant(tenant_id)

    def invalidate(self) -> None:
        """Let the next `refresh` read the whole index, because the database may be another one."""
        self._keys.invalidate()

    async def refresh(self) -> None:
        """Read the changes of keys into the index."""
        await self._keys.refresh()

    async def record_used_keys(self) -> None:
        """Store the time of last use of the keys that were used since the last call."""
        used, self._used_key_ids = self._used_key_ids, set()
        if used:
            await credentials.record_use(self._database, used)

    async def _known_hash(self, key: str | None, slug: str | None, address: str) -> bytes:
        """Return the SHA-256 of a key that may be valid at this tenant, or at any if `slug` is None."""
        sha256 = key_hash(key)
        if sha256 is None or not await self._keys.may_be_valid(sha256, slug):
            raise self._count_failure(address)
        return sha256

    def _check_credential(self, credential: Credential, device_id: str | None) -> None:
        """Raise the refusal of a valid key: wrong device, disabled device, or a tenant out of service."""
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
        """Count a failed attempt, unless the address is blocked already, and return the error to raise."""
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
    """Return the SHA-256 of a key. None if there is no key or it is longer than a key can be."""
    if key is None or not 0 < len(key) <= _LONGEST_KEY:
        return None
    return keys.digest(key)


def require_kind(principal: Principal, *kinds: KeyKind) -> None:
    """Raise `Forbidden` unless the key is of one of these kinds."""
    if principal.kind not in kinds:
        raise Forbidden(f"A key of kind {principal.kind.value} may not do this.")
