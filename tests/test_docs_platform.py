"""Compare docs/platform.md with the code: its tables are those that posd normalises events with."""

from __future__ import annotations

import inspect

from twisted.trial.unittest import SynchronousTestCase

from posd.broadcaster import BlockingBroadcaster, Broadcaster
from posd.events import normalise
from posd.events.fields import FieldTable as Members
from posd.events.fields import snake
from posd.web.api import publishing
from tests import documents
from tests.documents import words_in_code

PAGE = "docs/platform.md"
_SECTIONS = {
    "new_order, order_updated": normalise._ORDER,
    "gift_card_purchased": normalise._TABLES["gift_card_purchased"],
    "gift_card_updated": normalise._TABLES["gift_card_updated"],
    "loyalty_updated": normalise._TABLES["loyalty_updated"],
}


class MemberTests(SynchronousTestCase):
    """The tables of members."""

    def check(self, shown: documents.Table, members: Members) -> None:
        self.assertEqual(shown.column(), [member.name for member in members.members])
        for row, member in zip(shown.rows, members.members, strict=True):
            aliases = {other for other in member.aliases if other != snake(member.name)}
            self.assertEqual(words_in_code(row[1]), aliases, row[0])

    def test_every_known_type_has_its_members_with_their_other_names(self) -> None:
        for section, members in _SECTIONS.items():
            with self.subTest(section=section):
                self.check(documents.table(PAGE, section), members)
        self.assertEqual(
            {name for section in _SECTIONS for name in section.split(", ")}, {*normalise._TABLES}
        )

    def test_items_and_addons_have_their_members(self) -> None:
        (items,) = (each for each in documents.tables(PAGE) if each.section == "Items")
        addons, _ = (each for each in documents.tables(PAGE) if each.section == "Addons")
        self.check(items, normalise._ITEM)
        self.check(addons, normalise._ADDON)

    def test_required_members_are_marked(self) -> None:
        for section, members in _SECTIONS.items():
            named = {
                name
                for row in documents.table(PAGE, section).rows
                if "required" in row[2].lower()
                for name in words_in_code(f"{row[0]} {row[2]}")
            }
            kind = section.split(", ")[0]
            with self.subTest(section=section):
                self.assertEqual(named, set(normalise._NAMING[kind]), members.names)


class WordTests(SynchronousTestCase):
    """Names and limits of the code on the page."""

    def test_the_reserved_types_are_named(self) -> None:
        self.assertLessEqual(normalise._RESERVED, words_in_code(documents.text(PAGE)))

    def test_both_broadcasters_have_the_methods_of_the_table(self) -> None:
        rows = documents.table(PAGE, "Python client").rows
        for broadcaster in (BlockingBroadcaster, Broadcaster):
            for row in rows:
                (call,) = words_in_code(row[0])
                name, _, parameters = call.rstrip(")").partition("(")
                signature = inspect.signature(getattr(broadcaster, name))
                self.assertEqual(
                    [*signature.parameters],
                    ["self", *parameters.split(", "), "idempotency_key"],
                )

    def test_the_limits_are_those_of_the_code(self) -> None:
        self.assertIn(f"a list of up to {publishing._MOST_EVENTS} such objects", flowing())


def flowing() -> str:
    """Return the page without line breaks."""
    return " ".join(documents.text(PAGE).split())
