"""Tests of the store: its statements on a real database, with the daemon's rights."""

from __future__ import annotations

from typing import Final

from posd import migrations
from posd.link import Link
from posd.testing.postgres import test_server
from posd.values import Tenant
from tests.database_case import REACTOR, DatabaseCase
from tests.schema_case import two_shops

KITCHEN: Final = Tenant(1, "kitchen", "The kitchen", "dinedesk_kitchen")
GRILL: Final = Tenant(2, "grill", "The grill", "dinedesk_grill")


class StoreCase(DatabaseCase):
    def template(self) -> str:
        return test_server().template(two_shops)

    def setUp(self) -> None:
        super().setUp()
        migrations.bootstrap(self.dsn)

    async def session(self) -> Link:
        return await self.up(Link(REACTOR, self.dsn, name="posd store", statement_timeout=5.0))
