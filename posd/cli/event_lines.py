"""An event as one line of text, without personal data."""

from __future__ import annotations

from collections.abc import Mapping

from posd.cli.output import printable
from posd.client import ReceivedEvent
from posd.monitoring.logs import card_tail, phone_tail


def event_line(event: ReceivedEvent) -> str:
    """Return local time, position, type, and the content without personal data.

    Names, addresses and items are left out. Card numbers and telephone numbers are shortened as in
    the logs. `--json` prints the whole event.
    """
    moment = event.timestamp.astimezone().strftime("%H:%M:%S")
    replayed = "  (replayed)" if event.replay else ""
    line = f"{moment}  {event.id:>8}  {event.type:<19}  {_content(event.type, event.data)}"
    return printable(line.rstrip() + replayed)


def _content(kind: str, data: Mapping[str, object]) -> str:
    match kind:
        case "new_order" | "order_updated":
            return _order(data)
        case "gift_card_purchased":
            return f"{_card(data)}  {_known(data, 'initialBalance')}"
        case "gift_card_updated":
            return f"{_card(data)}  {_known(data, 'change')} → {_known(data, 'balance')}"
        case "loyalty_updated":
            points = f"{_known(data, 'pointsChange')} → {_known(data, 'newBalance')} points"
            return f"{phone_tail(_known(data, 'customerPhone'))}  {points}"
    return ""


def _order(data: Mapping[str, object]) -> str:
    items = data.get("items")
    lines = len(items) if isinstance(items, list) else 0
    before = data.get("previousStatus")
    status = _known(data, "status")
    parts = (
        _known(data, "orderNumber"),
        f"{before} → {status}" if before not in (None, status) else status,
        _known(data, "orderType"),
        f"{lines} {'line' if lines == 1 else 'lines'}",
        f"{_known(data, 'totalAmount')} {data.get('currency') or ''}".rstrip(),
    )
    return "  ".join(parts)


def _card(data: Mapping[str, object]) -> str:
    return card_tail(_known(data, "cardNumber"))


def _known(data: Mapping[str, object], name: str) -> str:
    """Return a member as text, or "?": events leave out unknown members."""
    value = data.get(name)
    return "?" if value is None else str(value)
