"""Print the tables of docs/performance.md, from the results of a benchmark in bench/results.json.

python -m bench.page        # the results of `python -m bench --full --json bench/results.json`
python -m bench.page FILE   # other results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench import call_rows, connection_rows, delivery_rows
from bench.report import Result, from_json, number, spread, table

RESULTS: Final = Path(__file__).with_name("results.json")
ROWS: Final = (*delivery_rows.ROWS, *connection_rows.ROWS, *call_rows.ROWS)

_COSTS: Final = (
    ("a message to one of 1,000 tills of a shop", "fanout", "message"),
    ("the same where eight events come at once", "burst", "message"),
    ("an event published by REST, to ten tills", "publish", "event"),
    ("an event of a list of 100, to one till", "batch", "event"),
    ("an order by SQL, 100 a second, to ten tills", "commit", "order"),
    ("an event that a till has missed", "backlog", "event"),
    ("a till that connects", "handshakes", ""),
    ("a page of 50 open orders", "pending", ""),
    ("the balance of a gift card", "balance", ""),
    ("a deduction from a gift card", "deduct", ""),
)
_SIZES: Final = ("200 B", "1 KB", "10 KB", "100 KB")


def costs(results: Mapping[str, Result]) -> list[str]:
    """Return the table of the costs of operations, in microseconds of processor time."""
    lines = ["| what | row | posd | PostgreSQL |", "| --- | --- | --- | --- |"]
    for what, row, unit in _COSTS:
        per = f"/{unit}" if unit else ""
        cells = [
            spread(results[row].values("posd", f"{whose} µs{per}"))
            for whose in ("server", "PostgreSQL")
        ]
        lines.append(f"| {what} | `{row}` | {cells[0]} | {cells[1]} |")
    return lines


def sizes(results: Mapping[str, Result]) -> list[str]:
    """Return the table of publishing by the size of events: events per second, and microseconds per event."""
    found = results["sizes"]
    lines = [
        "| data of an event | posd, events/s | shop-pool, events/s | posd, µs | PostgreSQL, µs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for size in _SIZES:
        cells = [
            spread(found.values(subject, f"{size} {figure}"))
            for subject, figure in (
                ("posd", "events/s"),
                ("shop-pool", "events/s"),
                ("posd", "server µs"),
                ("posd", "PostgreSQL µs"),
            )
        ]
        lines.append(f"| {' | '.join([size, *cells])} |")
    return lines


def capacity(results: Mapping[str, Result]) -> list[str]:
    """Return the table of the capacity of 2, 4 and 8 processors, computed from the costs."""

    def cost(row: str, name: str) -> float:
        return median(results[row].values("posd", name))

    event = cost("publish", "server µs/event")
    event_postgres = cost("publish", "PostgreSQL µs/event")
    till = cost("storm", "server µs/till") + cost("storm", "PostgreSQL µs/till")
    kilobytes = cost("memory", "KB/till")
    lines = [
        "| processors | instances of posd | tills | events/s | shops | memory for the tills |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for processors in (2, 4, 8):
        budget = processors * 1e6
        tills = int(budget * _BACK_SECONDS / till / 1000) * 1000
        events = _BUSY * budget / (event + event_postgres)
        shops = tills // _TILLS_OF_A_SHOP
        instances = max(1, round(processors * event / (event + event_postgres)))
        megabytes = tills * kilobytes / 1000
        cells = (processors, instances, f"{tills:,}", number(round(events, -2)), f"{shops:,}")
        lines.append(f"| {' | '.join(map(str, cells))} | {megabytes:,.0f} MB |")
    return lines


_BUSY: Final = 0.5
"""The share of processor time for events. The rest is a reserve for peaks."""
_BACK_SECONDS: Final = 15
"""Seconds after a restart in which all tills must have reconnected."""
_TILLS_OF_A_SHOP: Final = 4


def tables(stored: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Return the tables of the page by name."""
    results = from_json(ROWS, stored)
    named = {each.row.name: each for each in results}
    return {
        "targets": table(results),
        "costs": costs(named),
        "sizes": sizes(named),
        "capacity": capacity(named),
    }


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    for name, lines in tables(json.loads(path.read_text())).items():
        print(name, "", *lines, "", sep="\n")


if __name__ == "__main__":
    main()
