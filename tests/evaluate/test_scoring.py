import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.evaluate.scoring import next_token_logps, score_rows
from tests.tiny import random_params, tiny_config

FIELDS = dict(num_layers=2, compute_dtype="float32", remat="none")
LENGTHS = (2, 16, 17, 5, 32, 3, 9, 11, 30, 2)


def rows_of(lengths, vocab_size=40):
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, length) for length in lengths]


@pytest.mark.parametrize("family", ["2.6", "linear-2.0"])
def test_a_row_scores_as_its_own_forward_pass(family):
    config = tiny_config(family, **FIELDS, mtp_depth=1, max_length=40)  # 40: no power of two
    params = random_params(config, dtype="float32", std=0.2)
    rows = rows_of((2, 16, 40, 5, 3))
    found = dict(score_rows(params, config, rows, batch_size=2))
    assert found.keys() == set(range(5))
    forward = jax.jit(model.forward, static_argnums=2)
    for i, row in enumerate(rows):
        # What stands behind the row changes nothing before it, and saves a program for each length.
        logps = jax.nn.log_softmax(forward(params, np.pad(row, (0, 40 - len(row)))[None], config).logits[0])
        alone = [logps[t, row[t + 1]] for t in range(len(row) - 1)]
        np.testing.assert_allclose(found[i], alone, atol=2e-5, err_msg=f"row {i}")  # float32 sums of another order


def test_one_program_serves_all_lengths_of_a_bucket():
    config = tiny_config(**FIELDS, loss_chunk=7)
    params = random_params(config, dtype="float32")
    before = next_token_logps._cache_size()
    found = list(score_rows(params, config, rows_of(LENGTHS), batch_size=4))
    # Buckets 32 (3 rows: 4 in a batch) and 16 (7 rows: 4 and 3, which is padded to 4).
    assert next_token_logps._cache_size() - before == 2
    assert [len(logps) + 1 for _, logps in found] == [17, 32, 30, 2, 16, 5, 3, 9, 11, 2]  # the longest bucket first
    assert all(len(logps) == LENGTHS[i] - 1 for i, logps in found)


def test_what_is_not_finite_is_an_error():
    config = tiny_config(**FIELDS, loss_chunk=7)
    params = random_params(config, dtype="float32") | {"final_norm": np.full(16, np.nan, np.float32)}
    with pytest.raises(FloatingPointError, match="not finite"):
        list(score_rows(params, config, rows_of([5]), batch_size=1))
