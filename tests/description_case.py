"""The description of the API as the daemon serves it."""

from __future__ import annotations

from functools import cache
from typing import Any, Self, cast

from attrs import frozen
from jsonschema import Draft202012Validator
from twisted.internet.testing import MemoryReactorClock

from posd.config.model import Config, DatabaseConfig
from posd.daemon.wiring import Application
from posd.protocol import jsontext
from posd.web.http.operations import Operation
from posd.web.openapi.document import document


@cache
def operations() -> tuple[Operation, ...]:
    """Return all rows of the operations of a posd."""
    return Application(
        MemoryReactorClock(), Config(database=DatabaseConfig(dsn="dbname=posd"))
    ).operations


@cache
def described() -> dict[str, Any]:
    """Return the document as it is sent."""
    return decoded(document(operations()))


def decoded(value: object) -> dict[str, Any]:
    """Return the document as a JSON reader has it. `jsonschema` needs floats instead of decimals."""
    return cast("dict[str, Any]", _floats(jsontext.decode(jsontext.encode(value))))


@frozen
class Shape:
    """A schema of a document, with references into the document."""

    schema: dict[str, Any]
    document: dict[str, Any]

    @classmethod
    def named(cls, name: str, document: dict[str, Any]) -> Self:
        return cls({"$ref": f"#/components/schemas/{name}"}, document)

    def objections(self, value: Any) -> list[str]:
        """Return the errors of a value according to the schema."""
        whole = {**self.schema, "components": self.document["components"]}
        return [each.message for each in Draft202012Validator(whole).iter_errors(value)]

    def fits(self, value: Any) -> bool:
        return not self.objections(value)


def _floats(value: object) -> object:
    if isinstance(value, dict):
        return {name: _floats(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_floats(member) for member in value]
    return (
        value if value is None or isinstance(value, bool | int | str) else float(cast(Any, value))
    )
