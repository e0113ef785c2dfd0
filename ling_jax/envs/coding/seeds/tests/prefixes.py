import unittest

from ling_jax.envs.coding.seeds.prefixes import Words


class TestWords(unittest.TestCase):
    def setUp(self):
        self.words = Words(["tea", "ten", "tea", "to", "inn", "in"])

    def test_words_are_counted(self):
        self.assertEqual([self.words.count(word) for word in ("tea", "ten", "te", "x", "teams")], [2, 1, 0, 0, 0])

    def test_the_size_counts_each_word_once(self):
        self.assertEqual(self.words.size, 5)

    def test_a_word_can_count_more(self):
        self.words.add("to", 4)
        self.assertEqual(self.words.count("to"), 5)

    def test_nothing_is_no_word(self):
        for pair in (("", 1), ("tea", 0)):
            with self.assertRaises(ValueError):
                self.words.add(*pair)

    def test_words_by_their_beginning(self):
        self.assertEqual(self.words.starting_with("te"), [("tea", 2), ("ten", 1)])
        self.assertEqual(self.words.starting_with("in"), [("in", 1), ("inn", 1)])
        self.assertEqual(self.words.starting_with("x"), [])

    def test_all_words_begin_with_nothing(self):
        self.assertEqual([word for word, _ in self.words.starting_with("")], ["in", "inn", "tea", "ten", "to"])

    def test_frequent_words_are_suggested_first(self):
        self.words.add("ten", 5)
        self.assertEqual(self.words.suggest("t"), ["ten", "tea", "to"])
        self.assertEqual(self.words.suggest("t", 1), ["ten"])

    def test_three_are_suggested_and_equal_ones_by_name(self):
        self.assertEqual(self.words.suggest(""), ["tea", "in", "inn"])

    def test_a_removed_word_is_gone(self):
        self.assertTrue(self.words.remove("tea"))
        self.assertEqual(self.words.count("tea"), 0)
        self.assertEqual(self.words.size, 4)
        self.assertEqual(self.words.count("ten"), 1)

    def test_what_is_no_word_is_not_removed(self):
        self.assertFalse(self.words.remove("te"))
        self.assertFalse(self.words.remove("xyz"))
        self.assertEqual(self.words.size, 5)

    def test_letters_that_nothing_needs_go_too(self):
        self.assertEqual(self.words.nodes(), 8)
        self.words.remove("inn")
        self.assertEqual(self.words.nodes(), 7)
        self.words.remove("in")
        self.assertEqual(self.words.nodes(), 5)

    def test_a_word_inside_another_leaves_the_other(self):
        self.words.remove("in")
        self.assertEqual(self.words.count("inn"), 1)

    def test_the_longest_common_beginning(self):
        self.assertEqual(Words(["interval", "internal", "inter"]).longest_common(), "inter")
        self.assertEqual(Words(["carpet", "carton"]).longest_common(), "car")
        self.assertEqual(self.words.longest_common(), "")
