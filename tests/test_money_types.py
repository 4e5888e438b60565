"""No amount is a binary float: in requests, answers, columns, and code."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from msgspec import inspect
from twisted.trial.unittest import SynchronousTestCase

import posd
from posd.web.http.models import RequestModel, ResponseModel
from tests.schema_case import SchemaCase

ROOT: Final = Path(posd.__file__).parent
MOVERS: Final = (
    *("events/money", "events/ledger_movements", "events/daily_reports", "events/orders"),
    "events/fields",
    *("store/giftcards", "store/loyalty", "store/loyalty_rules", "store/ledgers", "store/reports"),
    *("web/api/giftcards", "web/api/loyalty", "web/api/reports", "web/api/orders"),
    "web/api/order_fields",
)
"""The modules that process amounts and points."""


def floats(source: str) -> list[int]:
    """Return the lines that name or contain a binary float, except in the examples of the API."""
    return [
        node.lineno
        for node in code(ast.parse(source))
        if (isinstance(node, ast.Name) and node.id == "float")
        or (isinstance(node, ast.Constant) and isinstance(node.value, float))
    ]


def code(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a code object and all code objects in it."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.keyword) and child.arg == "example"):
            yield from code(child)


def below(kind: type[Any]) -> Iterator[type[Any]]:
    each: type[Any]
    for each in kind.__subclasses__():
        yield each
        yield from below(each)


def types_in(described: Any) -> Iterator[Any]:
    """Yield all parts of a type, including the type itself."""
    yield described
    for name in ("type", "types", "item_type", "key_type", "value_type"):
        part = getattr(described, name, ())
        for each in part if isinstance(part, tuple) else (part,):
            if isinstance(each, inspect.Type):
                yield from types_in(each)


class TypeTests(SynchronousTestCase):
    def test_no_request_and_no_answer_has_one(self) -> None:
        for path in (ROOT / "web").glob("*.py"):
            importlib.import_module(f"posd.web.{path.stem}".removesuffix(".__init__"))
        structures = [*below(RequestModel), *below(ResponseModel)]
        self.assertGreater(len(structures), 40)
        found = [
            f"{kind.__name__}.{field.name}"
            for kind in structures
            for field in inspect.type_info(kind).fields  # type: ignore[attr-defined]
            if any(isinstance(each, inspect.FloatType) for each in types_in(field.type))
        ]
        self.assertEqual(found, [])

    def test_no_code_that_moves_money_has_one(self) -> None:
        found = {name: floats((ROOT / f"{name}.py").read_text("utf-8")) for name in MOVERS}
        self.assertEqual({name: lines for name, lines in found.items() if lines}, {})

    def test_one_would_be_found(self) -> None:
        self.assertEqual(floats("a: float = 1\nb = 2.5\nc = Decimal('2.5')\n"), [1, 2])


class ColumnTests(SchemaCase):
    def test_no_column_is_one(self) -> None:
        found = self.admin.rows(
            "SELECT attrelid::regclass::text, attname FROM pg_attribute"
            "  JOIN pg_class AS c ON c.oid = attrelid"
            " WHERE relnamespace::regnamespace::text ~ '^dinedesk_' AND relkind IN ('r', 'v', 'p')"
            "   AND atttypid IN ('real'::regtype, 'double precision'::regtype, 'money'::regtype)"
        )
        self.assertEqual(found, [])
