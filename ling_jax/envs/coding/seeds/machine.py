"""Machines that are in one state, and change it on events."""


class Refused(Exception):
    """An event that the state does not know, or a guard that says no."""


class Machine:
    """States and the moves between them; it remembers where it was."""

    def __init__(self, start):
        self.start = start
        self.state = start
        self.moves = {}
        self.past = []
        self.finals = set()

    def allow(self, state, event, target, guard=None):
        """A move; `guard(data)` decides whether it may be made. Of several, the first that may is made."""
        self.moves.setdefault((state, event), []).append((target, guard))

    def end_in(self, *states):
        """States that are an end."""
        self.finals.update(states)

    def send(self, event, data=None):
        """Makes the move of an event; returns the new state."""
        for target, guard in self.moves.get((self.state, event), []):
            if guard is None or guard(data):
                self.past.append((self.state, event))
                self.state = target
                return target
        raise Refused(f"{event} in {self.state}")

    def undo(self, count=1):
        """Goes back over so many moves, or to the start."""
        for _ in range(min(count, len(self.past))):
            self.state, _ = self.past.pop()
        return self.state

    def events(self):
        """The events that the present state knows, sorted."""
        return sorted(event for state, event in self.moves if state == self.state)

    def is_done(self):
        """Whether the present state is an end."""
        return self.state in self.finals

    def reachable(self, state=None):
        """All states to which moves lead, guards aside, sorted; the first one counts."""
        found = [self.start if state is None else state]
        for here in found:
            for (source, _), targets in self.moves.items():
                if source == here:
                    found += [target for target, _ in targets if target not in found]
        return sorted(set(found))

    def dead_ends(self):
        """States that can be reached, are no end, and are never left again; sorted."""
        left = {source for source, _ in self.moves}
        return [state for state in self.reachable() if state not in left and state not in self.finals]

    def accepts(self, events):
        """Whether the events lead from the start to an end; the machine itself stays where it is."""
        kept = self.state, list(self.past)
        self.state = self.start
        try:
            for event in events:
                self.send(event)
            return self.is_done()
        except Refused:
            return False
        finally:
            self.state, self.past = kept
