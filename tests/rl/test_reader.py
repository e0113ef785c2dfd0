"""Between conversations and tokens."""

from ling_jax.envs import environment
from tests.helpers.scripted_policy import begin, reader


def test_a_token_that_the_tokenizer_does_not_have_is_in_the_sentence_around_it():
    """A model's vocabulary may be larger than what few texts fill; a policy that explores draws from all of it."""
    episode = begin(environment("running_sums").make_task(0, 1))
    whole = reader().tokenizer.encode("3+4=7;A:7").ids
    beyond = reader().tokenizer.get_vocab_size() + 100
    episode.trajectory.append_generation([whole[0], beyond, *whole[1:]], [0.0] * (len(whole) + 1), 0)
    ids = reader().sentence_ids(episode.trajectory).tolist()
    assert ids[0] == ids[1] == ids[2] == 0 and len(ids) == len(whole) + 1
    assert beyond not in whole and reader().text([beyond]) == ""
