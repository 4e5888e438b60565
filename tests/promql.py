"""The metrics, labels and values in a PromQL expression."""

from __future__ import annotations

from collections.abc import Iterator

import promql_parser
from attrs import frozen
from promql_parser import (
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    MatrixSelector,
    ParenExpr,
    SubqueryExpr,
    UnaryExpr,
    VectorSelector,
)


@frozen
class Selected:
    """A metric, and the label matchers of a selector."""

    name: str
    labels: frozenset[str]


def selected(expression: str) -> Iterator[Selected]:
    """Return all selectors of an expression. Raises ValueError for an invalid one."""
    for each in _walk(promql_parser.parse(expression)):
        if isinstance(each, VectorSelector):
            labels = frozenset(matcher.name for matcher in each.matchers.matchers)
            yield Selected(each.name or "", labels)


def grouped(expression: str) -> Iterator[str]:
    """Return all labels by which an expression aggregates or matches series."""
    for each in _walk(promql_parser.parse(expression)):
        if isinstance(each, AggregateExpr) and each.modifier is not None:
            yield from each.modifier.labels
        if isinstance(each, BinaryExpr) and each.modifier is not None:
            matching = each.modifier.matching
            yield from () if matching is None else matching.labels


def _walk(expression: Expr) -> Iterator[Expr]:
    yield expression
    for part in _parts(expression):
        yield from _walk(part)


def _parts(expression: Expr) -> list[Expr]:
    match expression:
        case BinaryExpr():
            return [expression.lhs, expression.rhs]
        case Call():
            return list(expression.args)
        case AggregateExpr():
            return [expression.expr, *([expression.param] if expression.param is not None else [])]
        case ParenExpr() | UnaryExpr() | SubqueryExpr():
            return [expression.expr]
        case MatrixSelector():
            return [expression.vector_selector]
        case _:
            return []
