"""The common part of both ledgers: the cause of a movement, and the errors of a movement.

The movements are functions in `posd_hooks` (`sql/tenant/003_ledgers.sql`). A call takes the lock of the card
or account, checks, and writes, in one round trip. A movement is atomic without a transaction around it, and
can also be part of a transaction.
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
"""The principal that may reverse the movements of all principals."""

_KEY: Final = re.compile("[!-~]{1,255}")
_TEXT_LENGTH: Final = 500
_ID_LENGTH: Final = 255
_DEVICE_LENGTH: Final = 128
_INT64: Final = range(1, 2**63)

# Sent in the same string as the statement after it, so that it costs no round trip.
_CHECK: Final = "SELECT dinedesk_main.pos_check_keeps(%(_schema)s, %(_people)s);"
# undefined_table, undefined_function, invalid_schema_name
_NO_LEDGER: Final = ("42P01", "42883", "3F000")
_UNIQUE_VIOLATION: Final = "23505"
_TAKEN: Final = frozenset(
    {
        *("gift_card_place", "gift_card_balance", "gift_card_key", "gift_card_purchase_key"),
        *("gift_card_reversed_once", "loyalty_place", "loyalty_balance", "loyalty_key"),
        *("loyalty_reversed_once", "loyalty_earned_once"),
    }
)
"""The constraints that two concurrent movements of an account violate.

posd's own movements lock the account. A shop's INSERT may not.
"""


def _usable(key: str | None) -> str | None:
    if key is not None and not _KEY.fullmatch(key):
        message = "An idempotency key is 1 to 255 visible ASCII characters."
        raise BadRequest(message, code="invalid_idempotency_key")
    return key


def _clipped(text: str | None) -> str | None:
    """Shorten a remark to the stored length: a long remark must not make a movement fail."""
    return text[:_TEXT_LENGTH] if text else None


@frozen
class MovementCause:
    """The caller of a movement and the reason for it.

    `principal` is the owner of the key: `platform`, `tenant` or `device <id>`. `key` is the call's
    `Idempotency-Key`. It is stored with the movement for ever: a repeated call returns the same movement.
    `note` is a reference or reason for humans; it is shortened to 500 characters.
    """

    principal: str
    key: str | None = None
    device_id: str | None = None
    order_id: str | None = None
    note: str | None = None

    def columns(self) -> dict[str, object]:
        """Return the parameters of a statement.

        Raises `BadRequest` (`invalid_idempotency_key`) and `Unprocessable` (`invalid_order`) for values that
        cannot be stored.
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
    """Return the parameters that identify the movement to reverse: exactly one argument is not None."""
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

    It runs only if the tables belong to posd: a view that the shop has created in place of a table would run
    the shop's functions with posd's privileges. Raises the errors of `run`.
    """
    statement = _CHECK + statement.format(schema=schema(tenant))
    return await run(
        executor, statement, {**parameters, "_schema": tenant.schema, "_people": people}
    )


async def run(executor: Querier, statement: str, parameters: dict[str, object]) -> list[Row]:
    """Run a statement on a ledger.

    Raises `NotFound` (`no_ledger`) if the shop has its own ledger, and `Busy` if the shop has inserted a
    movement of the same account concurrently. In that case nothing was done; a repeated call adds its
    movement after the shop's.
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
    """Raise the error for an outcome that both ledgers have."""
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
    """Return the error for a movement without a row: a trigger of the shop has returned NULL."""
    return PosdError("a trigger on the ledger has suppressed the row of a movement")


def unknown_transaction() -> NotFound:
    return NotFound("There is no such transaction here.", code="unknown_transaction")
