import itertools

from ling_jax.data import train_bpe
from ling_jax.rollout.text import complete

TOKENIZER = train_bpe(["nothing to merge"], 263)


class Script:
    """Stands where a `Generator` does and writes given text, a token at a time."""

    end_ids = frozenset({0})

    def __init__(self, text: str):
        self.tokens = [*TOKENIZER.encode(text).ids, 0]

    def __call__(self, prompts, *, max_new_tokens, stopped):
        from ling_jax.rollout import Sampled

        for size in range(1, len(self.tokens) + 1):
            tokens = self.tokens[:size]
            done = tokens[-1] == 0 or size == max_new_tokens or stopped(0, tokens)
            yield [Sampled(tokens, [0.0] * size, done)]
            if done:
                return


def written(text, **options):
    return [answer for (answer,) in complete(Script(text), TOKENIZER, [[1]], **({"max_new_tokens": 99} | options))]


def test_shown_text_only_grows_and_never_holds_half_a_character():
    shown = [answer.text for answer in written("naïve 日本 🎉!")]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))
    assert shown[-1] == "naïve 日本 🎉!" and not any("\ufffd" in text for text in shown)


def test_a_stop_string_ends_the_answer_and_is_not_shown_even_in_part():
    answers = written("first line\nsecond END rest", stop=["END", "never"])
    assert answers[-1].text == "first line\nsecond " and answers[-1].ended == "stop"
    assert not any("E" in answer.text for answer in answers)


def test_special_tokens_within_an_answer_are_shown_and_may_stop_it():
    assert written("<think>a</think>b")[-1].text == "<think>a</think>b"
    answer = written("<think>a</think>b", stop=["</think>"])[-1]
    assert (answer.text, answer.ended) == ("<think>a", "stop")


def test_how_an_answer_ended():
    assert written("ab")[-1].ended == "end" and written("ab")[-1].text == "ab"
    assert written("abcdef", max_new_tokens=3)[-1].ended == "length"
    assert [answer.ended for answer in written("ab")[:-1]] == ["", ""]
    assert written("abE")[-1].text == "abE"
    assert written("abE", stop=["END"])[-1].text == "abE"  # it was no stop string after all
