import unittest

from ling_jax.envs.coding.seeds.formulas import FormulaError, evaluate, free_names, parse, tokenize


def value(text, **names):
    return evaluate(parse(text), names)


class TestTokens(unittest.TestCase):
    def test_numbers_names_and_operators(self):
        self.assertEqual(tokenize("12+ab_1 *(3)"), [12, "+", "ab_1", "*", "(", 3, ")"])

    def test_a_name_may_begin_with_a_line(self):
        self.assertEqual(tokenize("_x9"), ["_x9"])

    def test_other_characters_are_refused_by_place(self):
        with self.assertRaisesRegex(FormulaError, "unexpected '%' at 2"):
            tokenize("1 %2")


class TestParse(unittest.TestCase):
    def test_products_bind_closer(self):
        self.assertEqual(parse("1+2*3"), ("+", 1, ("*", 2, 3)))
        self.assertEqual(parse("1*2+3"), ("+", ("*", 1, 2), 3))

    def test_equal_operators_group_from_the_left(self):
        self.assertEqual(parse("9-4-2"), ("-", ("-", 9, 4), 2))

    def test_powers_group_from_the_right(self):
        self.assertEqual(parse("2^3^2"), ("^", 2, ("^", 3, 2)))

    def test_parentheses_come_first(self):
        self.assertEqual(parse("(1+2)*3"), ("*", ("+", 1, 2), 3))

    def test_a_sign_binds_closer_than_a_product(self):
        self.assertEqual(parse("-2*3"), ("*", ("-", 0, 2), 3))

    def test_what_is_no_formula_is_refused(self):
        for text in ("", "1+", "(1", "1)", "1 2", "*3", "()"):
            with self.assertRaises(FormulaError):
                parse(text)


class TestValue(unittest.TestCase):
    def test_sums_and_products(self):
        self.assertEqual(value("2+3*4-5"), 9)

    def test_quotients_round_down(self):
        self.assertEqual(value("17/5"), 3)
        self.assertEqual(value("(2-9)/2"), -4)

    def test_powers(self):
        self.assertEqual(value("2^3^2"), 512)
        self.assertEqual(value("-2^2"), -4)

    def test_names_have_values(self):
        self.assertEqual(value("rate*hours + bonus", rate=12, hours=8, bonus=5), 101)

    def test_a_missing_name_is_an_error(self):
        with self.assertRaises(KeyError):
            value("rate*2")

    def test_free_names_are_sorted_and_single(self):
        self.assertEqual(free_names(parse("rate*hours + rate - 3")), ["hours", "rate"])
        self.assertEqual(free_names(parse("7")), [])
