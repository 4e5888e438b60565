"""An index in memory of all keys that may be valid, so that an unknown key costs no statement.

The index only refuses. A key that is in the index is still looked up in the database, which decides whether
the key is valid now.

The index is loaded in pages when posd starts and whenever the feed has reconnected, because the new
connection may lead to another server. After that it reads changes only: after a notification, and once a
second in case a notification was lost. 100,000 keys take about 30 MiB.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from posd.database.pool import Pool
from posd.errors import Unavailable
from posd.store import key_changes
from posd.store.key_changes import KeySnapshot, StoredKey, StoredTenant
from posd.values import KeyKind, TenantId

_PAGE_KEYS: Final = 2000
"""Keys of one statement. Adding a page to the index blocks the reactor for some milliseconds."""
_NOTIFICATION_SECONDS: Final = 0.1
"""How long an unknown key waits for a notification that it has just been created."""
_MOST_WAITING: Final = 100
_MOST_REFUSED: Final = 10_000
_STALE_SECONDS: Final = 10.0
"""After so long without a successful refresh, a key that is missing may be a new one."""


class KnownKey(NamedTuple):
    """A key that may be valid. `tenant_id` is None for a key of all tenants.

    `shared` is true if several terminals may use the key, each with its own device id.
    """

    id: int
    tenant_id: TenantId | None
    shared: bool


class _IndexContents:
    """The keys by SHA-256, and the active tenants by slug."""

    def __init__(self) -> None:
        self.keys: dict[bytes, tuple[KnownKey, ...]] = {}
        self.slugs: dict[str, TenantId] = {}

    def apply(self, keys: Iterable[StoredKey], tenants: Iterable[StoredTenant]) -> None:
        for key in keys:
            # The same secret may be stored as a key of a tenant and as a key of all tenants.
            found = [each for each in self.keys.get(key.sha256, ()) if each.id != key.id]
            if key.valid:
                found.append(KnownKey(key.id, key.tenant_id, key.kind is KeyKind.TENANT))
            if found:
                self.keys[key.sha256] = tuple(found)
            else:
                self.keys.pop(key.sha256, None)
        for tenant in tenants:
            if tenant.active:
                self.slugs[tenant.slug] = tenant.id
            else:
                self.slugs.pop(tenant.slug, None)


class KeyIndex:
    """The index of all keys. `refresh` must be called at least once a second."""

    def __init__(self, reactor: IReactorTime, database: Pool) -> None:
        self._reactor = reactor
        self._database = database
        self._contents = _IndexContents()
        self._snapshot: KeySnapshot | None = None
        self._is_complete = False
        """Whether `_contents` needs only the changes since `_snapshot`."""
        self._refreshed_at: float | None = None
        """When the last successful refresh began; None if the last refresh failed."""
        self.is_loaded = False
        """Whether the index has been loaded once."""
        self._is_refreshing = False
        self._refresh_again = False
        self._waiting: dict[Deferred[None], IDelayedCall] = {}
        self._recently_refused: OrderedDict[tuple[bytes, str | None], None] = OrderedDict()
        """Keys that have waited for a notification and were refused. They do not wait again."""

    def __len__(self) -> int:
        return len(self._contents.keys)

    @property
    def is_fresh(self) -> bool:
        """Whether a refresh has succeeded within the last ten seconds."""
        at = self._refreshed_at
        return at is not None and self._reactor.seconds() - at < _STALE_SECONDS

    def find(self, sha256: bytes, slug: str | None = None) -> KnownKey | None:
        """Return a key that may be valid at this tenant, or at any tenant if `slug` is None."""
        found = self._contents.keys.get(sha256, ())
        if slug is None:
            return found[0] if found else None
        tenant_id = self._contents.slugs.get(slug)
        if tenant_id is None:
            return None
        for each in found:
            if each.tenant_id is None or each.tenant_id == tenant_id:
                return each
        return None

    def tenant(self, slug: str) -> TenantId | None:
        """Return the id of the active tenant with this slug, or None."""
        return self._contents.slugs.get(slug)

    async def may_be_valid(self, sha256: bytes, slug: str | None = None) -> bool:
        """Return whether a key may be valid. False is certain. Before the first load, every key may be.

        Raises `Unavailable` for a key that is not in the index while the index is out of date, because the
        key may be new. An unknown key that is presented for the first time waits 0.1 s, because the
        notification of its creation may not have arrived. No statement is run for the key.
        """
        if not self.is_loaded or self.find(sha256, slug) is not None:
            return True
        presented = (sha256, slug)
        if presented not in self._recently_refused and len(self._waiting) < _MOST_WAITING:
            deadline = self._reactor.seconds() + _NOTIFICATION_SECONDS
            while (seconds := deadline - self._reactor.seconds()) > 0:
                await self._next_refresh(seconds)
                if self.find(sha256, slug) is not None:
                    return True
        if not self.is_fresh:
            raise Unavailable("The database cannot be reached.", retry_after=2)
        self._recently_refused[presented] = None
        if len(self._recently_refused) > _MOST_REFUSED:
            self._recently_refused.popitem(last=False)
        return False

    def _next_refresh(self, seconds: float) -> Deferred[None]:
        """Return a Deferred that fires at the end of the next refresh, or after so many seconds."""
        waiter: Deferred[None] = Deferred()
        self._waiting[waiter] = self._reactor.callLater(seconds, self._wake, waiter)
        return waiter

    def _wake(self, waiter: Deferred[None]) -> None:
        timer = self._waiting.pop(waiter)
        if timer.active():
            timer.cancel()
        waiter.callback(None)

    def invalidate(self) -> None:
        """Let the next refresh load the whole index, because the database may be another one."""
        self._is_complete = False

    async def refresh(self) -> None:
        """Read the changes. Calls during a refresh are answered by one more refresh after it.

        Raises `Unavailable` and `StatementFailed`.
        """
        if self._is_refreshing:
            self._refresh_again = True
            return
        self._is_refreshing = True
        try:
            await self._bring_up_to_date()
            while self._refresh_again:
                self._refresh_again = False
                await self._bring_up_to_date()
        except BaseException:
            self._refreshed_at = None
            raise
        finally:
            self._is_refreshing = self._refresh_again = False
            for waiter in [*self._waiting]:
                self._wake(waiter)

    async def _bring_up_to_date(self) -> None:
        began = self._reactor.seconds()
        if self._is_complete and self._snapshot is not None:
            found = await key_changes.load_changes(self._database, self._snapshot)
            if found.snapshot.is_after(self._snapshot):
                self._contents.apply(found.keys, found.tenants)
                self._snapshot = found.snapshot
                self._refreshed_at = began
                return
        await self._load_all()
        self._refreshed_at = began

    async def _load_all(self) -> None:
        """Load all keys in pages, so that the reactor is not blocked, then the changes during the load."""
        self._is_complete = True
        try:
            contents = _IndexContents()
            since = await key_changes.current_snapshot(self._database)
            contents.apply((), await key_changes.load_tenants(self._database))
            after = 0
            while keys := await key_changes.load_keys(self._database, after, _PAGE_KEYS):
                contents.apply(keys, ())
                after = keys[-1].id
            found = await key_changes.load_changes(self._database, since)
        except BaseException:
            self._is_complete = False
            raise
        contents.apply(found.keys, found.tenants)
        self._contents, self._snapshot, self.is_loaded = contents, found.snapshot, True
