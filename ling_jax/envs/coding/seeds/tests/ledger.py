import unittest

from ling_jax.envs.coding.seeds.ledger import Ledger, Overdrawn


class TestLedger(unittest.TestCase):
    def setUp(self):
        self.book = Ledger()
        self.book.open("cash")
        self.book.open("rent", limit=50)
        self.book.book(None, "cash", 100, note="start")

    def test_money_comes_in(self):
        self.assertEqual(self.book.balance("cash"), 100)
        self.assertEqual(self.book.balance("rent"), 0)

    def test_money_moves(self):
        self.book.book("cash", "rent", 30)
        self.assertEqual(self.book.balance("cash"), 70)
        self.assertEqual(self.book.balance("rent"), 30)

    def test_an_account_is_opened_once(self):
        with self.assertRaises(ValueError):
            self.book.open("cash")

    def test_all_may_be_spent_but_no_more(self):
        self.book.book("cash", "rent", 100)
        with self.assertRaises(Overdrawn):
            self.book.book("cash", "rent", 1)

    def test_the_limit_may_be_used_up(self):
        self.book.book("rent", "cash", 50)
        self.assertEqual(self.book.balance("rent"), -50)
        with self.assertRaises(Overdrawn):
            self.book.book("rent", "cash", 1)

    def test_an_amount_is_positive(self):
        for amount in (0, -5):
            with self.assertRaises(ValueError):
                self.book.book("cash", "rent", amount)

    def test_the_least_amount_is_one(self):
        self.assertEqual(self.book.book("cash", "rent", 1), 1)

    def test_unknown_accounts_are_refused(self):
        for pair in (("cash", "food"), ("food", "cash"), (None, "food")):
            with self.assertRaises(KeyError):
                self.book.book(*pair, 5)

    def test_a_reversal_restores_the_balances(self):
        number = self.book.book("cash", "rent", 40)
        self.book.reverse(number)
        self.assertEqual(self.book.balance("cash"), 100)
        self.assertEqual(self.book.entries[-1], ("rent", "cash", 40, "reversal of 1"))

    def test_outside_money_stays(self):
        with self.assertRaises(ValueError):
            self.book.reverse(0)

    def test_a_statement_has_signs_and_balances(self):
        self.book.book("cash", "rent", 30, note="may")
        self.book.book("rent", "cash", 5)
        self.assertEqual(self.book.statement("cash"), [(100, 100, "start"), (-30, 70, "may"), (5, 75, "")])
        self.assertEqual(self.book.statement("rent"), [(30, 30, "may"), (-5, 25, "")])

    def test_the_largest_come_first(self):
        self.book.book("cash", "rent", 30)
        self.book.book("rent", "cash", 5)
        self.book.book("cash", "rent", 30)
        self.assertEqual(self.book.largest(), [0, 1, 3])
        self.assertEqual(self.book.largest(1), [0])

    def test_moving_keeps_the_total(self):
        self.book.book("cash", "rent", 30)
        self.assertEqual(self.book.total(), 100)
