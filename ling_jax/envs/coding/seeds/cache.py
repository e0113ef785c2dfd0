"""A cache that forgets what is old and what was used longest ago; the caller says what time it is."""


class Cache:
    """At most `capacity` values, each for `lifetime` units of time."""

    def __init__(self, capacity, lifetime):
        if capacity < 1:
            raise ValueError("capacity must be positive")
        self.capacity = capacity
        self.lifetime = lifetime
        self.items = {}
        self.hits = 0
        self.misses = 0

    def put(self, key, value, now):
        """Keeps a value; the one that was used longest ago makes room."""
        self.purge(now)
        self.items.pop(key, None)
        if len(self.items) >= self.capacity:
            oldest = next(iter(self.items))
            del self.items[oldest]
        self.items[key] = (value, now + self.lifetime)

    def get(self, key, now, default=None):
        """The value, which counts as used now, or the default."""
        value, until = self.items.get(key, (None, None))
        if until is None or now >= until:
            self.items.pop(key, None)
            self.misses += 1
            return default
        self.items[key] = self.items.pop(key)
        self.hits += 1
        return value

    def purge(self, now):
        """Forgets what is too old; returns how many."""
        old = [key for key, (_, until) in self.items.items() if now >= until]
        for key in old:
            del self.items[key]
        return len(old)

    def refresh(self, key, now):
        """Lets a value live as if it had been put now; whether it was there."""
        if key not in self.items or now >= self.items[key][1]:
            return False
        value, _ = self.items[key]
        self.items[key] = (value, now + self.lifetime)
        return True

    def get_or_make(self, key, make, now):
        """The value, or what `make(key)` returns, which is kept."""
        missing = object()
        value = self.get(key, now, missing)
        if value is missing:
            value = make(key)
            self.put(key, value, now)
        return value

    def rate(self):
        """The share of hits in all that was asked for."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0

    def keys(self):
        """The keys, that which was used longest ago first."""
        return list(self.items)
