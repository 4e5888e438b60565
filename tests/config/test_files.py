"""Tests of the files of the configuration: search, parsing, merging."""

from __future__ import annotations

import tomllib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from posd.config.files import ConfigTable, ConfigTables, Problems, find_files, parse


class FindTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.main = folder / "posd.toml"
        self.additions = folder / "conf.d"
        self.report = Problems()

    def test_additions_follow_the_main_file_in_the_order_of_their_names(self) -> None:
        self.additions.mkdir()
        for name in ("b.toml", "10.toml", "a.toml", "9.toml"):
            (self.additions / name).touch()
        names = [file.name for file in find_files(self.main, self.report)]
        self.assertEqual(names, ["posd.toml", "10.toml", "9.toml", "a.toml", "b.toml"])
        self.assertFalse(self.report)

    def test_only_toml_files_that_are_not_hidden_count(self) -> None:
        self.additions.mkdir()
        for name in (".a.toml", "a.toml.orig", "a.toml~", "README"):
            (self.additions / name).touch()
        self.assertEqual(find_files(self.main, self.report), [self.main])

    def test_no_folder_of_additions_is_needed(self) -> None:
        self.assertEqual(find_files(self.main, self.report), [self.main])
        self.assertFalse(self.report)

    def test_a_conf_d_that_is_not_a_folder_is_a_problem(self) -> None:
        self.additions.touch()
        self.assertEqual(find_files(self.main, self.report), [self.main])
        reason = "cannot be read: Not a directory; it must be a readable folder"
        self.assertEqual(self.report.lines([self.main]), (f"{self.additions}: {reason}",))


class ParseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.file = Path(self.mktemp())
        self.report = Problems()

    def problem(self) -> str:
        """Parse the file, check that the result is empty, and return its one problem."""
        report = Problems()
        self.assertEqual(parse(self.file, report), {})
        [line] = report.lines([self.file])
        return line.removeprefix(f"{self.file}: ")

    def test_a_byte_order_mark_does_no_harm(self) -> None:
        self.file.write_text("\ufeff[tls]\r\na = 'é'\r\n", encoding="utf-8")
        self.assertEqual(parse(self.file, self.report), {"tls": {"a": "é"}})
        self.assertFalse(self.report)

    def test_a_file_that_cannot_be_read_is_named(self) -> None:
        meant = "give the path of a TOML file"
        self.assertEqual(self.problem(), f"cannot be read: No such file or directory; {meant}")
        self.file.mkdir()
        self.assertEqual(self.problem(), f"cannot be read: Is a directory; {meant}")

    def test_errors_of_syntax_have_a_line_and_a_column(self) -> None:
        for text, place in (
            ("[database]\ndsn = postgresql:///posd\n", "line 2, column 7"),
            ("[database]\ndsn", "line 2, column 4"),
            ('[database]\ndsn = "dbname=posd', "line 2, column 19"),
            ("[database\n", "line 1, column 10"),
            ("[tls]\n[tls]\n", "line 2, column 5"),
        ):
            with self.subTest(text=text):
                self.file.write_text(text)
                line = self.problem()
                self.assertTrue(line.startswith(f"{place}: is not TOML: "), line)
                self.assertTrue(line.endswith('; write [table], key = "text", key = 5'), line)

    def test_numbers_and_nesting_beyond_reason_are_errors_of_syntax(self) -> None:
        for text in ("a = " + "9" * 5000, "a = " + "[" * 5000):
            with self.subTest(text=text[:9]):
                self.file.write_text(text)
                self.assertTrue(self.problem().startswith("unknown line: is not TOML: "))

    def test_text_in_another_encoding_has_a_line_and_a_column(self) -> None:
        self.file.write_bytes("[database]\n# caf\xe9\n".encode("latin-1"))
        reason = "is not UTF-8; save the file in that encoding"
        self.assertEqual(self.problem(), f"line 2, column 6: {reason}")


class ReportTests(SynchronousTestCase):
    def test_problems_are_told_file_by_file_each_in_the_order_found(self) -> None:
        first, second, other = Path("/z.toml"), Path("/a.toml"), Path("/conf.d")
        report = Problems()
        report.add_file(other, "cannot be read")
        report.add(second, "limits.connections", "is wrong")
        report.add(first, "tls", "is wrong")
        report.add(first, "database", "is wrong")
        self.assertEqual(
            report.lines([first, second]),
            (
                "/z.toml: tls: is wrong",
                "/z.toml: database: is wrong",
                "/a.toml: limits.connections: is wrong",
                "/conf.d: cannot be read",
            ),
        )
        self.assertEqual(report.keys, {"limits.connections", "tls", "database"})


