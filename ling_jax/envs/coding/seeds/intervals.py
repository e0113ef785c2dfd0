"""Sets of numbers as half-open intervals [start, stop)."""


class IntervalSet:
    """Intervals that neither overlap nor touch, sorted."""

    def __init__(self, pairs=()):
        self.pairs = []
        for start, stop in pairs:
            self.add(start, stop)

    def add(self, start, stop):
        """Adds [start, stop); what it overlaps or touches becomes one interval."""
        if start >= stop:
            return
        kept = []
        for low, high in self.pairs:
            if high < start or stop < low:
                kept.append((low, high))
            else:
                start, stop = min(start, low), max(stop, high)
        kept.append((start, stop))
        self.pairs = sorted(kept)

    def remove(self, start, stop):
        """Takes [start, stop) away."""
        kept = []
        for low, high in self.pairs:
            if low < start:
                kept.append((low, min(high, start)))
            if high > stop:
                kept.append((max(low, stop), high))
        self.pairs = [(low, high) for low, high in kept if low < high]

    def __contains__(self, value):
        return any(low <= value < high for low, high in self.pairs)

    def length(self):
        """The length of all intervals together."""
        return sum(high - low for low, high in self.pairs)

    def gaps(self, start, stop):
        """What [start, stop) has outside of the set."""
        rest = IntervalSet([(start, stop)])
        for low, high in self.pairs:
            rest.remove(low, high)
        return rest.pairs

    def intersection(self, other):
        """The numbers that are in both."""
        both = IntervalSet()
        for low, high in self.pairs:
            for start, stop in other.pairs:
                both.add(max(low, start), min(high, stop))
        return both

    def first_free(self, size, start=0):
        """The least number from `start` on at which an interval of this size fits between the others."""
        for low, high in self.pairs:
            if high <= start:
                continue
            if start + size <= low:
                return start
            start = max(start, high)
        return start
