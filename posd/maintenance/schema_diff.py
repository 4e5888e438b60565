"""What the migrations make of a database, held against what there is.

`sql/structure.json` has all that the files of `sql/` make: tables, columns, constraints, indexes, triggers,
functions and the rights on them, each on a line. It is made by `python -m tests.structure`, and a test holds
it against a database. What a function does is not in there: its source must stand, as it is, in those files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, cast

from attrs import field, frozen

from posd.database import migrations, resources
from posd.database import provisioning as provision
from posd.database.migrations import Kind
from posd.protocol import jsontext
from posd.store.audit import BrokenRow
from posd.store.audit_structure import SchemaObject
from posd.values import Tenant

SHOPS_OWN: Final = ("orders", "order_items")
"""Tables that a shop may have made itself, and hooks that are on them only if it was asked."""

_HOOKS: Final = ("posd_hooks.note_orders", "posd_hooks.note_items", "posd_hooks.read_orders")
_LEDGERS: Final = (
    ("gift_cards", "pos_gift_card_transactions", "posd_hooks.card_"),
    ("loyalty_accounts", "pos_loyalty_transactions", "posd_hooks.points_"),
)
_OURS: Final = "owner posd_owner"


@frozen
class SchemaDifference:
    """What is not as the migrations have made it; `ours` is false for what they have not made."""

    wrong: BrokenRow
    ours: bool = True


@frozen
class Schema:
    """A schema as it was found: its parts, and the migrations that it has with their checksums."""

    things: Sequence[SchemaObject]
    applied: Mapping[str, str]
    tenant: Tenant | None = None
    _made: dict[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        made = {object_label(each): each.made for each in self.things if each.kind != "source"}
        object.__setattr__(self, "_made", made)

    @property
    def kind(self) -> Kind:
        return "main" if self.tenant is None else "tenant"

    def schema_mismatch(self) -> str | None:
        """Why this posd cannot work with the schema, or None if it can."""
        return migrations.version_mismatch([*self.applied], migrations.expected_files()[self.kind])

    def differences(self) -> Iterator[SchemaDifference]:
        """What is missing or otherwise, what was changed of files that were applied, what is not posd's."""
        yield from self._files()
        wanted = self._expected_objects()
        for name, made in wanted.items():
            if name not in self._made:
                yield SchemaDifference(BrokenRow(name, f"is missing; it was made as: {made}"))
            elif self._made[name] != made:
                yield SchemaDifference(
                    BrokenRow(name, f"is: {self._made[name]}; it was made as: {made}")
                )
        text = self._text()
        for thing in self.things:
            if thing.kind == "source":
                if f"function {thing.name}" in wanted and f"$${thing.made}$$" not in text:
                    wrong = BrokenRow(
                        f"function {thing.name}", "does not do what it was made to do"
                    )
                    yield SchemaDifference(wrong)
            elif object_label(thing) not in wanted:
                yield from self._foreign_object(thing)

    def _files(self) -> Iterator[SchemaDifference]:
        known = {each.file: each.checksum for each in migrations.migrations(self.kind)}
        for file, checksum in self.applied.items():
            if known.get(file, checksum) != checksum:
                wrong = BrokenRow(
                    file, "was changed after it was applied, so nothing is known of it"
                )
                yield SchemaDifference(wrong)

    def _expected_objects(self) -> dict[str, str]:
        """What has to be there, for a shop that has made some of its tables itself too."""
        wanted = dict(expected_objects(self.kind))
        if self.tenant is None:
            return wanted
        own = [name for name in SHOPS_OWN if not self._is_ours(name)]
        hooked = migrations.hooks_migration().file in self.applied
        for cards, movements, prefix in _LEDGERS:
            if not self._is_ours(movements) and f"{prefix}append" not in self._functions():
                own += [cards, movements]
        return {
            name: made
            for name, made in wanted.items()
            if not self._is_left_out(name, own, hooked=hooked)
        }

    def _is_left_out(self, name: str, own: Iterable[str], *, hooked: bool) -> bool:
        kind, _, rest = name.partition(" ")
        if kind == "function":
            called = rest.partition("(")[0]
            if called in _HOOKS:
                return not hooked
            return any(
                movements in own and called.startswith(prefix) for _, movements, prefix in _LEDGERS
            )
        table = rest.partition(".")[0]
        if kind == "trigger" and table in SHOPS_OWN:
            return not hooked
        return table in own

    def _is_ours(self, table: str) -> bool:
        return self._made.get(f"table {table}", "").endswith(_OURS)

    def _functions(self) -> set[str]:
        return {each.name.partition("(")[0] for each in self.things if each.kind == "function"}

    def _text(self) -> str:
        """All that the migrations say, filled in for this schema."""
        files = [each.text for each in migrations.migrations(self.kind)]
        if self.tenant is None:
            bootstrap = (resources.sql() / "bootstrap.sql").read_text("utf-8")
            return "\n".join([bootstrap, *files])
        files.append(migrations.hooks_migration().text)
        return provision.fill_placeholders("\n".join(files), self.tenant)

    def _foreign_object(self, thing: SchemaObject) -> Iterator[SchemaDifference]:
        """Of what the migrations have not made, what acts with the rights of posd or on its tables."""
        table = thing.name.partition(".")[0]
        if thing.kind == "function" and thing.made.startswith(("owner posd", "owner :")):
            if thing.name.partition("(")[0] not in _HOOKS:
                yield SchemaDifference(
                    BrokenRow(object_label(thing), "belongs to posd and is none of its own"), False
                )
        elif thing.kind == "trigger" and f"table {table}" in expected_objects(self.kind):
            if table not in SHOPS_OWN:
                yield SchemaDifference(
                    BrokenRow(object_label(thing), "acts on posd's rows and is not posd's"), False
                )
        elif thing.kind == "rights" and self._is_ours(table):
            yield SchemaDifference(BrokenRow(object_label(thing), f"were not given: {thing.made}"))


def object_label(thing: SchemaObject) -> str:
    """How a part of a schema is called."""
    return f"{thing.kind} {thing.name}".rstrip()


def expected_objects(kind: Kind) -> Mapping[str, str]:
    """What the migrations make of a kind of schema, by label."""
    text = (resources.sql() / "structure.json").read_text("utf-8")
    return cast("dict[Kind, dict[str, str]]", jsontext.decode(text))[kind]
