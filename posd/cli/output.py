"""The output of `posctl`: tables and text for people, JSON for programs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from posd.protocol.json_literals import timestamp
from posd.protocol.jsontext import encode

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

_UNLIMITED = 1000
"""Columns. Output to a pipe or a file is not wrapped at the width of a terminal."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count and its noun in the right number: "1 fault", "2 faults"."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def print_json(value: object) -> None:
    """Print one value as one line of JSON."""
    click.echo(encode(value))


def console(*, stderr: bool = False) -> Console:
    """Return a rich console that does not interpret markup in texts, which may be names."""
    stream = sys.stderr if stderr else sys.stdout
    size = shutil.get_terminal_size()
    return Console(
        file=stream,
        width=size.columns if stream.isatty() else _UNLIMITED,
        # rich ignores the width of a dumb terminal unless the height is given too.
        height=size.lines,
        markup=False,
        highlight=False,
        emoji=False,
    )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table. None is shown as a dash. Columns of integers are aligned to the right.

    A `Text` keeps its style and its line breaks.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    filled = [list(row) for row in rows]
    for number, title in enumerate(columns):
        counts = any(isinstance(row[number], int) for row in filled)
        table.add_column(title, justify="right" if counts else "left", overflow="fold")
    for row in filled:
        table.add_row(*map(_shown, row))
    console().print(table)


def _shown(cell: object) -> Text:
    if isinstance(cell, Text):
        return cell
    return Text("–" if cell is None else printable(str(cell)))


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Return a progress bar on standard error, which is disabled unless that is a terminal.

    Without `columns` it shows a description, a bar and the number of completed steps.
    """
    terminal = console(stderr=True)
    counting = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(
        *(columns or counting),
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
    )


def local_time(when: datetime | None) -> str | None:
    """Return a time in the time zone of this machine, to the minute."""
    return None if when is None else f"{when.astimezone():%Y-%m-%d %H:%M}"


def timestamp_or_none(when: datetime | None) -> str | None:
    """Return a time as RFC 3339 for JSON."""
    return None if when is None else timestamp(when)


def warn(text: str) -> None:
    """Write a warning of one or more lines to standard error."""
    click.echo(f"posctl: warning: {printable_lines(text)}", err=True)


def printable_lines(text: str) -> str:
    """Apply `printable` to each line of a text."""
    return "\n".join(map(printable, text.splitlines()))


def printable(text: str) -> str:
    """Replace control characters. A text from a till, customer or shop could control the terminal."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
