"""All hosts stop after the same step, whoever gets a signal and however far they are apart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.distributed import hosts
from ling_jax.distributed.hosts import check_same, first_host_first, stop_after

AHEAD = 3
LONG = 200  # steps in which every run has stopped


@settings(max_examples=100)
@given(st.integers(1, 4), st.data())
def test_a_signal_stops_all_after_the_same_step(count, data):
    """Hosts take steps in any order in which none is more than `AHEAD` before another; signals come at any time."""
    words, asked, stopped = {}, [0] * count, {}
    signals = data.draw(st.dictionaries(st.integers(0, count - 1), st.integers(0, 20), min_size=1))  # host -> step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hosts, "is_multiprocess", lambda: True)
        patch.setattr(hosts, "_read", lambda what: dict(words))
        while len(stopped) < count:
            free = [h for h in range(count) if h not in stopped and asked[h] + 1 - AHEAD <= min(asked)]
            host = data.draw(st.sampled_from(free))
            asked[host] += 1
            assert asked[host] < LONG
            patch.setattr(hosts, "process_index", lambda host=host: host)
            patch.setattr(hosts, "_write", lambda what, text, host=host: words.update({host: text}))
            number = 15 if host in signals and asked[host] > signals[host] else None
            if stop_after(asked[host], number, AHEAD) == 15:
                stopped[host] = asked[host]
    assert len(set(stopped.values())) == 1
    assert min(signals.values()) < stopped[0] <= min(signals.values()) + 1 + AHEAD


def test_a_process_that_is_alone_asks_nobody():
    assert stop_after(7, 15, AHEAD) == 15 and stop_after(7, None, AHEAD) is None
    assert first_host_first(lambda: "made") == "made" and check_same({"rows": 1}) is None
    assert hosts.process_index() == 0 and not hosts.is_multiprocess()
    hosts.leave()
    hosts.fail(ValueError("is raised by the caller"))
