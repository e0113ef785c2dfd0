"""Requests that a search answers."""

import collections
import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs import parse_action
from ling_jax.envs.search import quests
from ling_jax.envs.search.answers import stands_in
from ling_jax.envs.search.environment import DIFFICULTIES, make_task, reset, solution, step
from tests.helpers.survey import check, survey

SEEDS = st.integers(0, 10_000)
SMALL = st.sampled_from(DIFFICULTIES[:9])


def act(task, *turns):
    """The results of turns, one after the other."""
    state, results = reset(task, 0), []
    for turn in turns:
        state, result = step(state, parse_action(turn, task.tools))
        results.append(result)
    return results


def call(name, **arguments):
    return render_call({"name": name, "arguments": arguments}, "xml")


def told(result):
    return [message["content"] for message in result.observation]


def test_the_documented_episodes():
    task = make_task(1, 2)
    assert task.prompt == "?ole mate bus="
    first, second, last = act(task, *solution(task))
    assert solution(task) == (call("search", query="ole mate"), call("search", query="lea bus"), "A:50")
    assert told(first) == ["ole mate lea"] and told(second) == ["lea bus 50"]
    assert last.rewards == {"outcome": 1.0, "found": 1.0, "calls": 2.0, "superfluous_calls": 0.0}


@given(SEEDS, SMALL)
@settings(max_examples=30)
def test_the_answer_stands_in_the_document_alone_and_not_in_what_is_asked(seed, difficulty):
    task = make_task(seed, difficulty)
    accepted = [task.hidden["answer"], *task.hidden["aliases"]]
    asked = "\n".join(message["content"] for message in task.messages)
    assert not stands_in(asked, accepted)
    quest = quests.quest(task.hidden["universe"], difficulty)
    assert stands_in(quest.library.documents[task.hidden["evidence"]].text, accepted)


@given(SEEDS, st.sampled_from(DIFFICULTIES[3:9]))
@settings(max_examples=30)
def test_the_reference_opens_only_what_it_was_shown(seed, difficulty):
    task = make_task(seed, difficulty)
    results, seen = act(task, *solution(task)), ""
    for made, result in zip(task.hidden["calls"], results, strict=False):
        if made["name"] == "open":
            assert re.search(rf"(?m)^{made['arguments']['id']} |\[{made['arguments']['id']}\]", seen)
        assert result.error is None
        seen += "\n".join(told(result)) + "\n"
    assert results[-1].rewards["outcome"] == results[-1].rewards["found"] == 1
    assert results[-1].rewards["superfluous_calls"] == 0


def test_a_universe_is_made_again_from_its_seed():
    task = make_task(5, 7)
    first = quests.quest(task.hidden["universe"], 7).library.documents
    quests.quest.cache_clear()
    assert quests.quest(task.hidden["universe"], 7).library.documents == first
    assert len(task.content()) < 20_000 < sum(len(each.text) for each in first.values())


def test_universes_stay_what_they_are():
    """Published accuracies are of them."""
    task = make_task(3, 9)
    documents = quests.quest(task.hidden["universe"], 9).library.documents.values()
    text = "\n".join(" | ".join(document) for document in documents)
    assert task.id == "7d15cf5f69c1993f1c0694b410b31364"
    assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == "d77e3abdcc183dc7"


def test_one_search_for_the_request_shows_no_answer_of_several_links():
    shown = 0
    for seed in range(40):
        task = make_task(seed, 6 + seed % 3)
        (result,) = act(task, call("search", query=task.prompt, page=1))
        shown += stands_in(told(result)[0], [task.hidden["answer"]])
    assert shown <= 2


def test_a_guess_is_paid_but_not_found_and_a_list_of_guesses_is_wrong():
    task = make_task(2, 6)
    answer = task.hidden["answer"]
    (guessed,) = act(task, f"A:{answer}")
    assert guessed.rewards == {"outcome": 1.0, "found": 0.0, "calls": 0.0, "superfluous_calls": 0.0}
    for text in (f"A:{answer} or 1", f"A:{answer}, Torvale", answer, f"A:{answer} A:", f"A:{answer}5"):
        assert act(task, text)[0].rewards["outcome"] == 0, text


def test_the_most_frequent_answer_is_seldom_right():
    made = [make_task(seed, 4 + seed % 6) for seed in range(120)]
    _, most = collections.Counter(task.hidden["answer"] for task in made).most_common(1)[0]
    assert most <= 0.05 * len(made)


@pytest.mark.parametrize(
    ("turn", "error"),
    [
        (call("open", id="x9"), "open: no document 'x9'; ids stand at the beginning of results"),
        (call("search", query="Torvale"), "search: argument 'page' is missing"),
        (call("search", query="qqq", page=1), "search: nothing found"),
        (call("search", query="year", page=0), "search: argument 'page' is 0; expected 1 to 1000"),
        (call("contact", query="Ada", page=1), "unknown tool 'contact', did you mean 'contacts'"),
        ("<tool_call>search", "unclosed_tool_call"),
    ],
)
def test_a_bad_call_is_answered_and_the_episode_goes_on(turn, error):
    task = make_task(3, 5)
    first, *_, last = act(task, turn, *solution(task))
    assert first.error.startswith(error) and told(first) == [first.error] and not first.terminated
    assert last.rewards["outcome"] == 1


def test_results_come_a_page_at_a_time_and_end():
    task = make_task(3, 8)
    pages = [told(result)[0] for result in act(task, *[call("search", query="lies river", page=p) for p in (1, 2)])]
    ids = [[line.split()[0] for line in page.splitlines()[1:]] for page in pages]
    assert len(ids[0]) == len(ids[1]) == 5 and not set(ids[0]) & set(ids[1])
    (beyond,) = act(task, call("search", query="lies river", page=900))
    assert re.fullmatch(r"search: page 900 of \d+; nothing more", beyond.error)


def test_an_episode_without_an_end_is_cut_and_unsolved():
    task = make_task(3, 5)
    *_, last = act(task, *[call("contacts", query="works", page=1)] * task.max_turns)
    assert last.truncated and not last.terminated and last.rewards["outcome"] == 0


def give_up(rng, task):
    """A number out of the air, after no call at all."""
    return f"A:{rng.randrange(1000, 10_000)}"


@pytest.mark.slow
def test_a_thousand_searches():
    rows = survey("search", 1000, lambda task: len(task.hidden["calls"]), give_up)
    check(rows)
    assert all(row.distinct == row.tasks for row in rows)
