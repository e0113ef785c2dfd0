import unittest

from ling_jax.envs.coding.seeds.settings import SettingsError, merge, parse, parse_value, render, strip_comment

TEXT = """
name = demo  # a comment
[server]
port = 8080
hosts = [left, "right one", 3]

[ paths ]
root = "/tmp/#1"
verbose = true
"""


class TestParse(unittest.TestCase):
    def test_sections_hold_keys(self):
        found = parse(TEXT)
        self.assertEqual(found[""], {"name": "demo"})
        self.assertEqual(found["server"], {"port": 8080, "hosts": ["left", "right one", 3]})
        self.assertEqual(found["paths"], {"root": "/tmp/#1", "verbose": True})

    def test_a_section_may_come_again(self):
        self.assertEqual(parse("[a]\nx = 1\n[b]\n[a]\ny = 2"), {"": {}, "a": {"x": 1, "y": 2}, "b": {}})

    def test_a_value_may_hold_the_separator(self):
        self.assertEqual(parse("rule = a=b")[""], {"rule": "a=b"})

    def test_errors_name_the_line(self):
        for text, line in (("x = 1\noops", 2), ("= 3", 1), ("\n\n[a", 3), ("[ ]", 1)):
            with self.assertRaisesRegex(SettingsError, f"line {line}:"):
                parse(text)

    def test_a_key_stands_once(self):
        with self.assertRaisesRegex(SettingsError, "line 3: port stands twice"):
            parse("[server]\nport = 1\nport = 2")

    def test_an_empty_value_is_empty_text(self):
        self.assertEqual(parse("key =")[""], {"key": ""})


class TestValues(unittest.TestCase):
    def test_kinds(self):
        for text, value in (("12", 12), ("-3", -3), ("true", True), ("false", False), ("1.5", "1.5"), ("-", "-")):
            self.assertEqual(parse_value(text), value)

    def test_quotes_make_text(self):
        self.assertEqual(parse_value('"12"'), "12")
        self.assertEqual(parse_value('""'), "")
        self.assertEqual(parse_value('"'), '"')

    def test_lists(self):
        self.assertEqual(parse_value("[]"), [])
        self.assertEqual(parse_value("[1, a,true]"), [1, "a", True])

    def test_comments_end_at_the_line(self):
        self.assertEqual(strip_comment("a # b"), "a ")
        self.assertEqual(strip_comment('"a # b" # c'), '"a # b" ')
        self.assertEqual(strip_comment("none"), "none")


class TestRender(unittest.TestCase):
    def test_what_is_written_reads_back(self):
        whole = {"": {"z": 1}, "b": {"t": "true", "n": "12", "l": [False, "x y"]}, "a": {"c": "a#b", "e": " pad"}}
        self.assertEqual(parse(render(whole)), whole)

    def test_all_is_sorted(self):
        self.assertEqual(render({"b": {"y": 1, "x": "two"}, "": {"k": True}}), "k = true\n[b]\nx = two\ny = 1")

    def test_plain_text_is_not_quoted(self):
        self.assertEqual(render({"": {"a": "plain", "b": "7"}}), 'a = plain\nb = "7"')


class TestMerge(unittest.TestCase):
    def test_the_second_wins_by_key(self):
        base = {"a": {"x": 1, "y": 2}}
        self.assertEqual(merge(base, {"a": {"y": 3}, "b": {"z": 4}}), {"a": {"x": 1, "y": 3}, "b": {"z": 4}})
        self.assertEqual(base, {"a": {"x": 1, "y": 2}})
