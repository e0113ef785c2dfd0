import unittest

from ling_jax.envs.coding.seeds.schedule import Cycle, Plan


class TestPlan(unittest.TestCase):
    def setUp(self):
        self.plan = Plan()
        self.plan.add("dig", 3)
        self.plan.add("pour", 2, needs=["dig"])
        self.plan.add("frame", 4, needs=["pour"])
        self.plan.add("pipes", 1, needs=["dig"])
        self.plan.add("roof", 2, needs=["frame", "pipes"])

    def test_what_is_waited_for_comes_first(self):
        self.assertEqual(self.plan.order(), ["dig", "pipes", "pour", "frame", "roof"])

    def test_a_higher_rank_comes_first(self):
        self.plan.add("pour", 2, needs=["dig"], rank=1)
        self.assertEqual(self.plan.order()[:3], ["dig", "pour", "frame"])

    def test_equal_ranks_go_by_name(self):
        plan = Plan()
        for job in ("c", "a", "b"):
            plan.add(job, 1, rank=2)
        self.assertEqual(plan.order(), ["a", "b", "c"])

    def test_a_circle_is_refused(self):
        self.plan.add("dig", 3, needs=["roof"])
        with self.assertRaises(Cycle):
            self.plan.order()

    def test_an_unknown_need_is_named(self):
        self.plan.add("paint", 1, needs=["walls"])
        with self.assertRaisesRegex(KeyError, "walls"):
            self.plan.order()

    def test_a_length_may_be_nothing_but_not_less(self):
        self.plan.add("sign", 0)
        with self.assertRaises(ValueError):
            self.plan.add("sign", -1)

    def test_starts_are_as_early_as_can_be(self):
        self.assertEqual(self.plan.starts(), {"dig": 0, "pour": 3, "frame": 5, "pipes": 3, "roof": 9})

    def test_the_finish_is_the_last_end(self):
        self.assertEqual(self.plan.finish(), 11)
        self.assertEqual(Plan().finish(), 0)

    def test_slack_is_what_a_job_can_wait(self):
        self.assertEqual(self.plan.slack("pipes"), 5)
        self.assertEqual(self.plan.slack("frame"), 0)

    def test_the_last_job_of_a_short_chain_can_wait(self):
        self.plan.add("fence", 4)
        self.assertEqual(self.plan.slack("fence"), 7)

    def test_the_longest_chain_has_no_slack(self):
        self.assertEqual(self.plan.critical(), ["dig", "pour", "frame", "roof"])

    def test_one_worker_does_one_after_the_other(self):
        starts = [(job, start) for job, _, start in self.plan.on_workers(1)]
        self.assertEqual(starts, [("dig", 0), ("pipes", 3), ("pour", 4), ("frame", 6), ("roof", 10)])

    def test_two_workers_share(self):
        found = self.plan.on_workers(2)
        self.assertEqual(found[:3], [("dig", 0, 0), ("pipes", 0, 3), ("pour", 1, 3)])
        self.assertEqual(found[-1], ("roof", 0, 9))
