import itertools

from hypothesis import given
from hypothesis import strategies as st

from ling_jax.data import train_bpe
from ling_jax.engine import Event
from ling_jax.engine.text import TextStream

TOKENIZER = train_bpe(["nothing to merge, ab ab ab"], 266)
END = 0


def written(text, *, stop=(), length=None, pieces=1):
    """The completions after each event of a request that draws these tokens."""
    tokens = [*TOKENIZER.encode(text).ids, END][:length]
    stream, completions = TextStream(TOKENIZER, {END}, stop), []
    for first in range(0, len(tokens), pieces):
        part = tuple(tokens[first : first + pieces])
        last = first + pieces >= len(tokens)
        reason = None if not last else "stop" if part[-1] == END else "length"
        stream.add(Event("a", first, part, (0.0,) * len(part), 0, reason))
        completions.append(stream.completion())
        if stream.ended:
            break
    return completions


def test_shown_text_only_grows_and_never_holds_half_a_character():
    shown = [answer.text for answer in written("naïve 日本 🎉!")]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))
    assert shown[-1] == "naïve 日本 🎉!" and not any("\ufffd" in text for text in shown)


def test_a_stop_string_ends_the_answer_and_is_not_shown_even_in_part():
    answers = written("first line\nsecond END rest", stop=["END", "never"])
    assert answers[-1].text == "first line\nsecond " and answers[-1].ended == "stop"
    assert not any("E" in answer.text for answer in answers)
    assert len(answers[-1].tokens) == len(answers[-1].logps) < len(TOKENIZER.encode("first line\nsecond END rest").ids)


def test_special_tokens_within_an_answer_are_shown_and_may_stop_it():
    assert written("<think>a</think>b")[-1].text == "<think>a</think>b"
    answer = written("<think>a</think>b", stop=["</think>"])[-1]
    assert (answer.text, answer.ended) == ("<think>a", "stop")


def test_how_an_answer_ended():
    assert written("ab")[-1].ended == "end" and written("ab")[-1].text == "ab"
    assert written("abcdef", length=3)[-1].ended == "length"
    assert {answer.ended for answer in written("xyz")[:-1]} == {""}
    assert written("abE")[-1].text == "abE"
    assert written("abE", stop=["END"])[-1].text == "abE"  # it was no stop string after all


def test_half_a_character_at_the_end_is_shown_as_the_tokenizer_does():
    whole = TOKENIZER.encode("a日").ids
    assert written("a日", length=len(whole) - 1)[-1].text == TOKENIZER.decode(whole[:-1])


@given(st.text(max_size=30), st.integers(1, 9), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_the_text_is_that_of_all_tokens_up_to_the_first_stop_string(text, pieces, stop):
    answer = written(text, stop=stop, pieces=pieces)[-1]
    tokens = [token for token in answer.tokens if token != END]
    whole = TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False)
    if answer.ended == "stop":
        decoded = TOKENIZER.decode(tokens, skip_special_tokens=False)
        assert any(decoded == answer.text + s or (answer.text + s) in decoded for s in stop)
        assert not any(s in answer.text for s in stop) and whole.startswith(answer.text)
    else:
        assert answer.text == whole and not any(s in whole for s in stop)


def test_work_grows_with_the_number_of_tokens():
    """Each token is decoded a bounded number of times."""

    class Counting:
        def __init__(self):
            self.count = 0

        def decode(self, tokens, skip_special_tokens):
            self.count += len(tokens)
            return TOKENIZER.decode(tokens, skip_special_tokens=skip_special_tokens)

    counting, tokens = Counting(), TOKENIZER.encode("word 日本 " * 200).ids
    stream = TextStream(counting, {END}, ["END"])
    for i, token in enumerate(tokens):
        stream.add(Event("a", i, (token,), (0.0,), 0))
    assert counting.count < 20 * len(tokens)
