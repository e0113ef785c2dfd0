"""Promises of batches: the same rows at the same step, whatever the hosts and wherever a run starts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.data.mixture import batches, global_batch, held_out_batches, mixture
from ling_jax.data.packing import PackedRows, pack_plan
from ling_jax.data.sources import TokenDocuments


def full_rows(num_rows: int, first_token: int = 0, length: int = 4, **about) -> PackedRows:
    """Rows without padding; the tokens tell which row it is."""
    lengths = np.full(num_rows, length)
    tokens = (first_token + np.repeat(np.arange(num_rows), length)).astype(np.uint16)
    about = {"folder": Path("memory"), "vocab_size": 5000, "eos_id": 0, "tokenizer": ""} | about
    documents = TokenDocuments(tokens=tokens, offsets=np.cumsum([0, *lengths]), **about)
    return PackedRows(documents, pack_plan(lengths, length, 0))


def row_ids(batch) -> list[int]:
    return batch["tokens"][:, 0].tolist()


def assert_same(a, b) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_hosts_together_are_one_host(num_hosts):
    dataset = mixture([full_rows(50), full_rows(30, 1000)], [2, 1], seed=3)
    for step in (0, 7, 10**6):
        places = [np.arange(host, 8, num_hosts) for host in range(num_hosts)]  # interleaved: any split will do
        parts = [global_batch(dataset, step, 8, part) for part in places]
        together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        whole = global_batch(dataset, step, 8)
        assert_same(together, {name: values[np.concatenate(places)] for name, values in whole.items()})


def test_places_behind_the_batch_are_padding():
    dataset = mixture([full_rows(50)], [1], seed=3)
    both, behind = global_batch(dataset, 7, 6, [4, 5, 6, 7]), global_batch(dataset, 7, 6, [6, 7])
    assert_same({name: values[:2] for name, values in both.items()}, global_batch(dataset, 7, 6, [4, 5]))
    assert_same({name: values[2:] for name, values in both.items()}, behind)
    assert not behind["segment_ids"].any() and (behind["labels"] == -100).all()


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(1, 5))
def test_batch_is_a_function_of_seed_and_step(seed, step, batch_size):
    rows = [full_rows(7), full_rows(5, 1000)]
    one = mixture(rows, [1, 3], seed)
    for earlier in range(3):
        global_batch(one, earlier, batch_size)  # what was read before changes nothing
    assert_same(global_batch(one, step, batch_size), global_batch(mixture(rows, [1, 3], seed), step, batch_size))


def test_seeds_give_other_orders():
    rows = full_rows(100)
    firsts = [tuple(row_ids(global_batch(mixture([rows], [1], seed), 0, 100))) for seed in range(5)]
    assert len(set(firsts)) == 5
    # grain shuffles epoch e with seed + e: neighbouring seeds must not be each other's later epochs.
    seconds = [tuple(row_ids(global_batch(mixture([rows], [1], seed), 1, 100))) for seed in range(5)]
    assert not set(firsts) & set(seconds)


def test_each_epoch_has_all_rows_in_another_order():
    dataset = mixture([full_rows(20)], [0.3], seed=0)
    epochs = [row_ids(global_batch(dataset, epoch, 20)) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.1, 0.3), (7, 93)])
def test_sources_come_in_proportion_at_any_time(weights):
    dataset = mixture([full_rows(900), full_rows(700, 1000)], weights, seed=0)
    second = np.array(row_ids(global_batch(dataset, 0, 2000))) >= 1000
    share = weights[1] / sum(weights)
    drawn = np.cumsum(second) - share * np.arange(1, 2001)
    assert np.abs(drawn).max() <= 1  # interleaved, not drawn: never more than a row off


def test_batches_are_those_of_their_steps():
    dataset = mixture([full_rows(50)], [1], seed=0)
    read = list(batches(dataset, batch_size=6, start_step=5, stop_step=25, part=[3, 4, 5]))
    assert [step for step, _ in read] == list(range(5, 25))
    for step, batch in read:
        assert_same(batch, global_batch(dataset, step, 6, [3, 4, 5]))
    assert list(batches(dataset, batch_size=6, start_step=5, stop_step=5)) == []


def test_seek_reads_no_earlier_row(monkeypatch):
    rows = full_rows(50)
    dataset = mixture([rows], [1], seed=0)
    read, get = [], PackedRows.__getitem__
    monkeypatch.setattr(PackedRows, "__getitem__", lambda self, i: read.append(i) or get(self, i))
    (step, batch), *rest = batches(dataset, batch_size=4, start_step=1_000_000, stop_step=1_000_003)
    assert step == 1_000_000 and len(rest) == 2
    assert len(read) == 3 * 4
    assert row_ids(batch) == [get(rows, i)["tokens"][0] for i in read[:4]]


def test_a_part_must_be_places_of_a_batch():
    dataset = mixture([full_rows(5)], [1], seed=0)
    for part in ([], [-1, 0]):
        for read in (
            lambda part=part: global_batch(dataset, 0, 6, part),
            lambda part=part: batches(dataset, batch_size=6, start_step=0, stop_step=1, part=part),
        ):
            with pytest.raises(ValueError, match="expected places in the batch, 0 to 5 or behind it"):
                read()
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        global_batch(dataset, 0, 0)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_positive_and_finite(weight):
    with pytest.raises(ValueError, match=f"weight 1 is {weight}; weights must be positive and finite"):
        mixture([full_rows(5), full_rows(5)], [1, weight], seed=0)


def test_sources_must_fit_together():
    rows = full_rows(5, folder=Path("a"))
    with pytest.raises(
        ValueError, match=r"a has .*'vocab_size': 5000.*, b has .*'vocab_size': 6000.*share a tokenizer"
    ):
        mixture([rows, full_rows(5, folder=Path("b"), vocab_size=6000)], [1, 1], seed=0)
    with pytest.raises(ValueError, match=r"a has .*'sequence_length': 4.*, b has .*'sequence_length': 8"):
        mixture([rows, full_rows(5, folder=Path("b"), length=8)], [1, 1], seed=0)
    with pytest.raises(ValueError, match="b holds no rows; leave it out"):
        mixture([rows, full_rows(0, folder=Path("b"))], [1, 1], seed=0)
    with pytest.raises(ValueError, match="got 2 sources, 1 weights"):
        mixture([rows, rows], [1], seed=0)


def test_held_out_batches_have_one_shape_and_each_row_once():
    rows = full_rows(7, 1)
    read = list(held_out_batches(rows, 3))
    assert [batch["tokens"].shape for batch in read] == [(3, 4)] * 3
    together = {name: np.concatenate([batch[name] for batch in read]) for name in read[0]}
    in_order = {name: np.stack([rows[i][name] for i in range(7)]) for name in rows[0]}
    assert_same({name: values[:7] for name, values in together.items()}, in_order)
    assert not together["segment_ids"][7:].any() and (together["labels"][7:] == -100).all()
    second_half = [batch["tokens"][1:] for batch in read]
    np.testing.assert_array_equal([batch["tokens"] for batch in held_out_batches(rows, 3, [1, 2])], second_half)
    assert not list(held_out_batches(full_rows(0), 3))
