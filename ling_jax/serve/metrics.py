"""Counters of the server in Prometheus' text format."""

import bisect
import collections
from collections.abc import Iterator, Mapping

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # bounds of buckets


class Histogram:
    """Counts of observations up to each bound."""

    def __init__(self) -> None:
        self._counts, self._sum = [0] * (len(SECONDS) + 1), 0.0

    def observe(self, seconds: float) -> None:
        """Counts one observation."""
        self._counts[bisect.bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        """The samples of the metric with this name."""
        total = 0
        for bound, count in zip((*SECONDS, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.9g}"
        yield f"{name}_count {total}"


class Metrics:
    """What the server counts; nothing of what requests contain."""

    def __init__(self) -> None:
        self.responses: collections.Counter[tuple[str, int]] = collections.Counter()  # of (path, status)
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = self.disconnects = 0
        self.first_token, self.between_tokens, self.whole = Histogram(), Histogram(), Histogram()

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """All metrics; `gauges` {name: (what it is, value)} are those of the engine."""
        counters = {
            "prompt_tokens_total": ("Tokens of prompts.", self.prompt_tokens),
            "cached_tokens_total": ("Tokens of prompts that were not read again.", self.cached_tokens),
            "generated_tokens_total": ("Tokens of answers.", self.generated_tokens),
            "disconnects_total": ("Clients that went away before their answer.", self.disconnects),
        }
        lines = [line for name, found in counters.items() for line in _single(name, "counter", *found)]
        lines += [line for name, found in gauges.items() for line in _single(name, "gauge", *found)]
        lines += ["# HELP ling_responses_total Responses by path and status.", "# TYPE ling_responses_total counter"]
        for (path, status), count in sorted(self.responses.items()):
            lines.append(f'ling_responses_total{{path="{path}",status="{status}"}} {count}')
        for name, what, histogram in (
            ("first_token_seconds", "From the request to its first token.", self.first_token),
            ("token_seconds", "Between tokens of an answer, a step's tokens sharing its time.", self.between_tokens),
            ("request_seconds", "From the request to the end of its answer.", self.whole),
        ):
            lines += [f"# HELP ling_{name} {what}", f"# TYPE ling_{name} histogram", *histogram.lines(f"ling_{name}")]
        return "\n".join(lines) + "\n"


def _single(name: str, kind: str, what: str, value: float) -> list[str]:
    return [f"# HELP ling_{name} {what}", f"# TYPE ling_{name} {kind}", f"ling_{name} {value:g}"]
