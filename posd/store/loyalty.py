"""Loyalty points: all movements of their ledger. `posd.store.loyalty_accounts` reads customers' accounts.

A telephone number in E.164 identifies a customer (`posd.events.phones`). `posd.store.giftcards` documents
the errors that all movements share. For an unknown customer, `NotFound` (`unknown_customer`) is raised.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, NoReturn

from attrs import frozen

from posd.database.reconnecting import Executor, Row
from posd.errors import BadRequest, Conflict, NotFound, TooManyRequests, Unprocessable
from posd.events import money
from posd.store import ledgers, schema, shop
from posd.store.ledgers import MovementCause
from posd.values import Tenant

MOST_POINTS: Final = 10**9
"""The largest number of points in one movement."""

_MOVEMENT: Final = """
    m.outcome, (m.movement).id, (m.movement).account_id, (m.movement).seq, (m.movement).transaction_type,
    (m.movement).balance_before, (m.movement).points, (m.movement).balance_after, (m.movement).created_at,
    (m.movement).discount
"""
RULES: Final = """
    t.loyalty_enabled, t.loyalty_opens_accounts, t.loyalty_points_per_pound, t.loyalty_redemption_rate,
    t.loyalty_minimum_redeem, t.loyalty_increment
"""
# If `joining` is NULL, the shop's rules decide whether an account is created.
_MOVE: Final = f"""
    SELECT {_MOVEMENT}, {RULES} FROM dinedesk_main.tenants AS t
     CROSS JOIN LATERAL posd_hooks."points_move${{shop}}"(
        %(phone)s, %(kind)s, %(points)s::bigint, %(principal)s, %(key)s, %(device)s, %(order)s, %(note)s,
        coalesce(%(joining)s::boolean, t.loyalty_enabled AND t.loyalty_opens_accounts)) AS m
     WHERE t.id = %(tenant)s
"""
_REVERSE: Final = f"""
    SELECT {_MOVEMENT} FROM posd_hooks."points_reverse${{shop}}"(
        %(phone)s, %(principal)s, %(original_key)s, %(original)s::bigint, %(device)s, %(note)s) AS m
"""
# The row stays locked until the end of the transaction, so concurrent calls count each other's points. Days
# follow the database's clock.
_COUNT_GIVEN: Final = """
    WITH shop AS (SELECT now() AT TIME ZONE 'UTC' + %(offset)s * interval '1 second' AS time)
    INSERT INTO {schema}.pos_points_given AS g (giver, day, points)
    SELECT %(giver)s, shop.time::date, %(points)s FROM shop
    ON CONFLICT (giver) DO UPDATE
       SET day = excluded.day,
           points = CASE WHEN g.day = excluded.day THEN g.points ELSE 0 END + excluded.points
    RETURNING points,
        (SELECT ceil(extract(epoch FROM time::date + interval '1 day' - time))::integer FROM shop)
"""


@frozen
class DailyLimit:
    """The number of points that `giver` may add per day of the shop. Its day begins `offset` before UTC's."""

    giver: str
    most: int
    offset: timedelta


@frozen
class LoyaltyRules:
    """A shop's rules for loyalty points.

    `redemption_rate` is the value of a point in the shop's currency. `points_per_pound` is the number of
    points that a till gives per unit of that currency. A redemption takes at least `minimum_redeem` points,
    and a multiple of `increment`.
    """

    enabled: bool
    opens_accounts: bool
    points_per_pound: Decimal
    redemption_rate: Decimal
    minimum_redeem: int
    increment: int


@frozen
class PointsMovement:
    """A row of the ledger: `after` is `before` plus the signed `points`.

    `replayed` is true if an earlier call with the same key made the movement. A `tombstone` has 0 points and
    prevents a movement that has been reversed before it arrived. `discount` is the value of redeemed points
    at the time of the redemption.
    """

    transaction_id: int
    account_id: int
    seq: int
    type: str
    before: int
    points: int
    after: int
    created_at: datetime
    discount: Decimal | None
    replayed: bool

    @property
    def tombstoned(self) -> bool:
        return self.type == "tombstone"


async def add(
    executor: Executor,
    tenant: Tenant,
    phone: str,
    points: object,
    cause: MovementCause,
    *,
    joining: bool = False,
) -> PointsMovement:
    """Add points to a customer's account; `joining` creates a missing account.

    Raises `Conflict` (`already_earned`) if another call has added points for the same order, and
    `Unprocessable` (`invalid_amount`) if the balance would exceed the maximum of an account.
    """
    value = _positive(points)
    movement, _ = await _move(executor, tenant, phone, "add", value, cause, joining=joining)
    return movement


async def add_by_rules(
    executor: Executor, tenant: Tenant, phone: str, points: object, cause: MovementCause
) -> tuple[PointsMovement, LoyaltyRules]:
    """Like `add`, but the shop's rules decide whether a missing account is created. Return the rules too."""
    return await _move(executor, tenant, phone, "add", _positive(points), cause, joining=None)


