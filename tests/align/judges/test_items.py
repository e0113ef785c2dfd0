"""Item rules: an instruction's demands, and whether a text keeps them."""

import pytest

from ling_jax.align.judges.items import check_of, split_items

THREE = "- a\n- b\n- c"


@pytest.mark.parametrize(
    ("item", "kept", "broken"),
    [
        ("exactly three bullet points", THREE, THREE + "\n- d"),
        ("at most 3 words", "one two three", "one two three four"),
        ("no more than 3 words", "one two three", "one two three four"),
        ("fewer than 3 words", "one two", "one two three"),
        ("at least two sentences", "It is 3.5. Yes!", "It is 3.5."),
        ("more than 1 line", "a\n\nb", "a\n\n"),
        ("exactly 2 paragraphs", "a\nb\n\nc", "a\nb\nc"),
        ("mention Paris", "In PARIS.", "In comparison."),
        ('use the word "because"', "Because of it", "becauses"),
        ("do not mention 'the sea'", "The seal", "by the sea."),
        ("without using however,", "But", "However"),
        ('start with "Dear Ann"', "dear ann, hello", "Hello, dear Ann"),
        ("end with Goodbye", "Well. Goodbye!", "Goodbye, Ann"),
        ("in lower case", "abc", "Abc"),
        ("all uppercase", "ABC 1", "ABc"),
        ("as JSON", '{"a": 1}', "{a: 1}"),
    ],
)
def test_an_item_that_can_be_counted_is_checked_by_a_rule(item, kept, broken):
    check = check_of(item)
    assert check is not None and check(kept) and not check(broken)


@pytest.mark.parametrize(
    "item", ["explain why the sky is blue", "be kind", "mention the causes of the war in detail", ""]
)
def test_what_no_rule_checks_is_left_to_a_model(item):
    assert check_of(item) is None


def test_an_instruction_is_split_into_its_items():
    text = (
        "Tell me about rain. Write exactly three bullet points and mention clouds; use at most 50 words, in lower case."
    )
    assert split_items(text) == [
        "exactly three bullet points", "mention clouds", "at most 50 words", "in lower case", "Tell me about rain.",
    ]  # fmt: skip
    assert all(check_of(item) for item in split_items(text)[:4])


def test_every_split_item_means_one_rule():
    """A sentence with several demands gives each its own item."""
    items = split_items("At least 2 words and at most 4 words, but do not mention snow.")
    assert [check_of(item)("the snow falls") for item in items] == [True, True, False]
