"""Places and the roads between them."""

import heapq


class Map:
    """Roads of a length, in both directions unless one is said."""

    def __init__(self):
        self.roads = {}

    def add(self, a, b, length=1, one_way=False):
        """A road; a shorter one between the same places counts."""
        if length <= 0:
            raise ValueError("length must be positive")
        for start, end in [(a, b)] if one_way else [(a, b), (b, a)]:
            known = self.roads.setdefault(start, {})
            self.roads.setdefault(end, {})
            known[end] = min(length, known.get(end, length))

    def distances(self, start):
        """The length of the shortest way to each place that can be reached."""
        found, open_ways = {}, [(0, start)]
        while open_ways:
            length, place = heapq.heappop(open_ways)
            if place in found:
                continue
            found[place] = length
            for other, step in self.roads[place].items():
                if other not in found:
                    heapq.heappush(open_ways, (length + step, other))
        return found

    def path(self, start, end):
        """The places of the shortest way; None where there is none. Of equal ways the first by name."""
        lengths = self.distances(start)
        if end not in lengths:
            return None
        way = [end]
        while way[-1] != start:
            here = way[-1]
            before = [
                place
                for place in lengths
                if here in self.roads[place] and lengths[place] + self.roads[place][here] == lengths[here]
            ]
            way.append(min(before))
        return way[::-1]

    def hops(self, start, end):
        """The least number of roads from one place to another; -1 where there is no way."""
        level, seen, count = {start}, {start}, 0
        while level:
            if end in level:
                return count
            level = {other for place in level for other in self.roads[place]} - seen
            seen |= level
            count += 1
        return -1

    def groups(self):
        """The places that roads in both directions hold together, the largest group first."""
        left, found = set(self.roads), []
        while left:
            reached = set(self.distances(min(left)))
            found.append(sorted(reached & left))
            left -= reached
        return sorted(found, key=lambda group: (-len(group), group))

    def tour_length(self, places):
        """The length of the shortest ways from each place to the next and back to the first."""
        total = 0
        for here, there in zip(places, places[1:] + places[:1], strict=True):
            total += self.distances(here)[there]
        return total
