"""C3PO++: retention, purge and refill of a pool of rollouts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rl.token_budget import Budget, Pool, advance, begin, is_open, iterate, remove, submit


def slices(lengths, size=1):
    """An engine whose rollout i ends after lengths[i] tokens and that gives `size` of them at a time."""
    done = dict.fromkeys(range(len(lengths)), 0)

    def generate(ids, version):
        del version
        progress = {}
        for i in ids:
            tokens = min(size, lengths[i] - done[i])
            done[i] += tokens
            progress[i] = (tokens, done[i] == lengths[i])
        return progress

    return generate


def test_the_oracles_iterations(golden):
    for case in json.loads((golden / "objectives/c3po.json").read_text()):
        budget = Budget(
            tokens=case["phi"],
            pool_size=case["omega"],
            max_retention=case["sigma"],
            max_staleness=case["sigma"],
            count=case["count"],
            refill=case["refill"],
        )
        pool, generate = submit(Pool(), range(len(case["lengths"]))), slices(case["lengths"])
        for expected in case["expected"]:
            pool, record = iterate(pool, generate, budget)
            assert record == expected, (budget, expected["version"])


BUDGETS = st.builds(
    Budget,
    tokens=st.integers(1, 30),
    pool_size=st.integers(1, 5),
    max_retention=st.integers(0, 3),
    max_staleness=st.just(3),
    count=st.sampled_from(["completed", "generated"]),
    refill=st.sampled_from(["iteration", "continuous"]),
)
LENGTHS = st.lists(st.integers(1, 20), max_size=12)


@given(LENGTHS, BUDGETS, st.integers(1, 7))
def test_every_rollout_ends_once_or_is_purged_and_no_token_is_lost(lengths, budget, size):
    pool, generate = submit(Pool(), range(len(lengths))), slices(lengths, size)
    completed, purged = [], []
    while pool.queue or pool.active:
        before = {rollout.id for rollout in pool.active}
        pool, record = iterate(pool, generate, budget)
        assert len(pool.active) <= budget.pool_size
        assert before == {*record["purged"], *record["resumed"]}
        assert record["completed_tokens"] == sum(lengths[i] for i in record["completed"])
        for i, parts in record["completed_segments"].items():
            assert sum(tokens for _, tokens in parts) == lengths[int(i)]
            assert parts[-1][0] - parts[0][0] <= budget.max_retention
        completed += record["completed"]
        purged += record["purged"]
    assert sorted(completed + purged) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS)
def test_progress_replayed_from_a_log_gives_the_same_records(lengths, budget):
    generate, log, records = slices(lengths), [], []

    def logged(ids, version):
        log.append(generate(ids, version))
        return log[-1]

    def replayed(ids, version):
        return {int(i): tuple(moved) for i, moved in next(stored).items()}

    pool = again = submit(Pool(), range(len(lengths)))
    for _ in range(4):
        pool, record = iterate(pool, logged, budget)
        records.append(record)
    stored = iter(json.loads(json.dumps(log)))
    for record in json.loads(json.dumps(records)):
        again, found = iterate(again, replayed, budget)
        assert found == record
    assert again == pool


@given(LENGTHS, BUDGETS)
def test_an_iteration_ends_with_the_tick_that_uses_the_budget_up(lengths, budget):
    pool, generate = begin(submit(Pool(), range(len(lengths))), budget), slices(lengths)
    last = 0
    while is_open(pool, budget):
        assert last < budget.tokens
        pool = advance(pool, generate(tuple(rollout.id for rollout in pool.active), pool.version), budget)
        last = pool.generated if budget.count == "generated" else sum(done.tokens for done in pool.completed)
    assert not pool.active or last >= budget.tokens


def test_partial_rollouts_need_staleness():
    with pytest.raises(ValueError, match=r"keeps partial rollouts: .* the pool drains at every update; set max_stale"):
        Budget(tokens=10, pool_size=4, max_retention=1, max_staleness=0)
    budget = Budget(tokens=10, pool_size=4, max_retention=0, max_staleness=0)
    pool, record = iterate(submit(Pool(), [0, 1]), slices([3, 50]), budget)
    assert record["paused"] == [[1, 7, 0]]
    assert iterate(pool, slices([3, 50]), budget)[1]["purged"] == [1]


def test_a_removed_rollout_leaves_the_pool_and_the_queue():
    pool = begin(submit(Pool(), [0, 1, 2, 3]), Budget(tokens=5, pool_size=2, max_retention=1, max_staleness=1))
    pool = remove(pool, [1, 3])
    assert ([rollout.id for rollout in pool.active], pool.queue) == ([0], (2,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens is 0; expected at least 1"),
        ({"pool_size": 0}, "pool_size is 0; expected at least 1"),
        ({"max_retention": -1}, "max_retention is -1; expected at least 0"),
        ({"count": "complete"}, "count is 'complete', did you mean 'completed'"),
        ({"refill": "never"}, "refill is 'never'; expected one of iteration, continuous"),
    ],
)
def test_a_budget_out_of_range_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Budget(**({"tokens": 10, "pool_size": 4, "max_retention": 1, "max_staleness": 1} | change))


def test_progress_that_cannot_be_is_named():
    budget = Budget(tokens=5, pool_size=2, max_retention=1, max_staleness=1)
    pool = begin(submit(Pool(), [0, 1, 2]), budget)
    for progress, message in [
        ({2: (1, False)}, r"progress of rollout 2 is 1 tokens; active are \(0, 1\)"),
        ({0: (-1, False)}, "progress of rollout 0 is -1 tokens"),
        ({}, "no progress"),
    ]:
        with pytest.raises(ValueError, match=message):
            advance(pool, progress, budget)
    for ids in ([2], [0], [7, 7]):
        with pytest.raises(ValueError, match=r"rollout \d was submitted before"):
            submit(pool, ids)
