import unittest

from ling_jax.envs.coding.seeds.wrapping import box, justify, paragraph, shorten, wrap

TEXT = "the fox sees a dog and the dog sees nobody"


class TestWrap(unittest.TestCase):
    def test_lines_hold_whole_words(self):
        self.assertEqual(wrap(TEXT, 12), ["the fox sees", "a dog and", "the dog sees", "nobody"])

    def test_a_line_may_be_exactly_as_wide(self):
        self.assertEqual(wrap("ab cd ef", 5), ["ab cd", "ef"])

    def test_a_long_word_has_its_own_line(self):
        self.assertEqual(wrap("a extraordinary b", 4), ["a", "extraordinary", "b"])

    def test_nothing_has_no_lines(self):
        self.assertEqual(wrap("  ", 3), [])

    def test_a_width_of_one_is_the_least(self):
        self.assertEqual(wrap("a b", 1), ["a", "b"])
        with self.assertRaises(ValueError):
            wrap("a", 0)


class TestJustify(unittest.TestCase):
    def test_blanks_fill_the_line(self):
        self.assertEqual(justify("a b", 5), "a   b")

    def test_the_left_gaps_are_wider(self):
        self.assertEqual(justify("a b c", 6), "a  b c")
        self.assertEqual(justify("a b c d", 9), "a  b  c d")

    def test_one_word_stays(self):
        self.assertEqual(justify("word", 9), "word")

    def test_a_line_that_is_too_long_stays(self):
        self.assertEqual(justify("ab cd", 4), "ab cd")

    def test_a_line_of_the_width_stays(self):
        self.assertEqual(justify("ab cd", 5), "ab cd")


class TestParagraph(unittest.TestCase):
    def test_the_first_line_is_indented_and_the_last_is_ragged(self):
        found = paragraph("one two three four five six", 11)
        self.assertEqual(found, ["  one two", "three  four", "five six"])

    def test_without_an_indent_all_but_the_last_are_justified(self):
        self.assertEqual(paragraph("one two three four", 9, indent=0), ["one   two", "three", "four"])

    def test_a_single_line_is_left_alone(self):
        self.assertEqual(paragraph("one two", 20), ["  one two"])


class TestBox(unittest.TestCase):
    def test_a_frame_stands_around_the_lines(self):
        self.assertEqual(box(["ab", "c"]), ["######", "# ab #", "# c  #", "######"])

    def test_an_empty_frame_has_two_edges(self):
        self.assertEqual(box([], "+"), ["++++", "++++"])


class TestShorten(unittest.TestCase):
    def test_a_short_text_stays(self):
        self.assertEqual(shorten("one  two", 7), "one two")

    def test_whole_words_and_a_mark(self):
        self.assertEqual(shorten("one two three", 10), "one two...")
        self.assertEqual(shorten("one two three", 9), "one...")

    def test_the_mark_alone_where_no_word_fits(self):
        self.assertEqual(shorten("wonderful day", 5, mark="~"), "~")
