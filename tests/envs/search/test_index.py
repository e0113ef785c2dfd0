"""The search engine."""

from hypothesis import given
from hypothesis import strategies as st

from ling_jax.envs.search.answers import is_answer, normalise, stands_in
from ling_jax.envs.search.index import MAX_SNIPPET, Document, Index, snippet


def index(*texts):
    return Index([Document(f"d{i}", "search", f"t{i}", text) for i, text in enumerate(texts)])


def found(engine, query):
    return [document.id for document in engine.ranked(query)]


def test_rare_words_count_more_than_common_ones():
    engine = index("a red boat", "a red house", "a red house with a cello", "a red mill")
    assert found(engine, "red cello")[0] == "d2"
    assert found(engine, "Cello!") == ["d2"] and found(engine, "nothing") == [] and found(engine, "") == []


def test_shorter_documents_and_more_matches_come_first():
    assert found(index("oboe and many other words of no use", "oboe"), "oboe") == ["d1", "d0"]
    assert found(index("oboe", "oboe flute", "flute oboe harp"), "oboe flute harp")[0] == "d2"


def test_equal_documents_keep_their_order():
    assert found(index("same text", "same text", "same text"), "text") == ["d0", "d1", "d2"]


@given(st.lists(st.text(alphabet="abc ", max_size=12), max_size=8), st.text(alphabet="abc ", max_size=8))
def test_just_the_documents_with_a_word_of_the_query_are_found(texts, query):
    wanted = {f"d{i}" for i, text in enumerate(texts) if set(query.split()) & set(text.split())}
    assert set(found(index(*texts), query)) == wanted


def test_a_snippet_is_the_sentence_that_fits_best():
    text = "Ada is a baker. Ada plays the oboe. The year is 1950."
    assert snippet(text, "oboe Ada") == "Ada plays the oboe."
    assert snippet(text, "nothing") == "Ada is a baker."
    assert len(snippet("word " * 50, "word")) == MAX_SNIPPET


def test_answers_are_compared_as_names_and_numbers():
    for text in ("A:Garow", "so A: the garow.", "A: **Garow** ", "A:x\nA:Garow", "A:River Garow"):
        assert is_answer(text, ["Garow", "river Garow"]), text
    assert is_answer("A:1,234", ["1234"]) and normalise("The  Esk!") == "esk"
    for text in ("Garow", "A:Garo", "A:Garow Esk", "A:", ""):
        assert not is_answer(text, ["Garow", "river Garow"]), text


def test_an_answer_stands_in_a_text_as_a_whole_word():
    assert stands_in("born in 1950.", ["1950"]) and not stands_in("code 19501", ["1950"])
