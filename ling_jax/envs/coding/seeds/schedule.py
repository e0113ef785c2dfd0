"""Jobs that wait for each other: an order, start times, the chain that takes longest."""


class Cycle(Exception):
    """Jobs that wait for each other in a circle."""


class Plan:
    """Jobs with a length, and what each waits for."""

    def __init__(self):
        self.lengths = {}
        self.needs = {}
        self.ranks = {}

    def add(self, job, length, needs=(), rank=0):
        """A job; of those that could run, the one with the highest rank comes first."""
        if length < 0:
            raise ValueError("length must not be negative")
        self.lengths[job] = length
        self.needs[job] = list(needs)
        self.ranks[job] = rank

    def order(self):
        """All jobs, each behind what it waits for; of equal ranks by name."""
        missing = [need for needs in self.needs.values() for need in needs if need not in self.lengths]
        if missing:
            raise KeyError(missing[0])
        done, waiting = [], set(self.lengths)
        while waiting:
            ready = [job for job in waiting if all(need in done for need in self.needs[job])]
            if not ready:
                raise Cycle(sorted(waiting))
            job = min(ready, key=lambda job: (-self.ranks[job], job))
            done.append(job)
            waiting.remove(job)
        return done

    def starts(self):
        """The earliest start of each job where all that can run together does."""
        found = {}
        for job in self.order():
            found[job] = max((found[need] + self.lengths[need] for need in self.needs[job]), default=0)
        return found

    def finish(self):
        """When the last job ends."""
        return max((start + self.lengths[job] for job, start in self.starts().items()), default=0)

    def slack(self, job):
        """How much later a job may start without a later finish."""
        starts, latest = self.starts(), {}
        for name in reversed(self.order()):
            after = [other for other in self.lengths if name in self.needs[other]]
            end = min((latest[other] for other in after), default=self.finish())
            latest[name] = end - self.lengths[name]
        return latest[job] - starts[job]

    def critical(self):
        """The jobs without slack, in order."""
        return [job for job in self.order() if self.slack(job) == 0]

    def on_workers(self, count):
        """(job, worker, start) where `count` workers take the jobs in order, each the first who is free."""
        free, ends, found = [0] * count, {}, []
        for job in self.order():
            ready = max((ends[need] for need in self.needs[job]), default=0)
            worker = min(range(count), key=lambda i: (max(free[i], ready), i))
            start = max(free[worker], ready)
            free[worker] = ends[job] = start + self.lengths[job]
            found.append((job, worker, start))
        return found
