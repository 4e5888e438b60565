"""Keys in the database: values written to tenants.pos_api_key, and their effect."""

from __future__ import annotations

import hashlib

import psycopg2

from tests.schema_case import GRILL_SHOP, KITCHEN_SHOP, SchemaCase

OWN = "pos_b531" + "0" * 56 + "61e9"
OTHER = "pos_" + "7c" * 32
WRITE = "UPDATE dinedesk_main.tenants SET pos_api_key = %s WHERE slug = 'kitchen'"
COLUMN = "SELECT pos_api_key FROM dinedesk_main.tenants WHERE slug = 'kitchen'"
KEY_OK = "SELECT dinedesk_main.pos_key_ok(%s, %s)"


def sha256(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class KeyCase(SchemaCase):
    """The tenant `kitchen` gets a key."""

    def keys(self) -> dict[bytes, bool]:
        """Return the hashes of all keys, and whether each is valid."""
        return {
            bytes(digest): not revoked
            for digest, revoked in self.admin.rows(
                "SELECT key_sha256, revoked_at IS NOT NULL FROM dinedesk_main.pos_api_keys"
            )
        }

    def write(self, key: str | None) -> None:
        self.admin.run(WRITE, key)


class ColumnTests(KeyCase):
    """`UPDATE tenants SET pos_api_key = '…'`, as operators used to do."""

    def test_the_key_is_stored_as_a_hash_and_shown_as_a_preview(self) -> None:
        self.write(OWN)
        self.assertEqual(self.admin.value(COLUMN), "pos_b531…61e9")
        self.assertEqual(
            self.admin.rows(
                "SELECT tenant_id, kind, device_id, encode(key_sha256, 'hex'), preview, weak, from_column,"
                " revoked_at, expires_at FROM dinedesk_main.pos_api_keys"
            ),
            [
                (
                    1,
                    "tenant",
                    None,
                    sha256(OWN).hex(),
                    "pos_b531…61e9",
                    False,
                    True,
                    None,
                    None,
                )
            ],
        )

    def test_the_secret_is_in_no_row_of_any_table(self) -> None:
        self.write(OWN)
        for table in ("tenants", "pos_api_keys", "pos_devices", "pos_outbox"):
            found = f"SELECT count(*) FROM dinedesk_main.{table} AS t WHERE t::text LIKE %s"
            self.assertEqual(self.admin.value(found, f"%{OWN[8:-4]}%"), 0)

    def test_of_a_short_key_the_preview_gives_little_away(self) -> None:
        for key, preview in (("kitchen1", "k…"), ("kitchen-2026", "k…6"), ("x" * 30, "xxx…xx")):
            with self.subTest(key=key):
                self.write(key)
                self.assertEqual(self.admin.value(COLUMN), preview)

    def test_only_posds_own_keys_are_not_flagged_as_weak(self) -> None:
        weak = "SELECT weak FROM dinedesk_main.pos_api_keys WHERE revoked_at IS NULL"
        for key, expected in (
            (OWN, False),
            ("kitchen-secret", True),
            ("pos_" + "7C" * 32, True),
            ("pos_" + "7c" * 31, True),
            ("x" + OWN, True),
        ):
            with self.subTest(key=key):
                self.write(key)
                self.assertEqual(self.admin.value(weak), expected)

    def test_an_unchanged_value_changes_nothing(self) -> None:
        self.write(OWN)
        self.admin.run("UPDATE dinedesk_main.tenants SET name = 'New', pos_api_key = pos_api_key")
        self.write(self.admin.value(COLUMN))
        self.assertEqual(self.keys(), {sha256(OWN): True})

    def test_anything_with_an_ellipsis_changes_nothing(self) -> None:
        for key in (None, OWN):
            self.write(key)
            before = self.admin.value(COLUMN), self.keys()
            self.write("pos_aaaa…bbbb")
            self.assertEqual((self.admin.value(COLUMN), self.keys()), before)

    def test_null_revokes(self) -> None:
        self.write(OWN)
        self.write(None)
        self.assertIsNone(self.admin.value(COLUMN))
        self.assertEqual(self.keys(), {sha256(OWN): False})

    def test_a_new_value_revokes_the_old_one_at_once(self) -> None:
        self.write(OWN)
        self.write(OTHER)
        self.assertEqual(self.keys(), {sha256(OWN): False, sha256(OTHER): True})

    def test_an_old_value_written_again_is_valid_again(self) -> None:
        self.write(OWN)
        self.write(OTHER)
        self.write(OWN)
        self.assertEqual(self.keys(), {sha256(OWN): True, sha256(OTHER): False})
        self.assertEqual(self.admin.value(COLUMN), "pos_b531…61e9")

    def test_keys_that_were_made_otherwise_are_left_alone(self) -> None:
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, key_sha256, preview)"
            " VALUES (1, 'tenant', %s, 'x…')",
            sha256(OTHER),
        )
        self.write(OWN)
        self.write(None)
        self.assertEqual(self.keys(), {sha256(OWN): False, sha256(OTHER): True})

    def test_the_key_of_a_terminal_is_not_made_the_tenants(self) -> None:
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, device_id, key_sha256, preview)"
            " VALUES (1, 'device', 'POS_1', %s, 'x…')",
            sha256(OWN),
        )
        with self.assertRaisesRegex(psycopg2.errors.UniqueViolation, "belongs to a terminal"):
            self.write(OWN)
        self.assertIsNone(self.admin.value(COLUMN))

    def test_what_cannot_be_a_key_is_an_error_and_changes_nothing(self) -> None:
        self.write(OWN)
        for key in (
            "",
            "short12",
            "x" * 256,
            "with space",
            "tab\tbed-key",
            "line\nline",
            "schlüssel",
        ):
            with (
                self.subTest(key=key),
                self.assertRaisesRegex(psycopg2.errors.CheckViolation, "8 to 255 visible ASCII"),
            ):
                self.write(key)
        self.assertEqual(self.keys(), {sha256(OWN): True})

    def test_the_shortest_the_longest_and_every_visible_character_can_be_keys(self) -> None:
        for key in ("!" * 8, "~" * 255, "".join(map(chr, range(0x21, 0x7F)))):
            with self.subTest(key=key):
                self.write(key)
                self.assertTrue(self.keys()[sha256(key)])

    def test_two_tenants_may_have_the_same_key(self) -> None:
        self.admin.run("UPDATE dinedesk_main.tenants SET pos_api_key = 'shared-secret'")
        self.assertEqual(
            self.admin.rows("SELECT tenant_id FROM dinedesk_main.pos_api_keys ORDER BY 1"),
            [(1,), (2,)],
        )

    def test_it_is_rolled_back_with_its_transaction(self) -> None:
        self.write(OWN)
        self.admin.run("BEGIN")
        self.write(OTHER)
        self.admin.run("ROLLBACK")
        self.assertEqual(self.keys(), {sha256(OWN): True})


