"""Compare a schema in the database with the schema that the migrations create.

`sql/structure.json` lists the objects that the files of `sql/` create: tables, columns, constraints,
indexes, triggers, functions and their privileges, one object a line. `python -m tests.structure` writes the
file, and a test compares it with a database. The file does not contain the bodies of functions: a body is
correct if the same text occurs in the files of `sql/`.
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
"""Tables that a shop may have created itself. They have hooks only after `posctl adopt`."""

_HOOKS: Final = ("posd_hooks.note_orders", "posd_hooks.note_items", "posd_hooks.read_orders")
_LEDGERS: Final = (
    ("gift_cards", "pos_gift_card_transactions", "posd_hooks.card_"),
    ("loyalty_accounts", "pos_loyalty_transactions", "posd_hooks.points_"),
)
_OURS: Final = "owner posd_owner"


@frozen
class SchemaDifference:
    """One difference from the migrations. `ours` is False for an object that no migration creates."""

    wrong: BrokenRow
    ours: bool = True


@frozen
class Schema:
    """A schema as the database has it: its objects, and the checksums of the applied migrations by file."""

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
        """Return the reason why this posd does not support the schema's version, or None if it does."""
        return migrations.version_mismatch([*self.applied], migrations.expected_files()[self.kind])

    def differences(self) -> Iterator[SchemaDifference]:
        """Yield missing and changed objects, changed migration files, and foreign objects."""
        yield from self._files()
        wanted = self._expected_objects()
        for name, made in wanted.items():
            if name not in self._made:
                yield SchemaDifference(BrokenRow(name, f"is missing; expected: {made}"))
            elif self._made[name] != made:
                yield SchemaDifference(BrokenRow(name, f"is: {self._made[name]}; expected: {made}"))
        text = self._text()
        for thing in self.things:
            if thing.kind == "source":
                if f"function {thing.name}" in wanted and f"$${thing.made}$$" not in text:
                    wrong = BrokenRow(
                        f"function {thing.name}", "has another body than in the migrations"
                    )
                    yield SchemaDifference(wrong)
            elif object_label(thing) not in wanted:
                yield from self._foreign_object(thing)

    def _files(self) -> Iterator[SchemaDifference]:
        known = {each.file: each.checksum for each in migrations.migrations(self.kind)}
        for file, checksum in self.applied.items():
            if known.get(file, checksum) != checksum:
                wrong = BrokenRow(
                    file,
                    "was changed after it was applied; restore the applied version of the file",
                )
                yield SchemaDifference(wrong)

    def _expected_objects(self) -> dict[str, str]:
        """Return the expected objects without those that belong to the shop's own tables."""
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
        """Return the text of all migrations, with the placeholders of this schema replaced."""
        files = [each.text for each in migrations.migrations(self.kind)]
        if self.tenant is None:
            bootstrap = (resources.sql() / "bootstrap.sql").read_text("utf-8")
            return "\n".join([bootstrap, *files])
        files.append(migrations.hooks_migration().text)
        return provision.fill_placeholders("\n".join(files), self.tenant)

    def _foreign_object(self, thing: SchemaObject) -> Iterator[SchemaDifference]:
        """Yield an object that no migration creates, if it has posd's rights or acts on posd's tables."""
        table = thing.name.partition(".")[0]
        if thing.kind == "function" and thing.made.startswith(("owner posd", "owner :")):
            if thing.name.partition("(")[0] not in _HOOKS:
                yield SchemaDifference(
                    BrokenRow(object_label(thing), "is owned by posd, but no migration creates it"),
                    False,
                )
        elif thing.kind == "trigger" and f"table {table}" in expected_objects(self.kind):
            if table not in SHOPS_OWN:
                yield SchemaDifference(
                    BrokenRow(
                        object_label(thing), "is on a table of posd, but no migration creates it"
                    ),
                    False,
                )
        elif thing.kind == "rights" and self._is_ours(table):
            yield SchemaDifference(
                BrokenRow(object_label(thing), f"were not granted by a migration: {thing.made}")
            )


def object_label(thing: SchemaObject) -> str:
    """Return the label of an object, such as `table orders`, as in `structure.json`."""
    return f"{thing.kind} {thing.name}".rstrip()


def expected_objects(kind: Kind) -> Mapping[str, str]:
    """Return the objects that the migrations of a kind create: definitions by label."""
    text = (resources.sql() / "structure.json").read_text("utf-8")
    return cast("dict[Kind, dict[str, str]]", jsontext.decode(text))[kind]
