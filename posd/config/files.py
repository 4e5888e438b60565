"""The files of the configuration: which there are, what is in them, and what is wrong with them.

Nothing is raised here. A `Problems` collects one line for every problem, so that all of them can be
mended at once, and `ConfigTables` keeps with each value the file that it came from.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from posd.config.types import NameValue, UnusableValue, displayed, suggestion, type_name
from posd.files import read_file


@define
class Problems:
    """The problems found so far, and the dotted keys that have one."""

    keys: set[str] = field(factory=set)
    _problems: list[tuple[Path, str]] = field(factory=list)

    def __bool__(self) -> bool:
        return bool(self._problems)

    def add(self, file: Path, key: str, text: str) -> None:
        """Note what is wrong with a dotted key, or with another place in a file."""
        self.keys.add(key)
        self._problems.append((file, f"{file}: {key}: {text}"))

    def add_file(self, file: Path, text: str) -> None:
        """Note what is wrong with a file as a whole."""
        self._problems.append((file, f"{file}: {text}"))

    def lines(self, files: Sequence[Path]) -> tuple[str, ...]:
        """Write one line for each problem, file by file."""
        ranks = {file: rank for rank, file in enumerate(files)}
        ordered = sorted(self._problems, key=lambda problem: ranks.get(problem[0], len(ranks)))
        return tuple(line for _, line in ordered)


def find_files(main: Path, report: Problems) -> list[Path]:
    """List the main file and those of `conf.d` beside it, in the order in which they count.

    Hidden ones are passed over: editors and package managers leave such behind.
    """
    folder = main.parent / "conf.d"
    try:
        entries = sorted(folder.iterdir())
    except FileNotFoundError:
        entries = []
    except OSError as error:
        report.add_file(folder, f"cannot be read: {error.strerror}; it must be a folder of files")
        entries = []
    return [main, *(e for e in entries if e.suffix == ".toml" and not e.name.startswith("."))]


_RENAMED = {
    # "outbox" now means only the table `pos_outbox`. These keys limit what waits in memory for tills.
    "delivery.outbox_bytes": "send_queue_bytes",
    "limits.outbox_total": "send_queue_total",
}
"""Keys that an earlier configuration file may have, and what they are called now."""


def parse(file: Path, report: Problems) -> dict[str, Any]:
    """Read one file; it is empty if it cannot be read or is not TOML."""
    try:
        # A byte order mark is not TOML, but some editors write one and it means no harm.
        text = read_file(file).decode("utf-8-sig")
    except OSError as error:
        report.add_file(file, f"cannot be read: {error.strerror}; give the path of a TOML file")
        return {}
    except UnicodeDecodeError as error:
        location = _line_and_column(error.object[: error.start].decode("utf-8", "replace"))
        report.add(file, location, "is not UTF-8; save the file in that encoding")
        return {}
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        problem, location = _syntax_error(str(error), text)
        report.add(file, location, f'is not TOML: {problem}; write [table], key = "text", key = 5')
        return {}


def _syntax_error(message: str, text: str) -> tuple[str, str]:
    """Part tomllib's message into what is wrong and where; it calls one place the end."""
    match = re.fullmatch(r"(.*) \(at (?:end of document|(line \d+, column \d+))\)", message)
    if match is None:
        return message, "somewhere"
    return match[1], match[2] or _line_and_column(text)


def _line_and_column(before: str) -> str:
    """Name the place behind a text, counting lines and columns from one."""
    *lines, last = before.split("\n")
    return f"line {len(lines) + 1}, column {len(last) + 1}"


@frozen
class ConfigTable:
    """What the files say of one table: for each key the last word, and the file that has it.

    `label` names the table in dotted keys, `file` is blamed for keys that nobody gives, and
    `keys` are those that may be given.
    """

    label: str
    file: Path
    keys: Collection[str]
    values: dict[str, tuple[Path, object]] = field(factory=dict)


@frozen
class ConfigTables:
    """All the tables that the files fill, a later file over the earlier ones.

    A `[[listen]]` is kept by its name, which makes it the same in every file, or by its number in
    one file while it has no usable name.
    """

    report: Problems
    sections: Mapping[str, ConfigTable]
    listener_keys: Collection[str]
    listeners: dict[str, ConfigTable] = field(factory=dict)

    def add(self, file: Path, document: Mapping[str, object]) -> None:
        """Enter what a file says."""
        for name, content in document.items():
            if name == "listen":
                self._add_listeners(file, content)
            elif name not in self.sections:
                self.report.add(file, _quoted(name), f"is unknown; {self._table_hint(name)}")
            elif not isinstance(content, dict):
                problem = f"is {type_name(content)}, not a table"
                self.report.add(file, name, f"{problem}; write [{name}] once and its keys below it")
            else:
                self._add_keys(file, content, self.sections[name])

    def origins(self) -> dict[str, Path]:
        """Tell which file has each dotted key, and which one each table as a whole."""
        origins: dict[str, Path] = {}
        for table in (*self.sections.values(), *self.listeners.values()):
            origins[table.label] = table.file
            origins |= {f"{table.label}.{key}": file for key, (file, _) in table.values.items()}
        return origins

    def _add_listeners(self, file: Path, content: object) -> None:
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            problem = f"is {type_name(content)}, not an array of tables"
            self.report.add(
                file, "listen", f"{problem}; write [[listen]] above each listener's keys"
            )
            return
        identities: set[str] = set()
        for number, entry in enumerate(content, 1):
            try:
                label = identity = f"listen[{NameValue().read(entry.get('name'))}]"
            except UnusableValue:
                label, identity = f"listen[{number}]", f"{file}[{number}]"
            if identity in identities:
                text = "stands twice in this file; give each listener a name of its own"
                self.report.add(file, label, text)
            identities.add(identity)
            new_table = ConfigTable(label, file, self.listener_keys)
            self._add_keys(file, entry, self.listeners.setdefault(identity, new_table))

    def _add_keys(self, file: Path, content: Mapping[str, object], table: ConfigTable) -> None:
        for key, raw in content.items():
            if key in table.keys:
                table.values[key] = (file, raw)
            else:
                text = f"is unknown; {self._key_hint(key, table)}"
                self.report.add(file, f"{table.label}.{_quoted(key)}", text)

    def _table_hint(self, name: str) -> str:
        names = [*self.sections, "listen"]
        return self._home_hint(name) or suggestion(name, names) or f"tables are {', '.join(names)}"

    def _key_hint(self, key: str, table: ConfigTable) -> str:
        keys = table.keys
        if renamed := _RENAMED.get(f"{table.label}.{key}"):
            return f"its name is now {renamed}"
        return self._home_hint(key) or suggestion(key, keys) or f"keys here are {', '.join(keys)}"

    def _home_hint(self, key: str) -> str | None:
        """Name the table that has this very key."""
        homes = [f"[{name}]" for name, section in self.sections.items() if key in section.keys]
        homes += ["[[listen]]"] if key in self.listener_keys else []
        return f"it belongs in {' or '.join(homes)}" if homes else None


def _quoted(key: str) -> str:
    """Write a key as TOML would have it."""
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else displayed(key)
