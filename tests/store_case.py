"""Tests of the store: its statements on a real database, with the rights of the daemon."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final
from uuid import UUID

from posd.database.reconnecting import ReconnectingConnection
from posd.errors import Refusal
from posd.testing.postgres import test_server
from posd.values import StreamName, Tenant
from tests.database_case import REACTOR, DatabaseCase
from tests.schema_case import two_shops

KITCHEN: Final = Tenant(1, "kitchen", "The kitchen", "dinedesk_kitchen")
GRILL: Final = Tenant(2, "grill", "The grill", "dinedesk_grill")


class StoreCase(DatabaseCase):
    def template(self) -> str:
        return test_server().template(two_shops)

    async def executor(self) -> ReconnectingConnection:
        return await self.up(
            ReconnectingConnection(REACTOR, self.dsn, name="posd store", statement_timeout=300.0)
        )

    def stream(self) -> StreamName:
        """Return the current stream id of `kitchen`."""
        name = "SELECT stream_id::text FROM dinedesk_main.pos_heads WHERE tenant_id = 1"
        return 1, UUID(self.admin.value(name))

    async def refused(
        self, code: str, call: Awaitable[object], kind: type[Refusal] = Refusal
    ) -> Refusal:
        """Assert that a call is refused with this code."""
        try:
            await call
        except kind as refusal:
            self.assertEqual(refusal.code, code)
            return refusal
        raise AssertionError(f"not refused as {code}")
