import unittest

from ling_jax.envs.coding.seeds.inventory import Inventory, OutOfStock


class TestInventory(unittest.TestCase):
    def setUp(self):
        self.stock = Inventory(reorder_level=4)
        self.stock.receive("bolt", 10, price=2)
        self.stock.receive("lamp", 3, price=15)

    def test_received_goods_are_free(self):
        self.assertEqual(self.stock.free("bolt"), 10)
        self.assertEqual(self.stock.free("wire"), 0)

    def test_received_goods_add_up(self):
        self.stock.receive("bolt", 5)
        self.assertEqual(self.stock.free("bolt"), 15)

    def test_nothing_cannot_be_received(self):
        for count in (0, -1):
            with self.assertRaises(ValueError):
                self.stock.receive("bolt", count)

    def test_one_can_be_received(self):
        self.stock.receive("wire", 1)
        self.assertEqual(self.stock.counts["wire"], 1)

    def test_reserved_goods_are_not_free(self):
        self.stock.reserve("bolt", 4)
        self.stock.reserve("bolt", 3)
        self.assertEqual(self.stock.free("bolt"), 3)
        self.assertEqual(self.stock.counts["bolt"], 10)

    def test_all_free_goods_can_be_reserved_and_no_more(self):
        self.stock.reserve("lamp", 3)
        with self.assertRaises(OutOfStock):
            self.stock.reserve("lamp", 1)

    def test_release_gives_back_what_was_reserved(self):
        self.stock.reserve("bolt", 6)
        self.assertEqual(self.stock.release("bolt", 2), 2)
        self.assertEqual(self.stock.free("bolt"), 6)
        self.assertEqual(self.stock.release("bolt", 9), 4)
        self.assertEqual(self.stock.reserved, {})

    def test_release_of_what_is_not_reserved_is_nothing(self):
        self.assertEqual(self.stock.release("wire", 2), 0)

    def test_shipped_goods_are_gone(self):
        self.stock.reserve("bolt", 6)
        self.stock.ship("bolt", 4)
        self.assertEqual(self.stock.counts["bolt"], 6)
        self.assertEqual(self.stock.reserved["bolt"], 2)
        self.assertEqual(self.stock.free("bolt"), 4)

    def test_only_reserved_goods_are_shipped(self):
        self.stock.reserve("bolt", 2)
        with self.assertRaises(OutOfStock):
            self.stock.ship("bolt", 3)

    def test_an_article_that_is_sold_out_is_forgotten(self):
        self.stock.reserve("lamp", 3)
        self.stock.ship("lamp", 3)
        self.assertNotIn("lamp", self.stock.counts)

    def test_what_runs_low_is_to_be_ordered(self):
        self.assertEqual(self.stock.to_order(), ["lamp"])
        self.stock.reserve("bolt", 6)
        self.assertEqual(self.stock.to_order(), ["lamp"])
        self.stock.reserve("bolt", 1)
        self.assertEqual(self.stock.to_order(), ["bolt", "lamp"])

    def test_the_default_level_is_five(self):
        plain = Inventory()
        plain.receive("bolt", 4)
        plain.receive("lamp", 5)
        self.assertEqual(plain.to_order(), ["bolt"])

    def test_value_is_count_times_price(self):
        self.stock.receive("wire", 7)
        self.assertEqual(self.stock.value(), 65)

    def test_a_new_price_replaces_the_old_one(self):
        self.stock.receive("bolt", 1, price=3)
        self.assertEqual(self.stock.value(), 78)
