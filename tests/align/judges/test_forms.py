"""Forms of replies: what is in the form is read exactly, and all else is an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.align.judges.forms import Lines, Numbers, Scores, ask_redundant, ask_scores
from ling_jax.rl.judge_config import Rubric

SCORES = Scores(("logical", "concise"))
FORMS = st.one_of(st.just(SCORES), st.integers(1, 30).map(Numbers))


@given(FORMS, st.data())
def test_every_walk_along_the_form_is_in_the_form(form, data):
    pieces = []
    while options := form.following(pieces):
        assert not any(a != b and b.startswith(a) for a in options for b in options), "one piece begins another"
        pieces.append(data.draw(st.sampled_from(options)))
    parsed = form.parse("".join(pieces))
    assert len(parsed) == (len(form.names) if isinstance(form, Scores) else form.count)


def test_scores_are_ninths_in_the_order_of_the_rubrics():
    assert SCORES.parse("concise: merit 9 / defect 0\n\nlogical: merit 0 / defect 3\n") == [(0, 3 / 9), (1, 0)]


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "logical: merit 1 / defect 1",
        "logical: merit 1 / defect 1\nlogical: merit 1 / defect 1\nconcise: merit 1 / defect 1",
        "logical: merit 10 / defect 1\nconcise: merit 1 / defect 1",
        "Sure!\nlogical: merit 1 / defect 1\nconcise: merit 1 / defect 1",
        "logical: merit 1\nconcise: merit 1 / defect 1",
        "style: merit 1 / defect 1\nconcise: merit 1 / defect 1",
    ],
)
def test_scores_in_another_form_are_errors(reply):
    with pytest.raises(ValueError, match=r"expected once for each rubric|no line of rubric"):
        SCORES.parse(reply)


def test_numbers_are_flags_of_sentences():
    assert Numbers(4).parse("redundant: 2, 4.") == Numbers(4).parse("redundant: 2, 4\n") == [False, True, False, True]
    assert Numbers(3).parse("redundant: none") == [False] * 3


@pytest.mark.parametrize(
    "reply", ["", "2, 4", "redundant: 4, 2", "redundant: 5", "redundant: 0", "redundant: 2,3", "none"]
)
def test_numbers_in_another_form_are_errors(reply):
    with pytest.raises(ValueError, match="rising numbers up to 4"):
        Numbers(4).parse(reply)


def test_items_are_lines():
    assert Lines().parse("- at most  50 words\n- mention Paris\n") == ["at most 50 words", "mention Paris"]
    for reply in ("", "at most 50 words", "- a\nb", "\n".join(["- a"] * 21)):
        with pytest.raises(ValueError, match="expected 1 to 20 lines"):
            Lines().parse(reply)


@given(st.text(), st.text())
def test_an_answer_cannot_close_its_own_quotation(answer, prompt):
    """The closing tag has a hash of what is quoted."""
    text = ask_scores([Rubric(name="a", question="b?")], prompt, answer).text
    closing = text.rpartition("</answer ")[2].partition(">")[0]
    assert f"</answer {closing}>" not in answer and f"<answer {closing}>\n{answer}\n</answer {closing}>" in text


def test_sentences_are_numbered_on_one_line_each():
    text = ask_redundant("1+1?", ["a\nb.", "c."]).text
    assert "\n[1] a b.\n[2] c.\n" in text
