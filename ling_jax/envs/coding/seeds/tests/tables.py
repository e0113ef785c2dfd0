import unittest

from ling_jax.envs.coding.seeds.tables import distinct, group_by, join, order_by, read, summary, top, where

TEXT = """
name, team, points
ana, red, 7
ben, blue, 12
cleo, red, -3
dora, blue, 7
"""


def names(records):
    return [record["name"] for record in records]


class TestRead(unittest.TestCase):
    def test_the_first_line_names_the_fields(self):
        self.assertEqual(read(TEXT)[0], {"name": "ana", "team": "red", "points": 7})
        self.assertEqual(len(read(TEXT)), 4)

    def test_numbers_may_be_negative(self):
        self.assertEqual(read(TEXT)[2]["points"], -3)

    def test_another_separator(self):
        self.assertEqual(read("a;b\n1;x-1", ";"), [{"a": 1, "b": "x-1"}])

    def test_all_lines_are_equally_long(self):
        with self.assertRaisesRegex(ValueError, "line 3 has 1 cells; expected 2"):
            read("a,b\n1,2\n3")

    def test_nothing_has_no_records(self):
        self.assertEqual(read("\n"), [])
        self.assertEqual(read("a,b"), [])


class TestSelection(unittest.TestCase):
    def setUp(self):
        self.rows = read(TEXT)

    def test_all_fields_have_to_fit(self):
        self.assertEqual(names(where(self.rows, team="red")), ["ana", "cleo"])
        self.assertEqual(names(where(self.rows, team="red", points=7)), ["ana"])

    def test_functions_decide(self):
        self.assertEqual(names(where(self.rows, points=lambda value: value > 5)), ["ana", "ben", "dora"])

    def test_order_by_several_fields(self):
        self.assertEqual(names(order_by(self.rows, "points", "name")), ["cleo", "ana", "dora", "ben"])
        self.assertEqual(names(order_by(self.rows, "-points", "name")), ["ben", "ana", "dora", "cleo"])
        self.assertEqual(names(order_by(self.rows, "team", "-points")), ["ben", "dora", "ana", "cleo"])

    def test_ordering_changes_nothing(self):
        order_by(self.rows, "-name")
        self.assertEqual(names(self.rows), ["ana", "ben", "cleo", "dora"])

    def test_the_first_of_each_combination(self):
        self.assertEqual(names(distinct(self.rows, "team")), ["ana", "ben"])
        self.assertEqual(names(distinct(self.rows, "team", "points")), ["ana", "ben", "cleo", "dora"])

    def test_the_top_has_those_that_tie(self):
        self.assertEqual(names(top(self.rows, "points", 1)), ["ben"])
        self.assertEqual(names(top(self.rows, "points", 2)), ["ben", "ana", "dora"])
        self.assertEqual(names(top(self.rows, "points", 9)), ["ben", "ana", "dora", "cleo"])
        self.assertEqual(top(self.rows, "points", 0), [])


class TestGroups(unittest.TestCase):
    def setUp(self):
        self.rows = read(TEXT)

    def test_groups_keep_the_order(self):
        groups = group_by(self.rows, "team")
        self.assertEqual(list(groups), ["red", "blue"])
        self.assertEqual(names(groups["blue"]), ["ben", "dora"])

    def test_a_summary_of_each_group(self):
        self.assertEqual(summary(self.rows, "team", "points"), [("blue", 2, 19, 7, 12), ("red", 2, 4, -3, 7)])

    def test_a_join_pairs_what_fits(self):
        teams = [{"team": "red", "town": "ulm"}, {"team": "red", "town": "graz"}, {"team": "gold", "town": "bern"}]
        found = join(self.rows, teams, "team")
        self.assertEqual([(row["name"], row["town"]) for row in found][:2], [("ana", "ulm"), ("ana", "graz")])
        self.assertEqual(len(found), 4)

    def test_the_left_fields_win_a_join(self):
        found = join([{"id": 1, "x": "left"}], [{"id": 1, "x": "right", "y": 2}], "id")
        self.assertEqual(found, [{"id": 1, "x": "left", "y": 2}])
