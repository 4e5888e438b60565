"""The hashes of all keys that may be valid, in memory: a key that is not known costs no statement.

The index says no, and never yes. A key that is in it is still looked up in the database, which knows whether
it is valid now. A key that is not in it is refused from memory.

It is read in pages when posd starts and whenever the feed's connection was made anew, since another server
may be behind it then. After that it reads changes only: when a notification says so, and once a second in
case that none arrived. 100,000 keys take about 30 MiB.
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
"""Keys that one statement brings. The reactor does nothing else while it takes them: some milliseconds."""
_NOTIFICATION_SECONDS: Final = 0.1
"""For so long a key that is not known may wait for the notification that it has just been made."""
_MOST_WAITING: Final = 100
_MOST_REFUSED: Final = 10_000
_STALE_SECONDS: Final = 10.0
"""After so long without a successful look, a key that is missing may be a new one."""


class KnownKey(NamedTuple):
    """A key that may be valid. `tenant_id` is None for a key of all tenants.

    `shared`: several terminals may use it, each by its own name.
    """

    id: int
    tenant_id: TenantId | None
    shared: bool


class _IndexContents:
    """The keys by their SHA-256, and the active tenants by their slugs."""

    def __init__(self) -> None:
        self.keys: dict[bytes, tuple[KnownKey, ...]] = {}
        self.slugs: dict[str, TenantId] = {}

    def apply(self, keys: Iterable[StoredKey], tenants: Iterable[StoredTenant]) -> None:
        for key in keys:
            # One key may be of one tenant, and of all tenants too.
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
    """Which keys there are. `refresh` has to be called at least every second; it never fails for long."""

    def __init__(self, reactor: IReactorTime, database: Pool) -> None:
        self._reactor = reactor
        self._database = database
        self._contents = _IndexContents()
        self._snapshot: KeySnapshot | None = None
        self._is_complete = False
        """Whether `_contents` can be brought up to date by changes alone."""
        self._refreshed_at: float | None = None
        """When the last look began that brought everything; None if the last one failed."""
        self.is_loaded = False
        """Whether everything has been read once."""
        self._is_refreshing = False
        self._refresh_again = False
        self._waiting: dict[Deferred[None], IDelayedCall] = {}
        self._recently_refused: OrderedDict[tuple[bytes, str | None], None] = OrderedDict()
        """What was presented lately, has waited and was refused: it waits no more."""

    def __len__(self) -> int:
        return len(self._contents.keys)

    @property
    def is_fresh(self) -> bool:
        """Whether the index is up to date, as far as can be known."""
        at = self._refreshed_at
        return at is not None and self._reactor.seconds() - at < _STALE_SECONDS

    def find(self, sha256: bytes, slug: str | None = None) -> KnownKey | None:
        """A key that may be valid: at this tenant, or at all where no slug is given."""
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
        """The active tenant with this slug, as far as the index knows."""
        return self._contents.slugs.get(slug)

    async def may_be_valid(self, sha256: bytes, slug: str | None = None) -> bool:
        """Whether a key may be valid. False is certain; before everything was read, all keys may be.

        Raises `Unavailable` for a key that is not in the index while the index is out of date: it may have
        been made since. A key that comes for the first time waits for a moment, in case that it was made
        just before and the notification of that is still on its way. No statement is run for it.
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
        """Fires at the end of the next look, or after so many seconds."""
        waiter: Deferred[None] = Deferred()
        self._waiting[waiter] = self._reactor.callLater(seconds, self._wake, waiter)
        return waiter

    def _wake(self, waiter: Deferred[None]) -> None:
        timer = self._waiting.pop(waiter)
        if timer.active():
            timer.cancel()
        waiter.callback(None)

    def invalidate(self) -> None:
        """Read everything again with the next look: it may be another database than before."""
        self._is_complete = False

    async def refresh(self) -> None:
        """Read what has changed. Of calls while one is under way, one more look follows for all.

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
        """In pages, so that nobody is held up; what is changed meanwhile is read as a change."""
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
