"""Accounts of which every booking has two sides."""


class Overdrawn(Exception):
    """An account would fall below its limit."""


class Ledger:
    """Bookings in their order; balances follow from them."""

    def __init__(self):
        self.limits = {}
        self.entries = []

    def open(self, account, limit=0):
        """An account that may fall to -limit."""
        if account in self.limits:
            raise ValueError(f"{account} is open already")
        self.limits[account] = limit

    def balance(self, account):
        """What has come in less what has gone out."""
        total = 0
        for source, target, amount, _ in self.entries:
            if target == account:
                total += amount
            if source == account:
                total -= amount
        return total

    def book(self, source, target, amount, note=""):
        """Moves an amount; None as the source is money from outside."""
        if amount <= 0:
            raise ValueError("amount must be positive")
        if target not in self.limits or (source is not None and source not in self.limits):
            raise KeyError("unknown account")
        if source is not None and self.balance(source) - amount < -self.limits[source]:
            raise Overdrawn(source)
        self.entries.append((source, target, amount, note))
        return len(self.entries) - 1

    def reverse(self, number):
        """Books the opposite of an earlier booking."""
        source, target, amount, _ = self.entries[number]
        if source is None:
            raise ValueError("money from outside cannot be sent back")
        return self.book(target, source, amount, note=f"reversal of {number}")

    def statement(self, account):
        """(signed amount, balance afterwards, note) of each booking that touches the account."""
        lines, total = [], 0
        for source, target, amount, note in self.entries:
            if account not in (source, target):
                continue
            signed = amount if target == account else -amount
            total += signed
            lines.append((signed, total, note))
        return lines

    def largest(self, count=3):
        """The largest bookings; of equal ones the earlier first."""
        ranked = sorted(enumerate(self.entries), key=lambda item: (-item[1][2], item[0]))
        return [number for number, _ in ranked[:count]]

    def total(self):
        """The money of all accounts."""
        return sum(self.balance(account) for account in self.limits)
