import unittest

from ling_jax.envs.coding.seeds.dates import (
    add_days,
    add_months,
    day_of_year,
    from_number,
    is_leap,
    is_valid,
    month_length,
    to_number,
    weekday,
    workdays,
)


class TestMonths(unittest.TestCase):
    def test_leap_years(self):
        self.assertTrue(is_leap(2024))
        self.assertTrue(is_leap(2000))
        self.assertFalse(is_leap(1900))
        self.assertFalse(is_leap(2023))

    def test_month_lengths(self):
        self.assertEqual([month_length(2023, month) for month in (1, 2, 4, 12)], [31, 28, 30, 31])
        self.assertEqual(month_length(2024, 2), 29)

    def test_months_are_from_one_to_twelve(self):
        for month in (0, 13):
            with self.assertRaises(ValueError):
                month_length(2023, month)

    def test_days_that_are_there(self):
        self.assertTrue(is_valid(2024, 2, 29))
        self.assertTrue(is_valid(2023, 12, 31))
        self.assertTrue(is_valid(2023, 1, 1))
        for day in ((2023, 2, 29), (2023, 4, 31), (2023, 13, 1), (2023, 5, 0), (2023, 0, 5)):
            self.assertFalse(is_valid(*day))


class TestNumbers(unittest.TestCase):
    def test_days_of_a_year(self):
        self.assertEqual(day_of_year(2023, 1, 1), 1)
        self.assertEqual(day_of_year(2023, 3, 1), 60)
        self.assertEqual(day_of_year(2024, 12, 31), 366)

    def test_days_have_numbers(self):
        self.assertEqual(to_number(1, 1, 1), 1)
        self.assertEqual(to_number(2000, 1, 1), 730120)
        self.assertEqual(to_number(2024, 2, 29), 738945)

    def test_there_is_no_number_of_no_day(self):
        with self.assertRaises(ValueError):
            to_number(2023, 2, 29)

    def test_numbers_lead_back(self):
        for day in ((1, 1, 1), (1, 12, 31), (4, 12, 31), (5, 1, 1), (99, 2, 28), (400, 12, 31), (401, 1, 1)):
            self.assertEqual(from_number(to_number(*day)), day)


class TestDays(unittest.TestCase):
    def test_weekdays(self):
        self.assertEqual(weekday(2000, 1, 1), "Sat")
        self.assertEqual(weekday(2024, 2, 29), "Thu")
        self.assertEqual(weekday(1, 1, 1), "Mon")

    def test_days_later_and_earlier(self):
        self.assertEqual(add_days((2023, 12, 30), 3), (2024, 1, 2))
        self.assertEqual(add_days((2024, 3, 1), -1), (2024, 2, 29))

    def test_months_later_and_earlier(self):
        self.assertEqual(add_months((2023, 11, 5), 3), (2024, 2, 5))
        self.assertEqual(add_months((2023, 3, 31), -1), (2023, 2, 28))
        self.assertEqual(add_months((2023, 1, 31), 12), (2024, 1, 31))
        self.assertEqual(add_months((2023, 12, 1), 12), (2024, 12, 1))

    def test_weekends_are_no_workdays(self):
        self.assertEqual(workdays((2024, 2, 26), (2024, 3, 3)), 5)
        self.assertEqual(workdays((2024, 3, 2), (2024, 3, 3)), 0)
        self.assertEqual(workdays((2024, 3, 1), (2024, 3, 1)), 1)
        self.assertEqual(workdays((2024, 3, 1), (2024, 3, 11)), 7)
