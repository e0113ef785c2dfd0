import unittest

from ling_jax.envs.coding.seeds.routes import Map


class TestMap(unittest.TestCase):
    def setUp(self):
        self.map = Map()
        self.map.add("farm", "mill", 4)
        self.map.add("mill", "port", 3)
        self.map.add("farm", "port", 9)
        self.map.add("port", "rock", 2, one_way=True)
        self.map.add("isle", "reef", 5)

    def test_the_shortest_way_counts(self):
        self.assertEqual(self.map.distances("farm"), {"farm": 0, "mill": 4, "port": 7, "rock": 9})

    def test_a_one_way_road_leads_one_way(self):
        self.assertEqual(self.map.distances("rock"), {"rock": 0})

    def test_the_shorter_of_two_roads_counts(self):
        self.map.add("farm", "mill", 6)
        self.assertEqual(self.map.distances("farm")["mill"], 4)
        self.map.add("farm", "mill", 2)
        self.assertEqual(self.map.distances("mill")["farm"], 2)

    def test_a_length_is_positive(self):
        for length in (0, -1):
            with self.assertRaises(ValueError):
                self.map.add("a", "b", length)

    def test_a_road_of_length_one_is_the_default(self):
        self.map.add("reef", "wreck")
        self.assertEqual(self.map.distances("isle")["wreck"], 6)

    def test_the_places_of_a_way(self):
        self.assertEqual(self.map.path("farm", "rock"), ["farm", "mill", "port", "rock"])
        self.assertEqual(self.map.path("mill", "mill"), ["mill"])

    def test_there_may_be_no_way(self):
        self.assertIsNone(self.map.path("farm", "isle"))
        self.assertIsNone(self.map.path("rock", "port"))

    def test_of_equal_ways_the_first_by_name(self):
        equal = Map()
        equal.add("a", "c", 2)
        equal.add("a", "b", 2)
        equal.add("c", "d", 1)
        equal.add("b", "d", 1)
        self.assertEqual(equal.path("a", "d"), ["a", "b", "d"])

    def test_hops_count_roads(self):
        self.assertEqual(self.map.hops("farm", "rock"), 2)
        self.assertEqual(self.map.hops("farm", "farm"), 0)
        self.assertEqual(self.map.hops("rock", "farm"), -1)

    def test_groups_hold_together(self):
        lone = Map()
        lone.add("b", "c")
        lone.add("d", "a")
        lone.add("a", "e")
        self.assertEqual(lone.groups(), [["a", "d", "e"], ["b", "c"]])

    def test_equal_groups_go_by_name(self):
        lone = Map()
        lone.add("x", "y")
        lone.add("b", "a")
        self.assertEqual(lone.groups(), [["a", "b"], ["x", "y"]])

    def test_a_tour_comes_back(self):
        self.assertEqual(self.map.tour_length(["farm", "mill", "port"]), 14)
        self.assertEqual(self.map.tour_length(["isle", "reef"]), 10)
        self.assertEqual(self.map.tour_length(["isle"]), 0)
