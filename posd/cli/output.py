"""How `posctl` speaks: tables for people, JSON for programs."""

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

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")

_UNLIMITED = 1000
"""Columns: what goes into a pipe or a file is never cut to the width of a terminal."""


def print_json(value: object) -> None:
    """Print one value as one line of JSON."""
    click.echo(encode(value))


def console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is: names are data, never markup."""
    stream = sys.stderr if stderr else sys.stdout
    size = shutil.get_terminal_size()
    return Console(
        file=stream,
        width=size.columns if stream.isatty() else _UNLIMITED,
        # Without it rich takes a dumb terminal for one of 80 columns.
        height=size.lines,
        markup=False,
        highlight=False,
        emoji=False,
    )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; None is shown as a dash, whole numbers stand to the right.

    `Text` is shown as it is: with its style, and in lines.
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
    """A progress bar on standard error, if a person is looking; without columns it counts."""
    terminal = console(stderr=True)
    counting = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(
        *(columns or counting),
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
    )


def local_time(when: datetime | None) -> str | None:
    """A moment as a person reads it, in the time of this machine."""
    return None if when is None else f"{when.astimezone():%Y-%m-%d %H:%M}"


def timestamp_or_none(when: datetime | None) -> str | None:
    """A moment as programs read it."""
    return None if when is None else timestamp(when)


def warn(text: str) -> None:
    """Write a warning of one or more lines to standard error."""
    click.echo(f"posctl: warning: {printable_lines(text)}", err=True)


def printable_lines(text: str) -> str:
    """The same as `printable` for a text of several lines."""
    return "\n".join(map(printable, text.splitlines()))


def printable(text: str) -> str:
    """The text without what could control a terminal: it may come from a till, a customer or a shop."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
