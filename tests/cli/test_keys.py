"""`posctl key`, on a real PostgreSQL."""

from __future__ import annotations

import hashlib
import os

from twisted.trial.unittest import SynchronousTestCase

from tests.cli_runner import as_role, execute, migrated_database, posctl

WEAK = "UPDATE dinedesk_main.tenants SET pos_api_key = 'letmein-please' WHERE slug = 'kitchen'"


class CreateTests(SynchronousTestCase):
    """A shop and one of its tills get keys."""

    def setUp(self) -> None:
        self.dsn = migrated_database()

    def create(self, *options: str) -> dict[str, object]:
        ran = posctl("key", "create", *options, "--json", dsn=self.dsn)
        self.assertEqual((ran.code, ran.err), (0, ""))
        assert isinstance(ran.json, dict)
        return ran.json

    def stored(self, columns: str, key_id: object) -> tuple[object, ...]:
        return execute(
            self.dsn, f"SELECT {columns} FROM dinedesk_main.pos_api_keys WHERE id = %s", key_id
        )[0]

    def test_programs_get_the_key_and_its_id_and_nothing_else(self) -> None:
        made = self.create("--kind", "tenant", "--tenant", "kitchen")
        self.assertEqual(list(made), ["key", "id"])
        self.assertRegex(str(made["key"]), r"\Apos_[0-9a-f]{64}\Z")

    def test_what_is_stored_is_the_hash(self) -> None:
        made = self.create("--kind", "tenant", "--tenant", "kitchen")
        secret = str(made["key"])
        stored, preview, weak = self.stored("key_sha256, preview, weak", made["id"])
        assert isinstance(stored, memoryview)
        self.assertEqual(stored.tobytes(), hashlib.sha256(secret.encode()).digest())
        self.assertEqual((preview, weak), (f"{secret[:8]}…{secret[-4:]}", False))

    def test_people_get_the_key_alone_on_standard_output(self) -> None:
        ran = posctl("key", "create", "--kind", "platform", dsn=self.dsn)
        self.assertRegex(ran.out, r"\Apos_[0-9a-f]{64}\n\Z")
        self.assertIn("stores only its hash", ran.err)

    def test_a_device_key_names_its_device(self) -> None:
        made = self.create("--kind", "device", "--tenant", "kitchen", "--device", "POS_1")
        self.assertEqual(self.stored("kind, device_id", made["id"]), ("device", "POS_1"))

    def test_a_platform_key_is_for_all_tenants_unless_one_is_named(self) -> None:
        everywhere = self.create("--kind", "platform")
        here = self.create("--kind", "platform", "--tenant", "kitchen")
        self.assertEqual(self.stored("tenant_id", everywhere["id"]), (None,))
        self.assertEqual(self.stored("tenant_id", here["id"]), (1,))

    def test_a_misspelt_tenant_does_not_make_a_key_for_all(self) -> None:
        ran = posctl("key", "create", "--kind", "admin", "--tenant", "kitchn", dsn=self.dsn)
        self.assertEqual((ran.code, ran.out), (os.EX_DATAERR, ""))
        self.assertIn('did you mean "kitchen"?', ran.err)
        self.assertEqual(execute(self.dsn, "SELECT id FROM dinedesk_main.pos_api_keys"), [])

    def test_a_key_may_end_by_itself(self) -> None:
        made = self.create("--kind", "platform", "--expires", "90d")
        self.assertEqual(
            self.stored("expires_at BETWEEN now() + '89 days' AND now() + '90 days'", made["id"]),
            (True,),
        )

    def test_the_daemons_own_role_is_enough(self) -> None:
        ran = posctl("key", "create", "--kind", "admin", dsn=as_role(self.dsn, "posd"))
        self.assertEqual(ran.code, 0)

    def test_options_that_do_not_fit_together_are_refused(self) -> None:
        for options, said in (
            ((), "Missing option '--kind'"),
            (("--kind", "till"), "'till' is not one of"),
            (("--kind", "tenant"), "needs --tenant"),
            (("--kind", "device", "--device", "POS_1"), "needs --tenant"),
            (("--kind", "device", "--tenant", "kitchen"), "--device is required"),
            (
                ("--kind", "tenant", "--tenant", "kitchen", "--device", "P"),
                "not allowed for other kinds",
            ),
            (("--kind", "device", "--tenant", "kitchen", "--device", ""), "1 to 128"),
            (("--kind", "device", "--tenant", "kitchen", "--device", "P" * 129), "1 to 128"),
            (("--kind", "admin", "--expires", "soon"), "is not a duration"),
            (("--kind", "admin", "--expires", "0d"), "must be positive"),
        ):
            with self.subTest(options=options):
                ran = posctl("key", "create", *options, dsn="host=/nowhere")
                self.assertEqual((ran.code, ran.out), (os.EX_USAGE, ""))
                self.assertIn(said, ran.err)
                self.assertEqual(ran.err.count("\n"), 1)


