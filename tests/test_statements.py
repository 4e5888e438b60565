"""A closer check than that of bandit for composed SQL; see `[tool.bandit]` in pyproject.toml.

Bandit reports that SQL is composed, but does not see of what. This test checks that statements consist of
constants of the module and of quoted identifiers. No input is put into a statement as text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import posd

ROOT = Path(posd.__file__).parent
_SQL = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|MERGE|CREATE|ALTER|DROP|GRANT|REVOKE|TRUNCATE|SET|RESET|WITH|CALL|DO"
    r"|COPY|LOCK|LISTEN|NOTIFY|EXPLAIN|VALUES|BEGIN)\b"
)
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")
_QUOTING = ("schema", "shop", "_quoted", "_named")
"""Functions that quote any text as an identifier."""
_KNOWN = {
    (
        "posd.maintenance.doctor.database",
        "server.user",
    ): "advice for people, and executed by nobody",
    ("posd.database.migrations", "int(_LOCK_SECONDS * 1000)"): "an integer",
    ("posd.delivery.feed", "channel"): "four that posd has named itself",
    ("posd.database.session_settings", "name"): "settings that posd names itself",
    ("posd.database.session_settings", "role"): "posd, the only one there is",
    ("posd.database.bound", "sql"): "the statement itself, behind a time limit",
    (
        "posd.database.shop_readers",
        "sql",
    ): "the statement itself, behind the beginning of its transaction",
    ("posd.database.bound", "max(1, int(seconds * 1000))"): "an integer",
    ("posd.database.adoption_rules", "closed"): "advice for people; the table was quoted",
    ("posd.database.adoption_rules", "column"): "advice for people; one of two that are known",
    (
        "posd.database.adoption_rules",
        "name",
    ): "advice for people; one of the columns that are needed",
    ("posd.database.adoption_rules", "kind"): "advice for people; as PostgreSQL writes the type",
}
"""Other parts of statements, and what they are."""


def composed(tree: ast.AST) -> Iterator[tuple[int, ast.expr]]:
    """Yield the parts of all composed statements, with their lines."""
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=[ast.Constant(value=str(begin)), *_]) if _SQL.match(begin):
                for part in node.values:
                    if isinstance(part, ast.FormattedValue):
                        yield node.lineno, part.value
            case ast.BinOp(left=left, op=ast.Add() | ast.Mod(), right=right) if _is_sql(left):
                yield node.lineno, right
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="format"),
                args=args,
                keywords=keywords,
            ) if name.startswith("_") and _is_statement(tree, name):
                yield from ((node.lineno, value) for value in (*args, *(k.value for k in keywords)))


def _is_sql(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and bool(_SQL.match(str(node.value)))


def _is_statement(tree: ast.AST, name: str) -> bool:
    """Return whether a constant of the module is a statement."""
    return any(
        isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == name
        and node.value is not None
        and _is_sql(node.value)
        for node in ast.walk(tree)
    )


def quoted(tree: ast.AST, node: ast.expr) -> bool:
    """Return whether an expression is a constant or a quoted identifier, directly or through a name."""
    match node:
        case ast.Constant():
            return True
        case ast.Call(func=ast.Name(id=function)):
            return function in _QUOTING
        case ast.Name(id=name) | ast.Attribute(attr=name) if _CONSTANT.fullmatch(name):
            return True
        case ast.Name(id=name):
            given = [
                each.value
                for each in ast.walk(tree)
                if isinstance(each, ast.Assign)
                and any(
                    isinstance(target, ast.Name) and target.id == name for target in each.targets
                )
            ]
            return bool(given) and all(
                isinstance(value, ast.Call)
                and isinstance(value.func, ast.Name)
                and value.func.id in _QUOTING
                for value in given
            )
    return False


class StatementTests(SynchronousTestCase):
    """Every module of the package."""

    def test_only_constants_and_quoted_identifiers_are_put_into_statements(self) -> None:
        count, used = 0, set()
        for path in ROOT.rglob("*.py"):
            module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
            tree = ast.parse(path.read_text("utf-8"))
            for line, value in composed(tree):
                count += 1
                text = ast.unparse(value)
                if (module, text) in _KNOWN:
                    used.add((module, text))
                elif not quoted(tree, value):
                    self.fail(f"{module}, line {line}: {text} is put into a statement")
        self.assertGreater(count, 40)
        self.assertEqual(used, {*_KNOWN})

    def test_what_is_not_is_found(self) -> None:
        for source in (
            'run(f"SELECT {x} FROM t")',
            'run("SELECT " + x)',
            'run("SELECT %s" % x)',
            '_A: Final = "SELECT {x}"\nrun(_A.format(x=y))',
            'x = ask()\nrun(f"DELETE FROM {x}")',
        ):
            tree = ast.parse(source)
            ((_, value),) = composed(tree)
            self.assertFalse(quoted(tree, value), source)


class ChanceTests(SynchronousTestCase):
    """`random` is for turns and pauses; secrets come from `secrets`."""

    def test_only_those_import_it_who_wait_or_make_up_samples(self) -> None:
        importing = {
            str(path.relative_to(ROOT).with_suffix(""))
            for path in ROOT.rglob("*.py")
            if re.search(r"^(import|from) random\b", path.read_text("utf-8"), re.M)
        }
        waiting = {
            "delivery/hub",
            "delivery/feed",
            "database/reconnect_pauses",
            "maintenance/retention",
            "delivery/registry",
            "delivery/stream_renaming",
            "web/sse",
            "web/http/channel",
            "client/till",
        }
        publishing = {"broadcaster/blocking", "broadcaster/nonblocking"}
        self.assertEqual(importing, {*waiting, *publishing, "cli/sample_orders"})

    def test_keys_are_made_by_secrets(self) -> None:
        self.assertIn("secrets.token_bytes(32)", (ROOT / "security/api_keys.py").read_text("utf-8"))
