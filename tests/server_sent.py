"""Parse server-sent events (WHATWG HTML, "Interpreting an event stream")."""

from __future__ import annotations

import json
import re
from typing import Any

from attrs import frozen

_LINE_END = re.compile(r"\r\n|\r|\n")


@frozen
class ServerSent:
    """A dispatched event. A client sends its `id` when it reconnects."""

    type: str
    data: str
    id: str | None = None
    retry: int | None = None

    @property
    def message(self) -> Any:
        return json.loads(self.data)


def events_in(data: bytes) -> list[ServerSent]:
    """Return the complete events of a stream, without comments and an incomplete event at the end."""
    events, fields, texts = [], dict[str, str](), list[str]()
    for line in _LINE_END.split(data.decode())[:-1]:
        if not line:
            if texts:
                retry = fields.get("retry")
                events.append(
                    ServerSent(
                        fields.get("event", "message"),
                        "\n".join(texts),
                        fields.get("id"),
                        None if retry is None else int(retry),
                    )
                )
            fields, texts = {}, []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            texts.append(value)
        elif name:
            fields[name] = value
    return events
