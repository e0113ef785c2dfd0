import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rewards.sentences import cut_sentences, literal_spans, split_sentences

SNIPPETS = [
    *"a1. ,!?;。？！\n\t\r$\\`{}[]() 好",
    "```",
    "$$",
    "\\[",
    "\\]",
    "\\(",
    "\\)",
    "\\begin{a}",
    "\\end{a}",
    "\n\n",
]
TEXTS = st.lists(st.sampled_from(SNIPPETS), max_size=40).map("".join)


@st.composite
def tokenised(draw) -> list[bytes]:
    """A text cut anywhere, inside characters too, with empty tokens."""
    data = draw(TEXTS).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def test_sentences_equal_the_oracle(golden):
    for case in json.loads((golden / "objectives/sentence_split.json").read_text()):
        found = split_sentences([bytes.fromhex(token) for token in case["tokens_hex"]], case["special"])
        assert found.ids == case["sentence_id"], case["name"]
        assert found.pieces == case["sentences"], case["name"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [""]),
        ("a. \r\n b", ["a. \r\n", " b"]),
        ("x = .5. y", ["x = .", "5.", " y"]),
        ("see ```a.b``` c. d", ["see ```a.", "b``` c.", " d"]),
        ("   ```\na.\n \t```x.\nb. c", ["   ```\na.\n \t```x.\n", "b.", " c"]),
        ("$a\n\n. b$ c", ["$a\n\n.", " b$ c"]),
        (r"\$a. b$ c", [r"\$a.", " b$ c"]),
        (r"$a\$. b$ c", [r"$a\$. b$ c"]),
        (r"\(a. \[ b. \) c. \] d", [r"\(a. \[ b. \) c.", r" \] d"]),
        ("\\begin{align*}a.\\end{align}b.\\end{align*}c. d", ["\\begin{align*}a.\\end{align}b.\\end{align*}c.", " d"]),
        ("$$a. b", ["$$a.", " b"]),
    ],
)
def test_what_is_literal_holds_no_mark(text, pieces):
    assert cut_sentences(text) == pieces


@given(TEXTS)
def test_pieces_are_the_text_and_only_the_last_may_lack_a_mark(text):
    pieces = cut_sentences(text)
    assert "".join(pieces) == text
    assert all(pieces) or pieces == [""]
    assert all(piece[-1] in ".!?;。！？；\n" for piece in pieces[:-1])


@given(TEXTS)
def test_literal_spans_are_in_order_and_apart(text):
    last = 0
    for start, end in literal_spans(text):
        assert last <= start < end <= len(text)
        last = end


@given(tokenised())
def test_ids_start_at_zero_and_never_leave_a_gap(tokens):
    ids, pieces = split_sentences(tokens)
    assert len(ids) == len(tokens)
    assert ids[0] == 0 and all(later - earlier in (0, 1) for earlier, later in itertools.pairwise(ids))
    assert ids[-1] < len(pieces)


@given(st.lists(st.binary(max_size=6), max_size=20))
def test_any_bytes_are_cut_as_they_read(tokens):
    assert "".join(split_sentences(tokens).pieces) == b"".join(tokens).decode("utf-8", "replace")


@given(TEXTS)
def test_one_token_per_character_has_the_sentence_of_its_piece(text):
    ids, pieces = split_sentences([character.encode() for character in text])
    assert ids == [i for i, piece in enumerate(pieces) for _ in piece]


def test_special_tokens_are_no_text_wherever_they_stand():
    found = split_sentences([b"<s>", b"A. ", b"<|x.|>", b"B"], [True, False, True, False])
    assert found == ([0, 1, 1, 1], ["A.", " B"])  # "A. " ends in the sentence of B, as its blank does
    with pytest.raises(ValueError, match="special has 1 entries for 2 tokens"):
        split_sentences([b"a", b"b"], [True])


@pytest.mark.parametrize("unit", ["\\[ ", "$a ", "$a\n\n", "```\n", "\\begin{a}", "\\begin{", ". ", " ", "$$a"])
def test_time_is_linear_in_openers_that_nothing_closes(unit):
    start = time.monotonic()
    cut_sentences(unit * 30_000)
    assert time.monotonic() - start < 2  # 0.05 s alone; quadratic takes minutes
