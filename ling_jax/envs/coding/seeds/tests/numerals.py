import unittest

from ling_jax.envs.coding.seeds.numerals import from_base, from_roman, grouped, in_words, to_base, to_roman


class TestRoman(unittest.TestCase):
    def test_letters_add_up(self):
        self.assertEqual(to_roman(2763), "MMDCCLXIII")

    def test_smaller_letters_in_front_are_taken_off(self):
        self.assertEqual(
            [to_roman(number) for number in (4, 9, 40, 90, 400, 900)], ["IV", "IX", "XL", "XC", "CD", "CM"]
        )

    def test_the_least_and_the_largest(self):
        self.assertEqual(to_roman(1), "I")
        self.assertEqual(to_roman(3999), "MMMCMXCIX")
        for number in (0, 4000):
            with self.assertRaises(ValueError):
                to_roman(number)

    def test_numerals_lead_back(self):
        for number in (1, 14, 49, 444, 1987, 3999):
            self.assertEqual(from_roman(to_roman(number)), number)

    def test_other_forms_are_refused(self):
        for text in ("", "IIII", "IC", "VX", "hello", "IXI"):
            with self.assertRaises(ValueError):
                from_roman(text)


class TestBases(unittest.TestCase):
    def test_digits_of_other_bases(self):
        self.assertEqual(to_base(10, 2), "1010")
        self.assertEqual(to_base(255, 16), "ff")
        self.assertEqual(to_base(35, 36), "z")
        self.assertEqual(to_base(36, 36), "10")

    def test_zero_and_negative_numbers(self):
        self.assertEqual(to_base(0, 2), "0")
        self.assertEqual(to_base(-5, 2), "-101")
        self.assertEqual(from_base("-101", 2), -5)

    def test_bases_are_from_two_to_thirty_six(self):
        for base in (1, 37):
            with self.assertRaises(ValueError):
                to_base(3, base)

    def test_digits_lead_back(self):
        self.assertEqual(from_base("1010", 2), 10)
        self.assertEqual(from_base("FF", 16), 255)

    def test_digits_fit_the_base(self):
        for text in ("12", "1?"):
            with self.assertRaises(ValueError):
                from_base(text, 2)


class TestWords(unittest.TestCase):
    def test_small_numbers(self):
        self.assertEqual([in_words(number) for number in (0, 13, 19)], ["zero", "thirteen", "nineteen"])

    def test_tens(self):
        self.assertEqual([in_words(number) for number in (20, 21, 99)], ["twenty", "twenty-one", "ninety-nine"])

    def test_hundreds(self):
        self.assertEqual(in_words(100), "one hundred")
        self.assertEqual(in_words(342), "three hundred forty-two")

    def test_thousands(self):
        self.assertEqual(in_words(1000), "one thousand")
        self.assertEqual(in_words(21007), "twenty-one thousand seven")


class TestGroups(unittest.TestCase):
    def test_three_digits_a_group(self):
        self.assertEqual([grouped(number) for number in (0, 999, 1000, 1234567)], ["0", "999", "1,000", "1,234,567"])

    def test_a_sign_and_another_mark(self):
        self.assertEqual(grouped(-123456, " "), "-123 456")
