"""JSON Schemas of events, generated from the tables that normalise events (`posd.events.normalise`).

An event has two schemas. The incoming one is for platforms, and has few required members. The outgoing one is
for tills, and is complete and exact. posd never refuses an order because of one unusual value, so incoming
schemas are *tolerant*: a value that posd cannot read is moved to `unreadable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from posd.events import normalise, orders
from posd.events.fields import UNREADABLE, Field

Schema = dict[str, Any]

_DESCRIPTIONS: Final = {
    "new_order": "An order.",
    "order_updated": "A changed order. An event to a till has the whole order; a platform"
    " may send only the changed members.",
    "gift_card_purchased": "A gift card that was sold.",
    "gift_card_updated": "A gift card whose balance or status has changed.",
    "loyalty_updated": "A change of the loyalty points of a customer.",
}
_ITEM: Final = "A line of an order."
_MEMBERS: Final = "Any members of an order."
_ADDON: Final = "An option of an item."
_FORMS: Final[Mapping[str, Schema]] = {
    "string": {"type": "string"},
    "time": {"type": "string", "format": "date-time"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
}


def ref(name: str) -> Schema:
    """Return a reference to a schema of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def name_of(kind: str) -> str:
    """Return the name of the schema of an event type: `NewOrder` for `new_order`."""
    return "".join(word.title() for word in kind.split("_"))


def components() -> dict[str, Schema]:
    """Return all schemas by name.

    For example: `NewOrder` as tills get it, `NewOrderToPublish` as platforms send it, `Order` as posd stores
    it, and `OrderMembers` without a required id.
    """
    line = _minimal_data("new_order", items=[{"selectedAddons": [{}]}])["items"][0]
    addon = line.pop("selectedAddons")[0]
    made = {
        "Item": _outgoing_schema(normalise.ITEM.members, line, _ITEM),
        "Addon": _outgoing_schema(normalise.ADDON.members, addon, _ADDON),
        "ItemToPublish": _incoming_schema(normalise.ITEM.members, _ITEM),
        "AddonToPublish": _incoming_schema(normalise.ADDON.members, _ADDON),
    }
    made["Item"]["properties"]["id"] = {
        "type": "integer",
        "description": "The number of the line, from 1.",
    }
    for kind, table in normalise.TABLES.items():
        made[name_of(kind)] = _outgoing_data(kind)
        made[f"{name_of(kind)}ToPublish"] = _incoming_schema(
            table.members, _DESCRIPTIONS[kind], normalise.NAMING[kind]
        )
    made["Order"] = _snapshot(made["OrderUpdated"])
    made["OrderMembers"] = _incoming_schema(normalise.TABLES["new_order"].members, _MEMBERS)
    return {**made, "EventToPublish": _event()}


def _snapshot(updated: Schema) -> Schema:
    """Return the schema of a stored order, without the members about its last change."""
    of_change = ("previousStatus", "updatedAt")
    properties = {
        name: each for name, each in updated["properties"].items() if name not in of_change
    }
    required = [name for name in updated["required"] if name not in of_change]
    description = "An order as it was last published."
    return {**updated, "description": description, "properties": properties, "required": required}


def _outgoing_data(kind: str) -> Schema:
    """Return the schema of the data of an event type as tills get it."""
    minimal, naming = _minimal_data(kind), normalise.NAMING[kind]
    if len(naming) > 1:
        # Any of these members may be missing, if another one names the object.
        minimal |= dict.fromkeys(naming & minimal.keys())
    # A member that is null in other types is absent in this type if the type does not have it.
    members = [
        each for each in normalise.TABLES[kind].members if each.name in minimal or not each.nullable
    ]
    schema = _outgoing_schema(members, minimal, _DESCRIPTIONS[kind])
    if kind in normalise.ORDER_TYPES:
        schema["properties"]["orderSource"] = {"const": "online"}
        schema["properties"][normalise.SCHEDULED_TEXT] = {
            "type": "string",
            "description": "A schedule that is not a time.",
        }
    return {**schema, **_one_of(naming)} if len(naming) > 1 else schema


def _minimal_data(kind: str, **data: object) -> dict[str, Any]:
    """Return the normalised data of an event with as few members as possible."""
    draft = normalise.draft(kind, {normalise.NAMING[kind][-1]: "1", **data})
    if kind in normalise.ORDER_TYPES:
        change = orders.change(draft, None, datetime.now(UTC))
        assert change is not None
        draft = change.draft
    return dict(draft.data)


def _outgoing_schema(
    members: Sequence[Field], minimal: Mapping[str, object], description: str
) -> Schema:
    """Return the schema of an object as tills get it."""
    properties = {}
    for each in members:
        form = _form(each, "")
        is_null = each.nullable and minimal.get(each.name) is None
        properties[each.name] = {**form, "type": [form["type"], "null"]} if is_null else form
    properties[UNREADABLE] = {
        "type": "object",
        "description": "The values that posd could not read, by member.",
    }
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": [name for name in minimal if name in properties or name == "id"],
    }


def _incoming_schema(
    members: Sequence[Field], description: str, naming: Sequence[str] = ()
) -> Schema:
    """Return the schema of an object as platforms send it."""
    properties = {}
    for each in members:
        form = _form(each, "ToPublish")
        if each.name not in naming and "type" in form:
            form = {**form, "type": [form["type"], "null"]}
        properties[each.name] = {**form, "x-also": list(each.aliases)} if each.aliases else form
    return {
        "type": "object",
        "description": f"{description} A value that posd cannot read is in `{UNREADABLE}`.",
        "properties": properties,
        "x-tolerant": True,
        **({"required": [*naming]} if len(naming) == 1 else _one_of(naming)),
    }


def _one_of(naming: Sequence[str]) -> Schema:
    return {"anyOf": [{"required": [name]} for name in naming]} if naming else {}


def _form(member: Field, suffix: str) -> Schema:
    """Return the schema of a member."""
    match normalise.FORMS[member.read]:
        case "items" | "addons" as parts:
            part = "Item" if parts == "items" else "Addon"
            return {"type": "array", "items": ref(f"{part}{suffix}")}
        case form:
            return dict(_FORMS[form])


def _event() -> Schema:
    """Return the schema of an event as platforms send it. The schema of `data` depends on `type`."""
    return {
        "type": "object",
        "description": "An event. Members beside `data` are published beside `data`.",
        "required": ["type", "data"],
        "properties": {
            "type": {
                "type": "string",
                "pattern": "^[a-z][a-z0-9_]{0,49}$",
                "not": {"anyOf": [{"enum": sorted(normalise.RESERVED)}, {"pattern": "^pos_"}]},
                "description": "A known type, or any other type that is not reserved.",
                "examples": [*normalise.TABLES],
            },
            "data": {"type": "object"},
        },
        "allOf": [
            {
                "if": {"properties": {"type": {"const": kind}}},
                "then": {"properties": {"data": ref(f"{name_of(kind)}ToPublish")}},
            }
            for kind in normalise.TABLES
        ],
    }
