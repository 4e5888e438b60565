"""pos_prune() with concurrency: a sequencer numbers, tills acknowledge, and two sessions prune."""

from __future__ import annotations

import psycopg2

from posd.store import presence
from tests.schema_case import Client, Entry, SchemaCase, at_once

PRUNE = """
    SELECT * FROM dinedesk_main.pos_prune(1, now() - interval '2 hours', '{}', 7)
"""
BALANCE = """
    SELECT h.last_seq - h.acknowledged - h.expired
           - (SELECT count(*) FROM dinedesk_kitchen.pos_events AS e WHERE e.seq > h.received_seq),
           h.last_seq - h.pruned_seq - (SELECT count(*) FROM dinedesk_kitchen.pos_events),
           h.pruned_seq
      FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = 1
"""
AGED = """
    CREATE FUNCTION dinedesk_kitchen.age() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.created_at := now() - interval '3 hours';
        RETURN NEW;
    END $$;
    CREATE TRIGGER age BEFORE INSERT ON dinedesk_main.pos_events
        FOR EACH ROW EXECUTE FUNCTION dinedesk_kitchen.age();
"""
_ROUNDS = 20


# Foreign keys of the central tables without a full index that begins with their columns.
UNINDEXED = """
    SELECT k.conrelid::regclass::text FROM pg_constraint AS k
     WHERE k.contype = 'f' AND k.connamespace = 'dinedesk_main'::regnamespace
       AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = k.conrelid AND i.indpred IS NULL
                          AND (i.indkey::smallint[])[0:cardinality(k.conkey) - 1] @> k.conkey)
"""


class DeletedTenantTests(SchemaCase):
    def test_each_foreign_key_has_an_index_so_that_no_table_is_read_whole(self) -> None:
        self.assertEqual(self.admin.rows(UNINDEXED), [])


class CrowdTests(SchemaCase):
    def test_no_event_is_counted_twice_or_lost_and_the_stream_stays_whole(self) -> None:
        self.admin.run(AGED)

        def number(client: Client) -> None:
            for _ in range(_ROUNDS):
                client.record(*[Entry(1)] * 10)

        def prune(client: Client) -> None:
            for _ in range(_ROUNDS):
                try:
                    client.run(PRUNE)
                except psycopg2.errors.LockNotAvailable:
                    continue

        def acknowledge(client: Client) -> None:
            for _ in range(_ROUNDS):
                ((stream, half),) = client.rows(
                    "SELECT stream_id::text, last_seq / 2 FROM dinedesk_main.pos_heads"
                    " WHERE tenant_id = 1"
                )
                client.run(presence._PROGRESS, [1], [stream], [half], [half])

        def look(client: Client) -> list[tuple[int, ...]]:
            return [client.rows(BALANCE)[0] for _ in range(_ROUNDS)]

        jobs = (number, prune, prune, acknowledge, look)
        *_, seen = at_once(*[lambda job=job: job(self.connect("posd")) for job in jobs])
        assert isinstance(seen, list)
        for unbalanced, missing, _ in [*seen, self.admin.rows(BALANCE)[0]]:
            self.assertEqual((unbalanced, missing), (0, 0))
        while not self.admin.rows(PRUNE)[0][-1]:
            pass
        self.assertEqual(self.admin.rows(BALANCE), [(0, 0, 10 * _ROUNDS)])