async def count_towards_limit(
    executor: Executor, tenant: Tenant, points: int, limit: DailyLimit
) -> None:
    """Count points that this transaction has added towards the daily limit.

    Raises `TooManyRequests` (`too_many_points`) with the seconds until the shop's next day if the limit is
    exceeded. The caller must roll the transaction back then.
    """
    offset = int(limit.offset.total_seconds())
    parameters = {"giver": limit.giver, "points": points, "offset": offset}
    ((given, left),) = await executor.query(_COUNT_GIVEN.format(schema=schema(tenant)), parameters)
    if given > limit.most:
        raise TooManyRequests(
            f"A till may add {limit.most} points a day.",
            code="too_many_points",
            retry_after=left,
            details={"pointsPerDay": limit.most},
        )


async def redeem(
    executor: Executor, tenant: Tenant, phone: str, points: object, cause: MovementCause
) -> PointsMovement:
    """Redeem points. Raises `BadRequest` (`insufficient_points` with `currentPoints`)."""
    movement, _ = await redeem_by_rules(executor, tenant, phone, points, cause)
    return movement


async def redeem_by_rules(
    executor: Executor, tenant: Tenant, phone: str, points: object, cause: MovementCause
) -> tuple[PointsMovement, LoyaltyRules]:
    """Like `redeem`; return the shop's rules too."""
    return await _move(executor, tenant, phone, "redeem", -_positive(points), cause)


async def adjust(
    executor: Executor, tenant: Tenant, phone: str, points: object, cause: MovementCause
) -> PointsMovement:
    """Adjust an account by a positive or negative number of points. Its balance cannot become negative."""
    value = _whole(points)
    if value == 0:
        raise _invalid("must not be zero")
    movement, _ = await _move(executor, tenant, phone, "adjust", value, cause)
    return movement


async def reverse(
    executor: Executor,
    tenant: Tenant,
    phone: str,
    cause: MovementCause,
    *,
    key: str | None = None,
    transaction_id: int | None = None,
) -> PointsMovement:
    """Reverse a movement, like `giftcards.reverse` and with the same errors.

    Raises `BadRequest` (`insufficient_points`) if the points have been spent.
    """
    parameters = cause.columns() | ledgers.original_reference(key, transaction_id)
    return _movement(tenant, await _run(executor, tenant, _REVERSE, phone, parameters))


async def _move(
    executor: Executor,
    tenant: Tenant,
    phone: str,
    kind: str,
    points: int,
    cause: MovementCause,
    *,
    joining: bool | None = False,
) -> tuple[PointsMovement, LoyaltyRules]:
    parameters = {
        **cause.columns(),
        "kind": kind,
        "points": points,
        "joining": joining,
        "tenant": tenant.id,
    }
    row = await _run(executor, tenant, _MOVE, phone, parameters)
    return _movement(tenant, row[:10]), LoyaltyRules(*row[10:])


async def _run(
    executor: Executor, tenant: Tenant, statement: str, phone: str, parameters: dict[str, object]
) -> Row:
    statement = statement.format(shop=shop(tenant))
    rows = await ledgers.run(executor, statement, {**parameters, "phone": phone})
    if not rows:
        # The join with `tenants` found no row: the tenant has been deleted.
        raise ledgers.no_ledger()
    return rows[0]


def _movement(tenant: Tenant, row: Row) -> PointsMovement:
    """Convert a row of `_MOVEMENT` to a movement. Raises the `Refusal` that the outcome stands for."""
    outcome, transaction_id, account_id, seq, kind, before, moved, after, created_at, discount = row
    if outcome not in ("made", "replayed", "tombstoned"):
        _refuse(outcome, after)
    if transaction_id is None:
        raise ledgers.movement_suppressed()
    if discount is not None:
        discount = money.quantized(discount, tenant.currency)
    replayed = outcome == "replayed"
    return PointsMovement(
        transaction_id, account_id, seq, kind, before, moved, after, created_at, discount, replayed
    )


def _refuse(outcome: str, left: int | None) -> NoReturn:
    match outcome:
        case "unknown":
            raise NotFound("There is no such customer.", code="unknown_customer")
        case "insufficient":
            raise BadRequest(
                "There are not enough points.",
                code="insufficient_points",
                details={"currentPoints": left or 0},
            )
        case "too_much":
            raise _invalid("are more than an account can hold")
        case "earned":
            raise Conflict("This order has earned its points already.", code="already_earned")
        case _:
            ledgers.raise_outcome(outcome)


def _positive(points: object) -> int:
    number = _whole(points)
    if number <= 0:
        raise _invalid("must be more than zero")
    return number


def _whole(points: object) -> int:
    """Return a number of points. `20.00` is accepted as 20, because some tills write integers so."""
    if isinstance(points, bool) or not isinstance(points, int | Decimal):
        raise _invalid("must be a number")
    if isinstance(points, Decimal) and not points.is_finite():
        raise _invalid("must be a number")
    if not -MOST_POINTS <= points <= MOST_POINTS:
        raise _invalid("is out of bounds")
    if points != int(points):
        raise _invalid("must be a whole number")
    return int(points)


def _invalid(what: str) -> Unprocessable:
    return Unprocessable(f"points {what}.", code="invalid_amount", details={"field": "points"})
