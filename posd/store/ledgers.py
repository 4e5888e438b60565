"""What the ledgers have in common: who moves something and why, and what may come of it.

The movements themselves are functions in `posd_hooks` (`sql/tenant/003_ledgers.sql`): one
call takes the one lock, looks and writes, in one round trip. Each is whole in itself, so it needs no
transaction around it, and can be made in one.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NoReturn

from attrs import frozen

from posd.database.reconnecting import Executor, Querier, Row
from posd.errors import (
    BadRequest,
    Busy,
    Conflict,
    Forbidden,
    NotFound,
    PosdError,
    StatementFailed,
    Unprocessable,
)
from posd.store import schema
from posd.values import Tenant

PLATFORM: Final = "platform"
"""The principal that may reverse everybody's movements."""

_KEY: Final = re.compile("[!-~]{1,255}")
_TEXT_LENGTH: Final = 500
_ID_LENGTH: Final = 255
_DEVICE_LENGTH: Final = 128
_INT64: Final = range(1, 2**63)

# In the same string as the statement that follows, so that it costs no round trip.
_CHECK: Final = "SELECT dinedesk_main.pos_check_keeps(%(_schema)s, %(_people)s);"
# undefined_table, undefined_function, and the schema itself
_NO_LEDGER: Final = ("42P01", "42883", "3F000")
_UNIQUE_VIOLATION: Final = "23505"
_TAKEN: Final = frozenset(
    {
        *("gift_card_place", "gift_card_balance", "gift_card_key", "gift_card_purchase_key"),
        *("gift_card_reversed_once", "loyalty_place", "loyalty_balance", "loyalty_key"),
        *("loyalty_reversed_once", "loyalty_earned_once"),
    }
)
"""The constraints that two movements of an account violate that are made at the same time.

posd's own movements lock the account. A shop's INSERT need not do that.
"""


def _usable(key: str | None) -> str | None:
    if key is not None and not _KEY.fullmatch(key):
        message = "An idempotency key is 1 to 255 visible ASCII characters."
        raise BadRequest(message, code="invalid_idempotency_key")
    return key


def _clipped(text: str | None) -> str | None:
    """A remark, as much of it as is kept: no movement fails for a long word about it."""
    return text[:_TEXT_LENGTH] if text else None


@frozen
class MovementCause:
    """Who moves something, and what about.

    `principal` is in whose name the key is remembered: `platform`, `tenant` or `device <id>`. `key` is
    the call's `Idempotency-Key`, kept with the movement for ever: the same call again is answered
    with the same movement. `note` is for people, the reference or the reason; what is beyond 500
    characters is dropped.
    """

    principal: str
    key: str | None = None
    device_id: str | None = None
    order_id: str | None = None
    note: str | None = None

    def columns(self) -> dict[str, object]:
        """The parameters of a statement.

        Raises `BadRequest` (`invalid_idempotency_key`) and `Unprocessable` (`invalid_order`) for what
        cannot be kept.
        """
        if self.order_id is not None and len(self.order_id) > _ID_LENGTH:
            raise Unprocessable(
                f"An order's id has up to {_ID_LENGTH} characters.", code="invalid_order"
            )
        return {
            "principal": self.principal,
            "key": _usable(self.key),
            "device": self.device_id and self.device_id[:_DEVICE_LENGTH],
            "order": self.order_id or None,
            "note": _clipped(self.note),
        }


def original_reference(key: str | None, transaction_id: int | None) -> dict[str, object]:
    """Which movement to reverse, as parameters of a statement: exactly one of the two names it."""
    if (key is None) == (transaction_id is None):
        raise ValueError("Either a key or a transaction is reversed.")
    if transaction_id is not None and transaction_id not in _INT64:
        raise unknown_transaction()
    return {"original_key": _usable(key), "original": transaction_id}


async def run_on_own_tables(
    executor: Executor,
    tenant: Tenant,
    people: Literal["gift_cards", "loyalty_accounts"],
    statement: str,
    parameters: dict[str, object],
) -> list[Row]:
    """Run a statement that names the tables of a ledger in `{schema}`.

    It runs only if the tables belong to posd: a view that the shop has put in the place of one would run
    the shop's functions with posd's rights. Raises what `run` does.
    """
    statement = _CHECK + statement.format(schema=schema(tenant))
    return await run(
        executor, statement, {**parameters, "_schema": tenant.schema, "_people": people}
    )


async def run(executor: Querier, statement: str, parameters: dict[str, object]) -> list[Row]:
    """Run a statement on a ledger.

    Raises `NotFound` (`no_ledger`) if the shop keeps its own, and `Busy` if a movement that the shop has
    inserted meanwhile has taken the place of this one. Nothing was done then, and the same call again
    follows the shop's movement.
    """
    try:
        return await executor.query(statement, parameters)
    except StatementFailed as error:
        if error.sqlstate in _NO_LEDGER:
            raise no_ledger() from error
        if error.sqlstate == _UNIQUE_VIOLATION and error.constraint in _TAKEN:
            raise Busy("The account has just been changed. Try again.", retry_after=1) from error
        raise


def no_ledger() -> NotFound:
    return NotFound("This shop's gift cards or points are not kept here.", code="no_ledger")


def raise_outcome(outcome: str) -> NoReturn:
    """Raise what an outcome means, of those that the ledgers have in common."""
    match outcome:
        case "mismatch":
            message = "This Idempotency-Key was used for another call."
            raise Unprocessable(message, code="idempotency_mismatch")
        case "reversed":
            message = "The movement with this Idempotency-Key has been reversed."
            raise Conflict(message, code="reversed")
        case "forbidden":
            raise Forbidden("Another's movement cannot be reversed with this key.")
        case "irreversible":
            raise Unprocessable("A reversal cannot be reversed.", code="not_reversible")
        case "ambiguous":
            message = "Several movements have this key: name the one by its transactionId."
            raise Conflict(message, code="ambiguous_key")
        case "unknown_transaction":
            raise unknown_transaction()
        case _:
            raise PosdError(f"the ledger answered {outcome!r}")


def movement_suppressed() -> PosdError:
    """For a movement that has no row: a trigger of the shop has returned NULL instead of it."""
    return PosdError("a trigger on the ledger has kept a movement from being written")


def unknown_transaction() -> NotFound:
    return NotFound("There is no such transaction here.", code="unknown_transaction")
