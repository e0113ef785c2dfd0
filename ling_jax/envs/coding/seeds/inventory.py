"""Goods in stock: what is there, what is reserved, what has to be ordered."""


class OutOfStock(Exception):
    """More was asked for than is free."""


class Inventory:
    """Counts and prices by article."""

    def __init__(self, reorder_level=5):
        self.reorder_level = reorder_level
        self.counts = {}
        self.reserved = {}
        self.prices = {}

    def receive(self, article, count, price=None):
        """Adds goods; a price replaces the earlier one."""
        if count <= 0:
            raise ValueError("count must be positive")
        self.counts[article] = self.counts.get(article, 0) + count
        if price is not None:
            self.prices[article] = price

    def free(self, article):
        """How many are neither sold nor reserved."""
        return self.counts.get(article, 0) - self.reserved.get(article, 0)

    def reserve(self, article, count):
        """Keeps goods for a customer."""
        if count > self.free(article):
            raise OutOfStock(article)
        self.reserved[article] = self.reserved.get(article, 0) + count

    def release(self, article, count):
        """Gives reserved goods back, as many as there are at most; returns how many."""
        given = min(count, self.reserved.get(article, 0))
        left = self.reserved.get(article, 0) - given
        if left:
            self.reserved[article] = left
        else:
            self.reserved.pop(article, None)
        return given

    def ship(self, article, count):
        """Sends reserved goods away."""
        if count > self.reserved.get(article, 0):
            raise OutOfStock(article)
        self.release(article, count)
        self.counts[article] -= count
        if self.counts[article] == 0:
            del self.counts[article]

    def to_order(self):
        """Articles of which fewer are free than the reorder level, sorted."""
        return sorted(article for article in self.counts if self.free(article) < self.reorder_level)

    def value(self):
        """The price of all that is there; what has no price counts nothing."""
        return sum(count * self.prices.get(article, 0) for article, count in self.counts.items())