class ListTests(SynchronousTestCase):
    """A shop with a weak key and a device key, and a platform key."""

    def setUp(self) -> None:
        self.dsn = migrated_database()
        execute(self.dsn, WEAK)
        posctl("key", "create", "--kind", "platform", dsn=self.dsn)
        posctl(
            *("key", "create", "--kind", "device", "--tenant", "kitchen", "--device", "POS_1"),
            *("--expires", "30d"),
            dsn=self.dsn,
        )

    def listed(self, *options: str) -> list[dict[str, object]]:
        listed = posctl("key", "list", *options, "--json", dsn=self.dsn).json
        assert isinstance(listed, list)
        return listed

    def test_programs_get_everything_but_the_key(self) -> None:
        platform, weak, device = self.listed()
        self.assertEqual(
            list(platform),
            [
                *("id", "tenant", "kind", "device", "preview", "weak", "state"),
                *("notBefore", "expiresAt", "revokedAt", "lastUsedAt"),
            ],
        )
        self.assertEqual((platform["tenant"], platform["kind"]), (None, "platform"))
        self.assertEqual((weak["tenant"], weak["weak"]), ("kitchen", True))
        self.assertEqual((device["device"], device["weak"]), ("POS_1", False))
        self.assertRegex(str(device["expiresAt"]), r"\A20\d\d-\d\d-\d\dT[\d:]{8}\.\d{3}Z\Z")

    def test_one_tenants_keys_are_without_those_for_all(self) -> None:
        self.assertEqual([each["id"] for each in self.listed("--tenant", "kitchen")], [1, 3])

    def test_an_unknown_tenant_is_no_empty_list(self) -> None:
        ran = posctl("key", "list", "--tenant", "grill", dsn=self.dsn)
        self.assertEqual((ran.code, ran.out), (os.EX_DATAERR, ""))

    def test_the_state_says_whether_a_key_opens_anything(self) -> None:
        for change, state in (
            ("expires_at = now() - interval '1 s'", "expired"),
            ("expires_at = NULL, not_before = now() + interval '1 h'", "not yet valid"),
            ("not_before = now(), revoked_at = now()", "revoked"),
        ):
            execute(self.dsn, f"UPDATE dinedesk_main.pos_api_keys SET {change} WHERE id = 2")
            with self.subTest(state=state):
                self.assertEqual(
                    [each["state"] for each in self.listed() if each["id"] == 2], [state]
                )

    def test_people_see_weak_keys_flagged(self) -> None:
        ran = posctl("key", "list", dsn=self.dsn)
        self.assertRegex(ran.out, r"(?m)^ +1 +kitchen +tenant +– +l….* valid, weak ")
        self.assertRegex(ran.out, r"(?m)^ +2 +\(all\) +platform ")
        self.assertNotIn("letmein", ran.out)


class RevokeTests(SynchronousTestCase):
    """A tablet was stolen."""

    def setUp(self) -> None:
        self.dsn = migrated_database()
        posctl("key", "create", "--kind", "platform", dsn=self.dsn)

    def test_a_revoked_key_stays_in_the_list_as_such(self) -> None:
        ran = posctl("key", "revoke", "1", "--json", dsn=self.dsn)
        self.assertEqual((ran.code, ran.json), (0, {"id": 1, "revoked": True}))
        listed = posctl("key", "list", "--json", dsn=self.dsn).json
        assert isinstance(listed, list)
        self.assertEqual(listed[0]["state"], "revoked")

    def test_one_that_is_unknown_or_revoked_already_is_named(self) -> None:
        posctl("key", "revoke", "1", dsn=self.dsn)
        for key_id in ("1", "2"):
            ran = posctl("key", "revoke", key_id, dsn=self.dsn)
            self.assertEqual(ran.code, os.EX_DATAERR)
            self.assertEqual(
                ran.err, f"posctl: there is no key {key_id}, or it is already revoked\n"
            )

    def test_an_id_is_a_number(self) -> None:
        self.assertEqual(posctl("key", "revoke", "pos_abc", dsn=self.dsn).code, os.EX_USAGE)
