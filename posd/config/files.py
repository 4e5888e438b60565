"""Finds, parses and merges the files of the configuration.

Nothing raises here. `Problems` collects one line for each problem, so that all of them are reported at once.
`ConfigTables` keeps the file of each value.
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
    """The problems found so far, and the dotted keys that have a problem."""

    keys: set[str] = field(factory=set)
    _problems: list[tuple[Path, str]] = field(factory=list)

    def __bool__(self) -> bool:
        return bool(self._problems)

    def add(self, file: Path, key: str, text: str) -> None:
        """Add a problem of a dotted key, or of another place in a file."""
        self.keys.add(key)
        self._problems.append((file, f"{file}: {key}: {text}"))

    def add_file(self, file: Path, text: str) -> None:
        """Add a problem of a whole file."""
        self._problems.append((file, f"{file}: {text}"))

    def lines(self, files: Sequence[Path]) -> tuple[str, ...]:
        """Return one line for each problem, in the order of the files."""
        ranks = {file: rank for rank, file in enumerate(files)}
        ordered = sorted(self._problems, key=lambda problem: ranks.get(problem[0], len(ranks)))
        return tuple(line for _, line in ordered)


def find_files(main: Path, report: Problems) -> list[Path]:
    """Return the main file and the `*.toml` files of `conf.d` in the same folder, by name.

    Hidden files are left out, because editors and package managers leave some behind.
    """
    folder = main.parent / "conf.d"
    try:
        entries = sorted(folder.iterdir())
    except FileNotFoundError:
        entries = []
    except OSError as error:
        report.add_file(folder, f"cannot be read: {error.strerror}; it must be a readable folder")
        entries = []
    return [main, *(e for e in entries if e.suffix == ".toml" and not e.name.startswith("."))]


_RENAMED = {
    # "outbox" now means only the table `pos_outbox`. These keys limit what waits in memory for tills.
    "delivery.outbox_bytes": "send_queue_bytes",
    "limits.outbox_total": "send_queue_total",
}
"""Renamed keys that an older configuration file may have, with their present names."""


def parse(file: Path, report: Problems) -> dict[str, Any]:
    """Read and parse a file. Returns an empty table if the file cannot be read or is not TOML."""
    try:
        # TOML has no byte order mark, but some editors write one.
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
    """Split the message of tomllib into problem and location. The end of the document becomes a location."""
    match = re.fullmatch(r"(.*) \(at (?:end of document|(line \d+, column \d+))\)", message)
    if match is None:
        return message, "unknown line"
    return match[1], match[2] or _line_and_column(text)


def _line_and_column(before: str) -> str:
    """Return the line and column after a text, counted from 1."""
    *lines, last = before.split("\n")
    return f"line {len(lines) + 1}, column {len(last) + 1}"


@frozen
class ConfigTable:
    """The merged contents of a table: for each key its last value, and the file of that value.

    `label` names the table in dotted keys. `file` is named in problems of missing keys. `keys` are the keys
    that the table may have.
    """

    label: str
    file: Path
    keys: Collection[str]
    values: dict[str, tuple[Path, object]] = field(factory=dict)


@frozen
class ConfigTables:
    """The merged tables of all files. A later file overrides the earlier ones.

    Entries of `[[listen]]` with the same name are merged. An entry without a usable name is identified by
    its file and its number.
    """

    report: Problems
    sections: Mapping[str, ConfigTable]
    listener_keys: Collection[str]
    listeners: dict[str, ConfigTable] = field(factory=dict)

    def add(self, file: Path, document: Mapping[str, object]) -> None:
        """Merge the contents of a file."""
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
        """Return the file of each dotted key, and of each table."""
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
                text = "occurs twice in this file; give each listener a name of its own"
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
        """Return a hint to the table that has a key of this name, if there is one."""
        homes = [f"[{name}]" for name, section in self.sections.items() if key in section.keys]
        homes += ["[[listen]]"] if key in self.listener_keys else []
        return f"it belongs in {' or '.join(homes)}" if homes else None


def _quoted(key: str) -> str:
    """Return a key as TOML writes it."""
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else displayed(key)