class InsertTests(KeyCase):
    """A tenant that is inserted with its key."""

    INSERT = (
        "INSERT INTO dinedesk_main.tenants (slug, name, schema_name, pos_api_key)"
        " VALUES (%s, 'N', 'dinedesk_' || %s, %s)"
    )

    def test_the_key_is_the_new_tenants(self) -> None:
        self.admin.run(self.INSERT, "bistro", "bistro", OWN)
        self.assertEqual(
            self.admin.rows(
                "SELECT t.slug, t.pos_api_key, k.preview FROM dinedesk_main.tenants AS t"
                "  JOIN dinedesk_main.pos_api_keys AS k ON k.tenant_id = t.id"
            ),
            [("bistro", "pos_b531…61e9", "pos_b531…61e9")],
        )

    def test_a_preview_is_not_a_key(self) -> None:
        self.admin.run(self.INSERT, "bistro", "bistro", "pos_b531…61e9")
        self.assertEqual(self.keys(), {})
        self.assertIsNone(
            self.admin.value("SELECT pos_api_key FROM dinedesk_main.tenants WHERE slug = 'bistro'")
        )

    def test_a_script_that_can_be_run_again_sets_the_key_each_time(self) -> None:
        upsert = (
            f"{self.INSERT} ON CONFLICT (slug) DO UPDATE SET pos_api_key = excluded.pos_api_key"
        )
        self.admin.run(upsert, "bistro", "bistro", OWN)
        self.admin.run(upsert, "bistro", "bistro", OWN)
        self.assertEqual(self.keys(), {sha256(OWN): True})
        self.admin.run(upsert, "bistro", "bistro", OTHER)
        self.assertEqual(self.keys(), {sha256(OWN): False, sha256(OTHER): True})
        shown = "SELECT pos_api_key FROM dinedesk_main.tenants WHERE slug = 'bistro'"
        self.assertEqual(self.admin.value(shown), "pos_7c7c…7c7c")

    def test_a_tenant_that_is_there_already_keeps_its_key(self) -> None:
        self.write(OWN)
        self.admin.run(f"{self.INSERT} ON CONFLICT DO NOTHING", "kitchen", "kitchen", OTHER)
        self.assertEqual(self.keys(), {sha256(OWN): True})


