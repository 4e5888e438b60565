"""Fenced blocks, tables and code words of the documents, for tests that compare them with the code.

The first word after a fence is the language of the block. The other words name its reader, as in ```json
till. Browsers and editors use only the first word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from attrs import frozen
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
_MARKDOWN = MarkdownIt("commonmark").enable("table")


@frozen
class Block:
    """A fenced block: its language, the further words after its fence, and its line."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int
    section: str

    def of(self, language: str, *words: str) -> bool:
        """Return whether this is a block of that language with these words."""
        return self.language == language and set(words) <= set(self.words)


@frozen
class Table:
    """A table of a document. A row has the source text of its cells. The header is not a row."""

    section: str
    rows: Sequence[Sequence[str]]

    def column(self, index: int = 0) -> list[str]:
        """Return a column, without the backticks around a cell."""
        return [row[index].strip("`") for row in self.rows]


@cache
def text(name: str) -> str:
    """Return the source of a document, by its path in the checkout."""
    return (ROOT / name).read_text("utf-8")


@cache
def blocks(name: str) -> Sequence[Block]:
    """Return the fenced blocks of a document, in order."""
    found = []
    for section, token in _sections(name):
        if token.type == "fence":
            language, *words = token.info.split() or [""]
            assert token.map is not None
            found.append(Block(language, tuple(words), token.content, token.map[0] + 1, section))
    return found


@cache
def tables(name: str) -> Sequence[Table]:
    """Return the tables of a document, in order."""
    found: list[Table] = []
    rows: list[list[str]] = []
    in_cell = False
    for section, token in _sections(name):
        match token.type:
            case "table_open" | "tbody_open":
                rows = []
            case "tr_open":
                rows.append([])
            case "td_open" | "td_close":
                in_cell = token.type == "td_open"
            case "inline" if in_cell:
                rows[-1].append(token.content)
            case "tbody_close":
                found.append(Table(section, rows))
    return found


def table(name: str, section: str) -> Table:
    """Return the only table under a heading."""
    (only,) = (each for each in tables(name) if each.section == section)
    return only


def words_in_code(source: str) -> set[str]:
    """Return the texts between backticks in Markdown."""
    return {
        child.content
        for token in _MARKDOWN.parse(source)
        for child in token.children or ()
        if child.type == "code_inline"
    }


def _sections(name: str) -> Iterator[tuple[str, Token]]:
    """Yield each token of a document with its heading."""
    section, heading = "", False
    for token in _MARKDOWN.parse(text(name)):
        if token.type == "heading_open":
            heading = True
        elif heading and token.type == "inline":
            section, heading = token.content, False
        yield section, token
