import unittest

from ling_jax.envs.coding.seeds.intervals import IntervalSet


class TestIntervalSet(unittest.TestCase):
    def test_intervals_are_sorted(self):
        self.assertEqual(IntervalSet([(5, 7), (1, 2)]).pairs, [(1, 2), (5, 7)])

    def test_what_overlaps_is_one(self):
        self.assertEqual(IntervalSet([(1, 4), (3, 8)]).pairs, [(1, 8)])
        self.assertEqual(IntervalSet([(1, 9), (3, 4)]).pairs, [(1, 9)])

    def test_what_touches_is_one(self):
        self.assertEqual(IntervalSet([(1, 3), (3, 5)]).pairs, [(1, 5)])
        self.assertEqual(IntervalSet([(3, 5), (1, 3)]).pairs, [(1, 5)])

    def test_one_bridges_several(self):
        self.assertEqual(IntervalSet([(1, 2), (4, 5), (7, 8), (2, 6)]).pairs, [(1, 6), (7, 8)])

    def test_an_empty_interval_adds_nothing(self):
        self.assertEqual(IntervalSet([(3, 3), (5, 4)]).pairs, [])

    def test_remove_cuts_at_both_ends(self):
        spans = IntervalSet([(0, 4), (6, 10)])
        spans.remove(2, 7)
        self.assertEqual(spans.pairs, [(0, 2), (7, 10)])

    def test_remove_makes_a_hole(self):
        spans = IntervalSet([(0, 10)])
        spans.remove(4, 5)
        self.assertEqual(spans.pairs, [(0, 4), (5, 10)])

    def test_remove_of_what_is_not_there_changes_nothing(self):
        spans = IntervalSet([(2, 4), (8, 9)])
        spans.remove(4, 8)
        self.assertEqual(spans.pairs, [(2, 4), (8, 9)])

    def test_remove_of_all_leaves_nothing(self):
        spans = IntervalSet([(2, 4)])
        spans.remove(2, 4)
        self.assertEqual(spans.pairs, [])

    def test_the_start_is_in_and_the_stop_is_not(self):
        spans = IntervalSet([(2, 4)])
        self.assertIn(2, spans)
        self.assertIn(3, spans)
        self.assertNotIn(4, spans)
        self.assertNotIn(1, spans)

    def test_length_adds_up(self):
        self.assertEqual(IntervalSet([(1, 3), (10, 15)]).length(), 7)

    def test_gaps_are_what_is_missing(self):
        spans = IntervalSet([(2, 4), (6, 8)])
        self.assertEqual(spans.gaps(0, 10), [(0, 2), (4, 6), (8, 10)])
        self.assertEqual(spans.gaps(3, 7), [(4, 6)])

    def test_intersection_is_in_both(self):
        found = IntervalSet([(0, 5), (8, 12)]).intersection(IntervalSet([(3, 9), (11, 20)]))
        self.assertEqual(found.pairs, [(3, 5), (8, 9), (11, 12)])

    def test_the_first_place_where_it_fits(self):
        spans = IntervalSet([(2, 4), (6, 9)])
        self.assertEqual(spans.first_free(2), 0)
        self.assertEqual(spans.first_free(3), 9)
        self.assertEqual(spans.first_free(2, start=3), 4)
        self.assertEqual(spans.first_free(1, start=4), 4)
        self.assertEqual(spans.first_free(5, start=20), 20)