class KeyOkTests(KeyCase):
    """Platform code that used to compare the column."""

    def setUp(self) -> None:
        super().setUp()
        self.write(OWN)
        self.shop = self.connect(KITCHEN_SHOP)

    def ok(self, slug: str = "kitchen", key: str | None = OWN) -> bool:
        return bool(self.shop.value(KEY_OK, slug, key))

    def test_the_right_key_is(self) -> None:
        self.assertTrue(self.ok())

    def test_others_are_not(self) -> None:
        for key in (OTHER, "", "pos_b531…61e9", None):
            self.assertFalse(self.ok(key=key))

    def test_a_key_of_another_tenant_is_not(self) -> None:
        self.assertFalse(self.ok("grill"))
        self.assertFalse(self.ok("nobody"))

    def test_another_shops_role_learns_nothing_of_the_right_key(self) -> None:
        self.assertFalse(self.connect(GRILL_SHOP).value(KEY_OK, "kitchen", OWN))

    def test_a_tenant_without_a_schema_is_no_error(self) -> None:
        self.admin.run(InsertTests.INSERT, "bistro", "bistro", OWN)
        self.assertFalse(self.ok("bistro"))

    def test_revoked_expired_future_and_disabled_are_not(self) -> None:
        for change, undo in (
            ("pos_api_keys SET revoked_at = now()", "pos_api_keys SET revoked_at = NULL"),
            ("pos_api_keys SET expires_at = now()", "pos_api_keys SET expires_at = NULL"),
            ("pos_api_keys SET not_before = now() + '1 h'", "pos_api_keys SET not_before = now()"),
            ("tenants SET is_active = false", "tenants SET is_active = true"),
        ):
            with self.subTest(change=change):
                self.admin.run(f"UPDATE dinedesk_main.{change}")
                self.assertFalse(self.ok())
                self.admin.run(f"UPDATE dinedesk_main.{undo}")
                self.assertTrue(self.ok())

    def test_a_platform_key_is_no_key_of_the_tenant(self) -> None:
        self.admin.run("UPDATE dinedesk_main.pos_api_keys SET kind = 'platform'")
        self.assertFalse(self.ok())


