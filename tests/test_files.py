"""Tests of reading small files: newlines, byte order marks, and paths that are not files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd import files
from posd.broadcaster.calls import APIClient
from posd.cli import listening
from posd.client import Till
from tests.cli_runner import posctl

KEY = "pos_0123456789abcdef"
AROUND = ("{}", "{}\n", "{}\r\n", "\ufeff{}\r\n", " {} \n\n", "\n{}", "\ufeff {}\t")
"""The characters that editors, echo and Windows add to a key."""


class ReadingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def test_a_file_is_read(self) -> None:
        (self.folder / "file").write_bytes(b"abc")
        self.assertEqual(files.read_file(self.folder / "file"), b"abc")
        self.assertEqual(files.read_file(self.folder / "file", max_size=3), b"abc")

    def test_a_pipe_or_device_is_an_error(self) -> None:
        (self.folder / "long").write_bytes(b"abcd")
        os.mkfifo(self.folder / "pipe")
        for path, reason in (
            (self.folder / "long", "File too large"),
            (self.folder / "pipe", "Not a regular file"),
            (Path("/dev/zero"), "Not a regular file"),
            (self.folder, "Is a directory"),
            (self.folder / "none", "No such file"),
            (Path("a\0b"), "Invalid argument"),
        ):
            with self.subTest(path=path), self.assertRaisesRegex(OSError, reason):
                files.read_file(path, max_size=3)


class SecretTests(SynchronousTestCase):
    """Tests of keys from a file, the environment or standard input."""

    def test_characters_around_a_secret_are_removed(self) -> None:
        for around in AROUND:
            with self.subTest(around=around):
                self.assertEqual(files.decode_secret(around.format(KEY).encode()), KEY)

    def test_posctl_removes_them_from_all_sources(self) -> None:
        given: list[str] = []

        class Stop(Exception):
            pass

        def noted(url: str, tenant: str, key: str, *_: Any) -> None:
            given.append(key)
            raise Stop

        self.patch(listening, "Subscription", noted)
        path = Path(self.mktemp())
        command = ("listen", "--url", "wss://x", "--tenant", "kitchen")
        for around in AROUND:
            text = around.format(KEY)
            path.write_text(text, "utf-8", newline="")
            for run in (
                lambda: posctl(*command, "--key-file", path),
                lambda text=text: posctl(*command, "--key-file", "-", stdin=text),
                lambda text=text: posctl(*command, environ={"POSD_KEY": text}),
                lambda text=text: posctl(*command, "--key", text),
            ):
                self.assertRaises(Stop, run)
        self.assertEqual(given, [KEY] * 4 * len(AROUND))

    def test_the_error_for_an_invalid_key_names_the_file(self) -> None:
        path = Path(self.mktemp())
        for content, word in (
            (b"\xff", "must be text"),
            (b"\xff\xfep\0o\0s\0", "must be text"),
            (b"a\nb", "one line"),
            (b"a" * 100_000, "one line"),
            (b"\r\n", "is empty"),
        ):
            path.write_bytes(content)
            ran = posctl(
                *(["listen", "--url", "wss://x", "--tenant", "kitchen", "--key-file"]), path
            )
            self.assertEqual(ran.code, os.EX_DATAERR)
            self.assertRegex(ran.err, rf"\Aposctl: {path}: .*{word}.*\n\Z")

    def test_the_libraries_remove_them(self) -> None:
        for around in AROUND:
            text = around.format(KEY)
            self.assertEqual(APIClient.to("https://pos.example.com", text)._key, KEY)
            till = Till(Clock(), "wss://pos.example.com", "kitchen", text, handle=lambda _: None)
            self.assertEqual(till._key, KEY)
