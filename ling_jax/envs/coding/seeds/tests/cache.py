import unittest

from ling_jax.envs.coding.seeds.cache import Cache


class TestCache(unittest.TestCase):
    def setUp(self):
        self.cache = Cache(capacity=2, lifetime=10)
        self.cache.put("page", 1, now=0)
        self.cache.put("logo", 2, now=3)

    def test_values_are_found(self):
        self.assertEqual(self.cache.get("page", 5), 1)
        self.assertEqual(self.cache.get("font", 5), None)
        self.assertEqual(self.cache.get("font", 5, "none"), "none")

    def test_a_value_lives_so_long_and_no_longer(self):
        self.assertEqual(self.cache.get("page", 9), 1)
        self.assertEqual(self.cache.get("page", 10), None)
        self.assertEqual(self.cache.keys(), ["logo"])

    def test_the_one_used_longest_ago_makes_room(self):
        self.cache.put("font", 3, now=4)
        self.assertEqual(self.cache.keys(), ["logo", "font"])

    def test_what_was_read_is_kept(self):
        self.cache.get("page", 4)
        self.cache.put("font", 3, now=4)
        self.assertEqual(self.cache.keys(), ["page", "font"])

    def test_a_key_that_is_put_again_needs_no_room(self):
        self.cache.put("page", 7, now=4)
        self.assertEqual(self.cache.keys(), ["logo", "page"])
        self.assertEqual(self.cache.get("page", 13), 7)

    def test_the_old_make_room_before_the_others(self):
        self.cache.get("page", 4)
        self.cache.put("font", 3, now=11)
        self.assertEqual(self.cache.keys(), ["logo", "font"])

    def test_purge_counts_what_it_forgets(self):
        self.assertEqual(self.cache.purge(9), 0)
        self.assertEqual(self.cache.purge(10), 1)
        self.assertEqual(self.cache.purge(99), 1)

    def test_refresh_lets_a_value_live_longer(self):
        self.assertTrue(self.cache.refresh("page", 8))
        self.assertEqual(self.cache.get("page", 17), 1)

    def test_refresh_wakes_nobody(self):
        self.assertFalse(self.cache.refresh("page", 10))
        self.assertFalse(self.cache.refresh("font", 1))

    def test_refresh_is_no_use(self):
        self.cache.refresh("page", 4)
        self.assertEqual(self.cache.keys(), ["page", "logo"])

    def test_a_value_is_made_once(self):
        made = []

        def make(key):
            made.append(key)
            return key * 2

        for _ in range(3):
            self.assertEqual(self.cache.get_or_make("ab", make, 5), "abab")
        self.assertEqual(made, ["ab"])

    def test_the_rate_is_the_share_of_hits(self):
        self.assertEqual(self.cache.rate(), 0.0)
        for key in ("page", "page", "logo", "font"):
            self.cache.get(key, 5)
        self.assertEqual(self.cache.rate(), 0.75)

    def test_a_capacity_of_one_is_the_least(self):
        one = Cache(1, 5)
        one.put("page", 1, now=0)
        one.put("logo", 2, now=0)
        self.assertEqual(one.keys(), ["logo"])
        with self.assertRaises(ValueError):
            Cache(0, 5)
