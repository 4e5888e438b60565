"""Tests of the types of values: accepted values, and the problems of the others."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from posd.config.types import (
    BooleanValue,
    ChoiceValue,
    DsnValue,
    DurationValue,
    EndpointValue,
    IntegerValue,
    NameValue,
    NetworksValue,
    PathValue,
    SizeValue,
    ValueType,
    read_value,
    suggestion,
)

DURATION = DurationValue("1s", "10m")
SIZE = SizeValue("1KiB", "1MiB")


class UnderstandTests(SynchronousTestCase):
    def test_values_are_converted(self) -> None:
        raw: object
        for kind, raw, meant in (
            (BooleanValue(), True, True),
            (IntegerValue(2), 2, 2),
            (SIZE, "128KiB", 131_072),
            (SIZE, 1_048_576, 1_048_576),
            (DURATION, "1s", 1.0),
            (DURATION, "10m", 600.0),
            (ChoiceValue("1.2", "1.3"), "1.3", "1.3"),
            (DsnValue(), "postgres://posd@/shops", "postgres://posd@/shops"),
            (DsnValue(), " host = /run dbname=posd", " host = /run dbname=posd"),
            (PathValue(), "/etc/posd/tls/a b.pem", "/etc/posd/tls/a b.pem"),
            (NameValue(), "Front.door_2-a", "Front.door_2-a"),
            (EndpointValue(), r"tcp:9010:interface=\:\:", r"tcp:9010:interface=\:\:"),
            (NetworksValue(), [], ()),
            (
                NetworksValue(),
                ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"],
                tuple(map(ip_network, ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"))),
            ),
        ):
            with self.subTest(kind=kind, raw=raw):
                self.assertEqual(read_value(kind, raw, {}), meant)

    def expect(self, kind: ValueType, raw: object, sentence: str) -> None:
        with self.subTest(kind=kind, raw=raw):
            error = self.assertRaises(ValueError, read_value, kind, raw, {})
            self.assertEqual(str(error), sentence)

    def test_flags(self) -> None:
        meant = "write true or false, without quotes"
        self.expect(BooleanValue(), "yes", f'"yes" is a string; {meant}')
        self.expect(BooleanValue(), 1, f"1 is an integer; {meant}")

    def test_whole_numbers(self) -> None:
        meant = "write a whole number, without quotes"
        self.expect(IntegerValue(), 0, "0 is too small; the smallest is 1")
        self.expect(IntegerValue(2), 1, "1 is too small; the smallest is 2")
        self.expect(IntegerValue(), "8", f'"8" is a string; {meant}')
        self.expect(IntegerValue(), 8.0, f"8.0 is a float; {meant}")
        self.expect(IntegerValue(), True, f"true is a boolean; {meant}")
        self.expect(IntegerValue(), [1], f"[1] is an array; {meant}")

    def test_sizes(self) -> None:
        meant = 'write a size such as "256KiB", with quotes'
        units = 'write a whole number and B, KiB, MiB or GiB, such as "256KiB"'
        self.expect(SIZE, "128KB", f'"128KB" is not a size; {units}')
        self.expect(SIZE, "131072", f'"131072" is not a size; {units}')
        self.expect(SIZE, "", f'"" is empty; {meant}')
        self.expect(SIZE, True, f"true is a boolean, not a string; {meant}")
        self.expect(SIZE, 1023, '1023 is too small; the smallest is "1KiB"')
        self.expect(SIZE, "1025KiB", '"1025KiB" is too large; the largest is "1MiB"')

    def test_durations(self) -> None:
        meant = 'write a duration such as "30s", with quotes'
        units = 'write a whole number and ms, s, m, h or d, such as "30s", "90m" or "30d"'
        self.expect(DURATION, 30, f"30 has no unit; {meant}")
        self.expect(DURATION, 0.5, f"0.5 has no unit; {meant}")
        self.expect(DURATION, False, f"false is a boolean, not a string; {meant}")
        self.expect(DURATION, "30", f'"30" is not a duration; {units}')
        self.expect(DURATION, "999ms", '"999ms" is too short; the shortest is "1s"')
        self.expect(DURATION, "601s", '"601s" is too long; the longest is "10m"')

    def test_choices(self) -> None:
        version = ChoiceValue("1.2", "1.3")
        self.expect(version, 1.2, '1.2 is a float, not a string; write "1.2" or "1.3"')
        self.expect(version, "1.1", '"1.1" is unknown; write "1.2" or "1.3"')
        self.expect(ChoiceValue("a", "b", "c"), "A", '"A" is unknown; write "a", "b" or "c"')

    def test_files(self) -> None:
        meant = "write the absolute path of a file"
        self.expect(PathValue(), "a.pem", f'"a.pem" is a relative path; {meant}')
        self.expect(PathValue(), "  ", f'"  " is empty; {meant}')
        self.expect(
            PathValue(), "/a\0", f'"/a\\u0000" has characters that cannot be printed; {meant}'
        )

    def test_names(self) -> None:
        meant = 'write letters, digits, ".", "_" and "-", up to 64 and beginning with a letter'
        for name in ("a b", "1a", "a:b", "é"):
            self.expect(NameValue(), name, f'"{name}" cannot be a name; {meant}')
        self.assertRaises(ValueError, read_value, NameValue(), "a" * 65, {})
        self.expect(NameValue(), 7, f"7 is an integer, not a string; {meant}")

    def test_endpoints(self) -> None:
        meant = 'write an endpoint such as "tcp:port=9010" or "unix:/run/posd/local.sock:mode=660"'
        self.expect(EndpointValue(), 9010, f"9010 is an integer, not a string; {meant}")
        self.expect(
            EndpointValue(),
            "tcp:9010:interface=::",
            '"tcp:9010:interface=::" is not an endpoint; '
            "an argument is empty; a colon in a value needs a backslash, in TOML two",
        )

    def test_networks(self) -> None:
        meant = 'write networks, such as ["10.0.0.0/8", "2001:db8::/32"]'
        self.expect(NetworksValue(), "10.0.0.0/8", f'"10.0.0.0/8" is a string; {meant}')
        self.expect(NetworksValue(), [10], f"[10] has an integer in it; {meant}")
        self.expect(NetworksValue(), ["a.b"], f'["a.b"] has "a.b", which is not a network; {meant}')
        self.expect(
            NetworksValue(), ["::/0"], f'["::/0"] has "::/0", which is every address; {meant}'
        )
        self.expect(
            NetworksValue(),
            ["10.0.0.7/8"],
            '["10.0.0.7/8"] has "10.0.0.7/8", which has host bits set; did you mean "10.0.0.0/8"?',
        )

    def test_a_long_value_is_cut(self) -> None:
        error = self.assertRaises(ValueError, read_value, BooleanValue(), "x" * 500, {})
        self.assertEqual(str(error).partition(" is ")[0], '"' + "x" * 59 + "…")

    def test_a_problem_never_shows_a_connection_string(self) -> None:
        meant = 'write a PostgreSQL URI or keywords, such as "postgresql:///posd" or "dbname=posd"'
        for raw, what in (
            ("mysql://posd:hunter2@/posd", "is not a connection string"),
            ("hunter2", "is not a connection string"),
            ("password=hunter2\0", "has characters that cannot be printed"),
            (["hunter2"], "is an array, not a string"),
            ("", "is empty"),
        ):
            self.expect(DsnValue(), raw, f"the value (not shown) {what}; {meant}")


class CredentialsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.environ = {"CREDENTIALS_DIRECTORY": str(self.folder)}

    def test_a_credential_stands_for_any_text_without_the_newline_at_its_end(self) -> None:
        (self.folder / "dsn").write_text("dbname=posd password=hunter2\n")
        (self.folder / "pause").write_text("\ufeff5s\r\n", "utf-8", newline="")
        (self.folder / "proxy").write_text("192.0.2.1\r\n")
        for kind, raw, meant in (
            (DsnValue(), {"credential": "dsn"}, "dbname=posd password=hunter2"),
            (DURATION, {"credential": "pause"}, 5.0),
            (NetworksValue(), [{"credential": "proxy"}], (ip_network("192.0.2.1"),)),
        ):
            with self.subTest(kind=kind):
                self.assertEqual(read_value(kind, raw, self.environ), meant)

    def test_an_unreadable_credential_is_a_problem(self) -> None:
        (self.folder / "binary").write_bytes(b"\xff\xfe")
        (self.folder / "folder").mkdir()
        asks, unread = "this asks for the credential", "its file cannot be read"
        only = 'this is a table; only { credential = "name" } can take the place of a value'
        impossible = "this names a credential that cannot exist; write the name of a file"
        raw: object
        for raw, sentence in (
            ({"credential": "none"}, f'{asks} "none"; {unread}: No such file or directory'),
            ({"credential": "folder"}, f'{asks} "folder"; {unread}: Is a directory'),
            ({"credential": "binary"}, f'{asks} "binary"; its file is not text in UTF-8'),
            ({"credential": "../dsn"}, impossible),
            ({"credential": ".."}, impossible),
            ({"credential": ""}, impossible),
            ({"credential": "a\0b"}, impossible),
            ({"credential": 5}, only),
            ({"credentials": "dsn"}, only),
            ({"credential": "dsn", "password": "hunter2"}, only),
            ({}, only),
        ):
            for kind in (DsnValue(), PathValue()):
                with self.subTest(raw=raw, kind=kind):
                    error = self.assertRaises(ValueError, read_value, kind, raw, self.environ)
                    self.assertEqual(str(error), sentence)

    def test_without_the_directory_the_problem_names_the_setting_of_the_unit(self) -> None:
        error = self.assertRaises(ValueError, read_value, DsnValue(), {"credential": "dsn"}, {})
        what = 'this asks for the credential "dsn"; $CREDENTIALS_DIRECTORY is not set'
        self.assertEqual(str(error), f"{what}: the unit needs LoadCredential=dsn:PATH")

    def test_the_contents_of_a_credential_are_never_shown(self) -> None:
        (self.folder / "it").write_text("hunter 2")
        it = {"credential": "it"}
        for kind, raw in (
            *(
                (kind, it)
                for kind in (
                    DsnValue(),
                    DURATION,
                    SIZE,
                    IntegerValue(),
                    BooleanValue(),
                    PathValue(),
                )
            ),
            *((kind, it) for kind in (NameValue(), ChoiceValue("a", "b"), EndpointValue())),
            (NetworksValue(), ["192.0.2.1", it]),
        ):
            with self.subTest(kind=kind):
                error = self.assertRaises(ValueError, read_value, kind, raw, self.environ)
                what = "the contents of the credential cannot be used"
                self.assertEqual(str(error), f"{what}; {kind.meant}")


class SuggestionTests(SynchronousTestCase):
    def test_the_nearest_word_is_asked_for_if_one_is_near(self) -> None:
        words = ("heartbeat", "retention")
        self.assertEqual(suggestion("HEARTBEET", words), 'did you mean "heartbeat"?')
        self.assertIsNone(suggestion("colour", words))
