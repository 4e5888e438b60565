"""What the documents show: fenced blocks, tables and words in code, for tests that hold it against
the code.

The first word behind a fence is the block's language, the others say whose it is, as in
```json till. Browsers and editors look at the first word only.
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
    """A fenced block: its language, the further words behind its fence, and its line."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int
    section: str

    def of(self, language: str, *words: str) -> bool:
        """Whether this is a block of that language and those are among its words."""
        return self.language == language and set(words) <= set(self.words)


@frozen
class Table:
    """A table of a document: a row is the source text of its cells. The header is not in it."""

    section: str
    rows: Sequence[Sequence[str]]

    def column(self, index: int = 0) -> list[str]:
        """One column, without the marks of code around a cell."""
        return [row[index].strip("`") for row in self.rows]


@cache
def text(name: str) -> str:
    """A document's source, by its path in the checkout."""
    return (ROOT / name).read_text("utf-8")


@cache
def blocks(name: str) -> Sequence[Block]:
    """The fenced blocks of a document, in their order."""
    found = []
    for section, token in _sections(name):
        if token.type == "fence":
            language, *words = token.info.split() or [""]
            assert token.map is not None
            found.append(Block(language, tuple(words), token.content, token.map[0] + 1, section))
    return found


@cache
def tables(name: str) -> Sequence[Table]:
    """The tables of a document, in their order."""
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
    """The only table under a heading."""
    (only,) = (each for each in tables(name) if each.section == section)
    return only


def words_in_code(source: str) -> set[str]:
    """What stands between backticks in a piece of Markdown."""
    return {
        child.content
        for token in _MARKDOWN.parse(source)
        for child in token.children or ()
        if child.type == "code_inline"
    }


def _sections(name: str) -> Iterator[tuple[str, Token]]:
    """Each token of a document with the heading that it stands under."""
    section, heading = "", False
    for token in _MARKDOWN.parse(text(name)):
        if token.type == "heading_open":
            heading = True
        elif heading and token.type == "inline":
            section, heading = token.content, False
        yield section, token