class DeviceKeyTests(KeyCase):
    """A terminal gets a key of its own, through the daemon's role."""

    def setUp(self) -> None:
        super().setUp()
        self.daemon = self.connect("posd")

    def make(self, device: str, key: str = OWN) -> None:
        self.daemon.run(
            "INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, device_id, key_sha256, preview)"
            " VALUES (1, 'device', %s, %s, 'x…')",
            device,
            sha256(key),
        )

    def test_the_device_begins_at_the_head_of_the_stream(self) -> None:
        self.admin.run("UPDATE dinedesk_main.pos_heads SET last_seq = 41 WHERE tenant_id = 1")
        self.make("POS_1")
        self.assertEqual(
            self.admin.rows(
                "SELECT d.tenant_id, d.device_id, d.has_key, d.is_active, d.first_acked_at, c.acked_seq"
                "  FROM dinedesk_main.pos_devices AS d"
                "  JOIN dinedesk_main.pos_cursors AS c USING (tenant_id, device_id)"
            ),
            [(1, "POS_1", True, True, None, 41)],
        )

    def test_a_device_that_is_known_keeps_its_place(self) -> None:
        self.make("POS_1")
        self.admin.run("UPDATE dinedesk_main.pos_heads SET last_seq = 41")
        self.admin.run("UPDATE dinedesk_main.pos_devices SET is_active = false, has_key = false")
        self.make("POS_1", OTHER)
        self.assertEqual(self.admin.value("SELECT acked_seq FROM dinedesk_main.pos_cursors"), 0)
        devices = "SELECT has_key, is_active FROM dinedesk_main.pos_devices"
        self.assertEqual(self.admin.rows(devices), [(True, True)])

    def test_a_kind_that_lacks_its_tenant_or_device_is_refused(self) -> None:
        for tenant, kind, device in (
            (1, "device", None),
            (None, "device", "POS_1"),
            (1, "tenant", "POS_1"),
            (None, "tenant", None),
            (1, "root", None),
        ):
            with (
                self.subTest(kind=kind, tenant=tenant, device=device),
                self.assertRaises(psycopg2.errors.CheckViolation),
            ):
                self.daemon.run(
                    "INSERT INTO dinedesk_main.pos_api_keys"
                    " (tenant_id, kind, device_id, key_sha256, preview) VALUES (%s, %s, %s, %s, 'x')",
                    tenant,
                    kind,
                    device,
                    sha256(OWN),
                )


class ToldTests(KeyCase):
    """Nodes listen, to keep their caches right."""

    def setUp(self) -> None:
        super().setUp()
        self.write(OWN)
        self.key = self.admin.value("SELECT id FROM dinedesk_main.pos_api_keys")
        self.admin.told()

    def told(self, statement: str) -> set[str]:
        self.admin.run(statement)
        return {*self.admin.told()}

    def test_they_are_told_of_a_key_that_is_valid_no_more_or_again(self) -> None:
        for change in (
            "SET revoked_at = now()",
            "SET revoked_at = NULL",
            "SET expires_at = now()",
            "SET not_before = now() + interval '1 day'",
            "SET kind = 'platform'",
        ):
            with self.subTest(change=change):
                told = self.told(f"UPDATE dinedesk_main.pos_api_keys {change}")
                self.assertEqual(told, {f"key {self.key}"})

    def test_use_of_a_key_is_no_news(self) -> None:
        self.assertEqual(
            self.told("UPDATE dinedesk_main.pos_api_keys SET last_used_at = now(), preview = 'y…'"),
            set(),
        )

    def test_they_are_told_of_a_key_that_was_deleted(self) -> None:
        self.assertEqual(self.told("DELETE FROM dinedesk_main.pos_api_keys"), {f"key {self.key}"})

    def test_they_are_told_of_both_when_the_column_is_written(self) -> None:
        told = self.told(WRITE.replace("%s", "NULL"))
        self.assertEqual(told, {"tenant 1", f"key {self.key}"})

    def test_they_are_told_of_tenants_that_change(self) -> None:
        self.assertEqual(
            self.told("UPDATE dinedesk_main.tenants SET is_active = false WHERE slug = 'grill'"),
            {"tenant 2"},
        )
        self.assertEqual(self.told("UPDATE dinedesk_main.tenants SET is_active = is_active"), set())

    def test_they_are_told_of_a_tenant_that_is_gone_with_its_keys(self) -> None:
        self.assertEqual(
            self.told("DELETE FROM dinedesk_main.tenants WHERE slug = 'kitchen'"),
            {"tenant 1", f"key {self.key}"},
        )
