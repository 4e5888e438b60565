"""Audit checks of the ledgers: follow the movements of each card and account from the first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import asdict, frozen

from posd.database.reconnecting import Querier
from posd.store.audit import AuditCheck
from posd.values import Tenant


@frozen
class _LedgerColumns:
    """The tables and columns of a ledger, and the sign of each type of movement."""

    name: str
    movements: str
    owners: str
    owner: str
    owner_key: str
    unowned: str
    """The condition for a card or an account that was never in use: only a reversal has named it."""
    amount: str
    gains: str
    losses: str
    either: str
    most: str


_GIFT_CARDS: Final = _LedgerColumns(
    name="gift cards",
    movements="pos_gift_card_transactions",
    owners="gift_cards",
    owner="card_number",
    owner_key="card_number",
    unowned="initial_balance IS NULL",
    amount="amount",
    gains="('purchase', 'activate', 'top_up')",
    losses="('deduct')",
    either="('reverse')",
    most="99999999999.999",
)
_LOYALTY: Final = _LedgerColumns(
    name="points",
    movements="pos_loyalty_transactions",
    owners="loyalty_accounts",
    owner="account_id",
    owner_key="id",
    unowned="member_since IS NULL",
    amount="points",
    gains="('add')",
    losses="('redeem')",
    either="('adjust', 'reverse')",
    most="9007199254740991",
)

# Each row is compared with its predecessor, so a chain with one fault yields one row and not all rows after
# it. A window visits the chain in order without relying on an index. PostgreSQL treats 'NaN' as equal to
# itself and greater than all numbers, so the comparisons need an explicit test for it.
_CHAIN: Final = """
    SELECT concat('<movements> id ', m.id, ', seq ', m.seq), CASE
               WHEN m.seq IS NULL OR m.balance_before IS NULL OR m.<amount> IS NULL OR m.balance_after IS NULL
                   THEN 'a number is missing'
               WHEN m.seq = m.before_seq THEN 'another movement has this place in the chain too'
               WHEN m.seq <> coalesce(m.before_seq, 0) + 1
                   THEN concat('follows ', coalesce('seq ' || m.before_seq, 'nothing'))
               WHEN m.prev_seq IS DISTINCT FROM m.before_seq
                   THEN concat('says that it follows ', coalesce('seq ' || m.prev_seq, 'nothing'))
               WHEN 'NaN' IN (m.balance_before::numeric, m.<amount>::numeric, m.balance_after::numeric)
                   THEN 'an amount is no number'
               WHEN m.balance_before <> coalesce(m.balance, 0)
                   THEN concat('begins with ', m.balance_before, ', and the chain had ',
                               coalesce(m.balance, 0))
               WHEN m.balance_after <> m.balance_before + m.<amount>
                   THEN concat(m.balance_before, ' and ', m.<amount>, ' are not ', m.balance_after)
               WHEN m.balance_after < 0 THEN concat('leaves ', m.balance_after)
               WHEN m.balance_after > <most> THEN 'leaves more than there can be'
           END
      FROM (SELECT t.*, lag(t.seq) OVER chain AS before_seq, lag(t.balance_after) OVER chain AS balance
              FROM {schema}.<movements> AS t
            WINDOW chain AS (PARTITION BY t.<owner> ORDER BY t.seq, t.id)) AS m
     ORDER BY m.id
"""
_TYPES: Final = """
    SELECT concat('<movements> id ', m.id, ', seq ', m.seq), CASE
               WHEN o.<owner_key> IS NULL THEN 'has no owner: there is no such row of <owners>'
               WHEN m.transaction_type = 'tombstone' AND m.idempotency_key IS NULL
                   THEN 'is a tombstone of no call'
               WHEN o.<unowned> AND m.transaction_type <> 'tombstone'
                   THEN concat('is a ', m.transaction_type, ', and its row of <owners> was never in use')
               WHEN NOT coalesce(CASE
                       WHEN m.transaction_type IN <gains> THEN m.<amount> > 0
                       WHEN m.transaction_type IN <losses> THEN m.<amount> < 0
                       WHEN m.transaction_type IN <either> THEN m.<amount> <> 0
                       WHEN m.transaction_type = 'tombstone' THEN m.<amount> = 0 END, false)
                   THEN concat('is a ', m.transaction_type, ' of ', m.<amount>)
           END
      FROM {schema}.<movements> AS m LEFT JOIN {schema}.<owners> AS o ON o.<owner_key> = m.<owner>
     ORDER BY m.id
