import unittest

from ling_jax.envs.coding.seeds.polynomials import (
    add,
    compose,
    degree,
    derivative,
    divide,
    evaluate,
    multiply,
    roots,
    show,
    trimmed,
)


class TestForm(unittest.TestCase):
    def test_zeros_at_the_end_are_cut(self):
        self.assertEqual(trimmed([1, 0, 2, 0, 0]), [1, 0, 2])
        self.assertEqual(trimmed([0, 0]), [])

    def test_degrees(self):
        self.assertEqual([degree(p) for p in ([], [5], [0, 1], [1, 2, 3, 0])], [-1, 0, 1, 2])

    def test_text_begins_with_the_highest_power(self):
        self.assertEqual(show([3, -1, 2]), "2x^2-x+3")
        self.assertEqual(show([-1, 1]), "x-1")
        self.assertEqual(show([0, 0, -4]), "-4x^2")

    def test_text_of_constants(self):
        self.assertEqual(show([]), "0")
        self.assertEqual(show([1]), "1")
        self.assertEqual(show([-7]), "-7")


class TestArithmetic(unittest.TestCase):
    def test_sums_of_other_lengths(self):
        self.assertEqual(add([1, 2], [3, 4, 5]), [4, 6, 5])
        self.assertEqual(add([3, 4, 5], [1, 2]), [4, 6, 5])

    def test_a_sum_can_lose_its_highest_power(self):
        self.assertEqual(add([1, 2], [1, -2]), [2])

    def test_products(self):
        self.assertEqual(multiply([1, 1], [1, -1]), [1, 0, -1])
        self.assertEqual(multiply([2, 3, 1], [0, 5]), [0, 10, 15, 5])
        self.assertEqual(multiply([], [1, 2]), [])
        self.assertEqual(multiply([1, 2], []), [])

    def test_quotients_and_remainders(self):
        self.assertEqual(divide([-1, 0, 1], [1, 1]), ([-1, 1], []))
        self.assertEqual(divide([5, 0, 0, 2], [1, 0, 1]), ([0, 2], [5, -2]))

    def test_a_smaller_degree_is_all_remainder(self):
        self.assertEqual(divide([1, 2], [0, 0, 1]), ([], [1, 2]))

    def test_only_leading_ones_divide(self):
        for q in ([], [1, 2], [0]):
            with self.assertRaises(ValueError):
                divide([1, 2, 3], q)


class TestValues(unittest.TestCase):
    def test_values(self):
        self.assertEqual([evaluate([1, -2, 3], x) for x in (0, 1, 2, -1)], [1, 2, 9, 6])

    def test_slopes(self):
        self.assertEqual(derivative([7, 3, 0, 2]), [3, 0, 6])
        self.assertEqual(derivative([4]), [])

    def test_polynomials_in_polynomials(self):
        self.assertEqual(compose([1, 0, 1], [2, 1]), [5, 4, 1])
        self.assertEqual(compose([7], [1, 1]), [7])

    def test_roots_in_a_range(self):
        self.assertEqual(roots([-6, 1, 1], -5, 5), [-3, 2])
        self.assertEqual(roots([-6, 1, 1], -3, 1), [-3])
        self.assertEqual(roots([-6, 1, 1], -2, 2), [2])
