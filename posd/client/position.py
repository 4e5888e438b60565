"""The position of a till in a file that survives a crash and a power cut."""

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
    """The file does not contain a position. A guessed one would lose or repeat orders."""


@frozen
class PositionFile:
    """A JSON file with one position. Its folder must exist.

    Both methods block while the disk works: a few milliseconds. That is acceptable in a till, because a
    burst of events is saved once.
    """

    path: Path

    def load(self) -> Position | None:
        """Return the saved position, or None if there is no file.

        Raises PositionUnreadable if the file contains anything else.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            saved = decode(text)
        except InvalidMessage as error:
            raise PositionUnreadable(f"{self.path} does not contain JSON: {error}") from error
        match saved:
            case {"id": int(seq), "streamId": str() | None as stream} if _is_position(seq):
                try:
                    return Position(seq, None if stream is None else UUID(stream))
                except ValueError as error:
                    raise PositionUnreadable(f"{self.path} has an invalid streamId") from error
        raise PositionUnreadable(f"{self.path} does not contain an id and a streamId")

    def save(self, position: Position) -> None:
        """Replace the saved position. After the return, a power cut does not undo it.

        The new content is written and synced under a temporary name, and then renamed. A reader finds
        the old or the new content (rename(2)). Raises OSError.
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
    """Return whether a value is a count. In Python, JSON's `true` is an int too."""
    return not isinstance(seq, bool) and seq >= 0


def _sync_folder(folder: Path) -> None:
    """Sync a folder, to make a rename in it durable (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