"""
_REVERSALS: Final = """
    SELECT concat('<movements> id ', r.id, ', seq ', r.seq), CASE
               WHEN r.reverses_id IS NULL THEN 'takes nothing back'
               WHEN r.transaction_type <> 'reverse'
                   THEN concat('is a ', r.transaction_type, ', and takes id ', r.reverses_id, ' back')
               WHEN o.id IS NULL THEN concat('takes id ', r.reverses_id, ' back, which is not there')
               WHEN o.<owner> <> r.<owner>
                   THEN concat('takes id ', o.id, ' back, which is of another chain')
               WHEN o.transaction_type IN ('reverse', 'tombstone')
                   THEN concat('takes id ', o.id, ' back, a ', o.transaction_type)
               WHEN o.<amount> <> -r.<amount>
                   THEN concat('takes ', r.<amount>, ' back of ', o.<amount>, ', id ', o.id)
               WHEN o.seq >= r.seq THEN concat('takes id ', o.id, ' back, which comes after it')
               WHEN count(*) OVER (PARTITION BY r.reverses_id) > 1
                   THEN concat('takes id ', o.id, ' back, as another reversal does')
           END
      FROM {schema}.<movements> AS r LEFT JOIN {schema}.<movements> AS o ON o.id = r.reverses_id
     WHERE r.transaction_type = 'reverse' OR r.reverses_id IS NOT NULL ORDER BY r.id
"""
# A tombstone records that a call was reversed before the call arrived. A tombstone of the platform applies
# to the keys of all principals.
_KEYS: Final = """
    SELECT concat('<movements> id ', m.id, ', seq ', m.seq), CASE
               WHEN m.same > 1 THEN 'another movement of the chain is of the same call'
               WHEN d.seq < m.seq AND m.transaction_type <> 'tombstone'
                   THEN 'is of a call that was taken back before'
           END
      FROM (SELECT t.*, count(*) OVER (PARTITION BY t.<owner>, t.principal, t.idempotency_key) AS same
              FROM {schema}.<movements> AS t WHERE t.idempotency_key IS NOT NULL) AS m
      LEFT JOIN (SELECT t.<owner>, t.idempotency_key, min(t.seq) AS seq FROM {schema}.<movements> AS t
                  WHERE t.transaction_type = 'tombstone' AND t.principal = 'platform' GROUP BY 1, 2) AS d
        ON d.<owner> = m.<owner> AND d.idempotency_key = m.idempotency_key
     ORDER BY m.id
"""
_SALES: Final = """
    SELECT concat('pos_gift_card_transactions id ', m.id, ', seq ', m.seq),
           'another card was sold by the same call'
      FROM (SELECT t.id, t.seq, count(*) OVER (PARTITION BY t.principal, t.idempotency_key) AS same
              FROM {schema}.pos_gift_card_transactions AS t
             WHERE t.transaction_type = 'purchase' AND t.idempotency_key IS NOT NULL) AS m
     WHERE m.same > 1 ORDER BY m.id
"""
_EARNINGS: Final = """
    SELECT concat('pos_loyalty_transactions id ', m.id, ', seq ', m.seq),
           concat('order ', m.order_id, ' has earned another time')
      FROM (SELECT t.id, t.seq, t.order_id, count(*) OVER (PARTITION BY t.account_id, t.order_id) AS same
              FROM {schema}.pos_loyalty_transactions AS t
             WHERE t.transaction_type = 'add' AND t.order_id IS NOT NULL) AS m
     WHERE m.same > 1 ORDER BY m.id
"""
# Checks the owner of the table. An audit must not read a shop's own table, because it may be a view that runs
# the shop's functions. The comparison of the schema reports missing tables of posd.
_KEPT: Final = "SELECT dinedesk_main.pos_keeps(%s, %s)"


def _checks(ledger: _LedgerColumns) -> tuple[AuditCheck, ...]:
    def about(sql: str) -> str:
        for name, value in asdict(ledger).items():
            sql = sql.replace(f"<{name}>", value)
        return sql

    return (
        AuditCheck(f"chains of {ledger.name}", about(_CHAIN)),
        AuditCheck(f"types of {ledger.name}", about(_TYPES)),
        AuditCheck(f"reversals of {ledger.name}", about(_REVERSALS)),
        AuditCheck(f"calls for {ledger.name}", about(_KEYS)),
    )


GIFT_CARDS: Final = (*_checks(_GIFT_CARDS), AuditCheck("sales of gift cards", _SALES))
LOYALTY: Final = (*_checks(_LOYALTY), AuditCheck("earnings of points", _EARNINGS))


async def load_checks(executor: Querier, tenant: Tenant) -> Sequence[AuditCheck]:
    """Return the checks of the ledgers that posd keeps for a tenant."""
    found: list[AuditCheck] = []
    for ledger, its in ((_GIFT_CARDS, GIFT_CARDS), (_LOYALTY, LOYALTY)):
        if (await executor.query(_KEPT, (tenant.schema, ledger.owners)))[0][0]:
            found += its
    return found
