"""A till's place in the stream, kept in a file that survives a crash and a power cut."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from uuid import UUID

from attrs import frozen

from posd.errors import InvalidMessage, PosdError
from posd.protocol.jsontext import decode, encode
from posd.values import Position


class PositionUnreadable(PosdError):
    """The file exists and is not a position: guessing one would lose or repeat orders."""


@frozen
class PositionFile:
    """One position in one small JSON file; its folder must exist.

    Both methods block for as long as the disk takes. At a till's pace, and with the saves of a
    burst gathered into one, that is a few milliseconds now and then.
    """

    path: Path

    def load(self) -> Position | None:
        """The position saved last, or None if there is no file yet.

        Raises PositionUnreadable if the file holds anything else.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            saved = decode(text)
        except InvalidMessage as error:
            raise PositionUnreadable(f"{self.path} is not JSON: {error}") from error
        match saved:
            case {"id": int(seq), "streamId": str() | None as stream} if _is_position(seq):
                try:
                    return Position(seq, None if stream is None else UUID(stream))
                except ValueError as error:
                    raise PositionUnreadable(f"{self.path} has a malformed streamId") from error
        raise PositionUnreadable(f"{self.path} does not hold an id and a streamId")

    def save(self, position: Position) -> None:
        """Replace the saved position, durably: when this returns, a power cut does not undo it.

        The new content is complete on the disk under another name before it takes the place of the
        old one, so a reader finds the one or the other (rename(2)). Raises OSError.
        """
        stream = None if position.stream_id is None else str(position.stream_id)
        text = encode({"id": position.seq, "streamId": stream})
        folder = self.path.parent
        descriptor, temporary = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(folder)


def _is_position(seq: int) -> bool:
    """Whether JSON gave a count and not `true`, which Python takes for an integer too."""
    return not isinstance(seq, bool) and seq >= 0


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable: the folder is what changed by it (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
