import unittest

from ling_jax.envs.coding.seeds.machine import Machine, Refused


class TestMachine(unittest.TestCase):
    def setUp(self):
        self.door = Machine("open")
        self.door.allow("open", "shut", "closed")
        self.door.allow("closed", "pull", "open")
        self.door.allow("closed", "lock", "locked", guard=lambda key: key == "gold")
        self.door.allow("closed", "lock", "jammed", guard=lambda key: key == "clay")
        self.door.allow("locked", "unlock", "closed")
        self.door.end_in("locked")

    def test_events_change_the_state(self):
        self.assertEqual(self.door.send("shut"), "closed")
        self.assertEqual(self.door.send("pull"), "open")
        self.assertEqual(self.door.state, "open")

    def test_an_unknown_event_is_refused(self):
        with self.assertRaisesRegex(Refused, "pull in open"):
            self.door.send("pull")
        self.assertEqual(self.door.past, [])

    def test_a_guard_decides(self):
        self.door.send("shut")
        with self.assertRaises(Refused):
            self.door.send("lock", "iron")
        self.assertEqual(self.door.send("lock", "gold"), "locked")

    def test_the_first_move_that_may_is_made(self):
        self.door.send("shut")
        self.assertEqual(self.door.send("lock", "clay"), "jammed")

    def test_the_past_is_remembered(self):
        self.door.send("shut")
        self.door.send("pull")
        self.assertEqual(self.door.past, [("open", "shut"), ("closed", "pull")])

    def test_moves_are_undone_one_by_one(self):
        self.door.send("shut")
        self.door.send("lock", "gold")
        self.assertEqual(self.door.undo(), "closed")
        self.assertEqual(self.door.undo(), "open")

    def test_undo_ends_at_the_start(self):
        self.door.send("shut")
        self.door.send("lock", "gold")
        self.assertEqual(self.door.undo(9), "open")
        self.assertEqual(self.door.undo(), "open")

    def test_the_events_of_a_state(self):
        self.assertEqual(self.door.events(), ["shut"])
        self.door.send("shut")
        self.assertEqual(self.door.events(), ["lock", "pull"])

    def test_the_end_is_known(self):
        self.assertFalse(self.door.is_done())
        self.door.send("shut")
        self.door.send("lock", "gold")
        self.assertTrue(self.door.is_done())

    def test_reachable_states(self):
        self.assertEqual(self.door.reachable(), ["closed", "jammed", "locked", "open"])
        self.assertEqual(self.door.reachable("jammed"), ["jammed"])

    def test_dead_ends_are_no_ends(self):
        self.assertEqual(self.door.dead_ends(), ["jammed"])
        self.door.end_in("jammed")
        self.assertEqual(self.door.dead_ends(), [])

    def test_a_word_is_accepted_from_the_start(self):
        lamp = Machine("off")
        lamp.allow("off", "press", "on")
        lamp.allow("on", "press", "off")
        lamp.end_in("on")
        lamp.send("press")
        self.assertTrue(lamp.accepts(["press"]))
        self.assertFalse(lamp.accepts(["press", "press"]))
        self.assertFalse(lamp.accepts(["press", "kick"]))
        self.assertEqual((lamp.state, lamp.past), ("on", [("off", "press")]))
