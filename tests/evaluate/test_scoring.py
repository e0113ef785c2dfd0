import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.evaluate.scoring import next_token_logps, score_rows
from tests.helpers.tiny import random_params, tiny_config

# A context that is no power of two, and a depth of MTP, which scoring leaves out.
CONFIG = tiny_config(num_layers=2, mtp_depth=1, max_length=40, compute_dtype="float32", remat="none")
PARAMS = random_params(CONFIG, dtype="float32", std=0.2)
LENGTHS = (2, 16, 40, 5, 33, 3, 9, 11, 36, 2)
ROWS = [np.random.default_rng(length).integers(0, CONFIG.vocab_size, length) for length in LENGTHS]


def test_rows_score_as_alone_and_one_program_serves_a_bucket():
    before = next_token_logps._cache_size()
    found = [row for batch in score_rows(PARAMS, CONFIG, ROWS, batch_size=4) for row in batch]
    # Buckets 40 (3 rows: 4 in a batch) and 16 (7 rows: 4, and 3 which are padded to 4).
    assert next_token_logps._cache_size() - before == 2
    assert [i for i, _ in found] == [2, 4, 8, 0, 1, 3, 5, 6, 7, 9], "the longest bucket first"
    forward = jax.jit(model.forward, static_argnums=2)
    for i, logps in found:
        # What stands behind the row changes nothing before it, and saves a program for each length.
        padded = np.pad(ROWS[i], (0, 40 - LENGTHS[i]))[None]
        whole = np.asarray(jax.nn.log_softmax(forward(PARAMS, padded, CONFIG).logits[0]))
        alone = [whole[t, ROWS[i][t + 1]] for t in range(LENGTHS[i] - 1)]
        np.testing.assert_allclose(logps, alone, atol=2e-5, err_msg=f"row {i}")  # float32 sums of another order


def test_log_probabilities_that_are_not_finite_are_an_error():
    params = PARAMS | {"final_norm": np.full(CONFIG.hidden_size, np.nan, np.float32)}
    with pytest.raises(FloatingPointError, match="not finite"):
        list(score_rows(params, CONFIG, ROWS, batch_size=4))
