import unittest

from ling_jax.envs.coding.seeds.matrices import (
    add,
    determinant,
    identity,
    is_symmetric,
    minor,
    multiply,
    power,
    rotate,
    scale,
    shape,
    trace,
    transpose,
)


class TestShape(unittest.TestCase):
    def test_rows_and_columns(self):
        self.assertEqual(shape([[1, 2, 3], [4, 5, 6]]), (2, 3))
        self.assertEqual(shape([]), (0, 0))

    def test_rows_are_equally_long(self):
        with self.assertRaises(ValueError):
            shape([[1, 2], [3]])


class TestSums(unittest.TestCase):
    def test_sums_are_by_element(self):
        self.assertEqual(add([[1, 2], [3, 4]], [[10, 20], [30, 40]]), [[11, 22], [33, 44]])

    def test_other_shapes_are_not_added(self):
        with self.assertRaises(ValueError):
            add([[1, 2]], [[1], [2]])

    def test_a_factor_reaches_all(self):
        self.assertEqual(scale([[1, -2], [0, 3]], 3), [[3, -6], [0, 9]])


class TestProducts(unittest.TestCase):
    def test_a_product_of_other_shapes(self):
        self.assertEqual(multiply([[1, 2, 3]], [[4], [5], [6]]), [[32]])
        self.assertEqual(multiply([[1], [2]], [[3, 4]]), [[3, 4], [6, 8]])

    def test_shapes_have_to_fit(self):
        with self.assertRaises(ValueError):
            multiply([[1, 2]], [[1, 2]])

    def test_the_identity_changes_nothing(self):
        self.assertEqual(identity(2), [[1, 0], [0, 1]])
        self.assertEqual(multiply([[5, 6], [7, 8]], identity(2)), [[5, 6], [7, 8]])

    def test_powers(self):
        self.assertEqual(power([[1, 1], [1, 0]], 10), [[89, 55], [55, 34]])
        self.assertEqual(power([[2, 1], [0, 3]], 1), [[2, 1], [0, 3]])

    def test_the_power_of_nothing_is_the_identity(self):
        self.assertEqual(power([[4, 2], [1, 3]], 0), [[1, 0], [0, 1]])

    def test_a_negative_power_is_refused(self):
        with self.assertRaises(ValueError):
            power([[1]], -1)


class TestSquare(unittest.TestCase):
    def test_a_minor_lacks_a_row_and_a_column(self):
        self.assertEqual(minor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], 1, 0), [[2, 3], [8, 9]])

    def test_determinants(self):
        self.assertEqual(determinant([[3, 7], [2, 5]]), 1)
        self.assertEqual(determinant([[2, 0, 1], [1, 3, 2], [1, 1, 4]]), 18)
        self.assertEqual(determinant([]), 1)

    def test_only_squares_have_one(self):
        with self.assertRaises(ValueError):
            determinant([[1, 2]])

    def test_a_trace_is_the_sum_of_the_diagonal(self):
        self.assertEqual(trace([[1, 2], [3, 4]]), 5)
        self.assertEqual(trace([[1, 2, 3], [4, 5, 6]]), 6)

    def test_symmetry(self):
        self.assertTrue(is_symmetric([[1, 2], [2, 5]]))
        self.assertFalse(is_symmetric([[1, 2], [3, 5]]))


class TestTurns(unittest.TestCase):
    def test_rows_become_columns(self):
        self.assertEqual(transpose([[1, 2, 3], [4, 5, 6]]), [[1, 4], [2, 5], [3, 6]])

    def test_a_turn_is_to_the_right(self):
        self.assertEqual(rotate([[1, 2], [3, 4]]), [[3, 1], [4, 2]])

    def test_turns_add_up(self):
        self.assertEqual(rotate([[1, 2], [3, 4]], 2), [[4, 3], [2, 1]])
        self.assertEqual(rotate([[1, 2], [3, 4]], 5), [[3, 1], [4, 2]])
        self.assertEqual(rotate([[1, 2], [3, 4]], 4), [[1, 2], [3, 4]])