class TablesTests(SynchronousTestCase):
    """A configuration with the sections colours and sizes, and listeners."""

    MAIN, ADDED = Path("/posd.toml"), Path("/conf.d/a.toml")

    def setUp(self) -> None:
        self.report = Problems()
        keys = {"colours": ("paper", "ink"), "sizes": ("width", "height")}
        sections = {name: ConfigTable(name, self.MAIN, keys[name]) for name in keys}
        self.tables = ConfigTables(self.report, sections, ("name", "endpoint", "width"))

    def add(self, file: Path, text: str) -> None:
        self.tables.add(file, tomllib.loads(text))

    def expect(self, text: str, *problems: str) -> None:
        with self.subTest(text=text):
            self.setUp()
            self.add(self.MAIN, text)
            lines = self.report.lines([self.MAIN])
            self.assertEqual(lines, tuple(f"/posd.toml: {problem}" for problem in problems))

    def test_the_last_file_has_the_last_word_about_each_key_and_is_remembered(self) -> None:
        self.add(self.MAIN, '[colours]\npaper = "white"\nink = "black"\n')
        self.add(self.ADDED, '[colours]\nink = "blue"\n')
        self.assertEqual(
            self.tables.sections["colours"].values,
            {"paper": (self.MAIN, "white"), "ink": (self.ADDED, "blue")},
        )
        self.assertEqual(
            self.tables.origins(),
            {
                "colours": self.MAIN,
                "colours.paper": self.MAIN,
                "colours.ink": self.ADDED,
                "sizes": self.MAIN,
            },
        )
        self.assertFalse(self.report)

    def test_a_table_in_place_of_a_value_is_replaced_as_a_whole(self) -> None:
        self.add(self.MAIN, '[colours]\nink = { credential = "a", b = 1 }\n')
        self.add(self.ADDED, '[colours]\nink = { credential = "c" }\n')
        values = self.tables.sections["colours"].values
        self.assertEqual(values, {"ink": (self.ADDED, {"credential": "c"})})

    def test_a_listener_of_a_known_name_is_changed_and_any_other_is_added(self) -> None:
        self.add(self.MAIN, '[[listen]]\nname = "a"\nendpoint = "tcp:1"\n')
        self.add(self.ADDED, '[[listen]]\nname = "b"\n[[listen]]\nname = "a"\nendpoint = "tcp:2"\n')
        self.assertEqual(
            [table.values for table in self.tables.listeners.values()],
            [
                {"name": (self.ADDED, "a"), "endpoint": (self.ADDED, "tcp:2")},
                {"name": (self.ADDED, "b")},
            ],
        )
        self.assertEqual(self.tables.origins()["listen[a]"], self.MAIN)
        self.assertEqual(self.tables.origins()["listen[b]"], self.ADDED)

    def test_listeners_without_a_usable_name_are_told_apart_by_file_and_number(self) -> None:
        self.add(self.MAIN, '[[listen]]\nname = "a b"\n[[listen]]\nwidth = 5\n')
        self.add(self.ADDED, "[[listen]]\n")
        labels = [table.label for table in self.tables.listeners.values()]
        self.assertEqual(labels, ["listen[1]", "listen[2]", "listen[1]"])

    def test_two_listeners_of_one_file_need_two_names(self) -> None:
        entry = '[[listen]]\nname = "a"\n'
        reason = "occurs twice in this file; give each listener a name of its own"
        self.expect(entry + entry, f"listen[a]: {reason}")

    def test_unknown_tables_and_keys_name_the_right_one(self) -> None:
        self.expect("[color]\n", 'color: is unknown; did you mean "colours"?')
        self.expect("[[listener]]\n", 'listener: is unknown; did you mean "listen"?')
        self.expect("[shop]\n", "shop: is unknown; tables are colours, sizes, listen")
        self.expect('ink = "red"\n', "ink: is unknown; it belongs in [colours]")
        self.expect("width = 1\n", "width: is unknown; it belongs in [sizes] or [[listen]]")
        self.expect("[sizes]\nheigth = 1\n", 'sizes.heigth: is unknown; did you mean "height"?')
        self.expect("[sizes]\nink = 1\n", "sizes.ink: is unknown; it belongs in [colours]")
        self.expect("[sizes]\nx = 1\n", "sizes.x: is unknown; keys here are width, height")
        self.expect(
            '[[listen]]\nname = "a"\nnam = 1\n',
            'listen[a].nam: is unknown; did you mean "name"?',
        )

    def test_the_value_of_an_unknown_key_is_not_shown(self) -> None:
        self.add(self.MAIN, 'key = "hunter2"\n[sizes]\nkey = "hunter2"\n[key2]\na = "hunter2"\n')
        lines = self.report.lines([self.MAIN])
        self.assertEqual(len(lines), 3)
        self.assertNotIn("hunter2", "".join(lines))

    def test_strange_keys_are_quoted_on_one_line(self) -> None:
        self.expect(
            '[sizes]\n"a\\nb" = 1\n', 'sizes."a\\nb": is unknown; keys here are width, height'
        )

    def test_tables_must_be_tables(self) -> None:
        meant = "not a table; write [sizes] once and its keys below it"
        self.expect("sizes = 5\n", f"sizes: is an integer, {meant}")
        self.expect("[[sizes]]\nwidth = 5\n", f"sizes: is an array, {meant}")
        meant = "not an array of tables; write [[listen]] above each listener's keys"
        self.expect('[listen]\nname = "a"\n', f"listen: is a table, {meant}")
        self.expect('listen = "tcp:9010"\n', f"listen: is a string, {meant}")
        self.expect('listen = ["tcp:9010"]\n', f"listen: is an array, {meant}")
