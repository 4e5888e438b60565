"""A sample of the mutants that cosmic-ray can make of the core packages."""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from difflib import ndiff
from pathlib import Path
from typing import Any, Final

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from tests.documents import ROOT
from tests.mutants.by_hand import Mutant

PACKAGES: Final = {
    "publishing": ["*"],
    "delivery": ["*"],
    "events": ["*"],
    "protocol": ["*"],
    "store": ["*"],
    # The rest is about TLS and certificates.
    "security": [
        "api_keys",
        "auth",
        "credential_lookup",
        "credit",
        "key_index",
        "r*_limits",
        "request_rates",
    ],
}
"""The core packages, and which of their modules belong to the core."""

_FURTHER: Final = {
    "store/audit*": ["maintenance.test_audit", "cli.test_audit"],
    "store/[a-f]*": ["publishing", "security", "cli.test_keys", "cli.test_forgetting"],
    "store/[g-z]*": ["publishing", "integration.test_rest_ledgers", "maintenance.test_retention"],
}
"""What tests modules besides the tests of their package: the store is used through the packages above it."""


def sample(packages: Iterable[str], seed: int, size: int) -> list[Mutant]:
    """So many mutants at places drawn by `seed`, one at each place; fewer if there are not as many places.

    A place has one mutant because there are a dozen of each `+` and six of each `<`.
    """
    chance = random.Random(seed)
    drawn: list[Mutant] = []
    places = [place for package in packages for path in modules(package) for place in _places(path)]
    chance.shuffle(places)
    for path, operators in places:
        if len(drawn) == size:
            break
        name, occurrence = chance.choice(operators)
        text = path.read_text("utf-8")
        mutated = mutate_code(text, get_operator(name)(), occurrence)
        if mutated is not None and _is_different(text, mutated):
            drawn.append(_mutant(path, text, mutated, name))
    return drawn


def modules(package: str) -> list[Path]:
    """The modules of the core in a package."""
    folder = ROOT / "posd" / package
    return sorted({path for each in PACKAGES[package] for path in folder.glob(f"{each}.py")})


def tests_of(path: Path) -> tuple[str, ...]:
    """The module's own tests, those of its package, and further ones."""
    inside = path.relative_to(ROOT / "posd")
    own = ROOT / "tests" / inside.parent / f"test_{inside.name}"
    further = [
        each for pattern, found in _FURTHER.items() if inside.match(pattern) for each in found
    ]
    named = [inside.parent.name, *further]
    if own.exists():
        named.insert(0, f"{inside.parent.name}.{own.stem}")
    return tuple(f"tests.{each}" for each in named)


def _places(path: Path) -> Iterator[tuple[Path, list[tuple[str, int]]]]:
    """Each place of a module that can be changed, with the operators for it and their occurrences."""
    nodes = [*ast_nodes(get_ast(path.read_text("utf-8")))]
    found: defaultdict[Any, list[tuple[str, int]]] = defaultdict(list)
    for name in operator_names():
        # Those with arguments are for the variables of one program.
        if not get_operator(name).arguments():
            operator = get_operator(name)()
            starts = (start for node in nodes for start, _ in operator.mutation_positions(node))
            for occurrence, start in enumerate(starts):
                found[start].append((name, occurrence))
    for start in sorted(found):
        yield path, found[start]


class _Bare(ast.NodeTransformer):
    """Removes annotations, which are not evaluated where the modules import `annotations`."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        self.generic_visit(node)
        node.returns = None
        return node


def _is_different(text: str, mutated: str) -> bool:
    """Whether a mutant is a program, and another one."""
    try:
        after = ast.parse(mutated)
    except SyntaxError:
        return False
    return ast.dump(_Bare().visit(ast.parse(text))) != ast.dump(_Bare().visit(after))


def _mutant(path: Path, text: str, mutated: str, operator: str) -> Mutant:
    lines = [*ndiff(text.splitlines(), mutated.splitlines())]
    was, now = (
        "\n".join(each[2:].strip() for each in lines if each[0] == sign).strip() for sign in "-+"
    )
    number = next(n for n, each in enumerate(lines, 1) if each[0] in "-+")
    where = path.relative_to(ROOT).as_posix()
    name = f"{where}:{number} {operator.removeprefix('core/')}"
    return Mutant(name, where, was, now, mutated, tests_of(path))
