"""A desk that serves a caller by rules."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs import parse_action
from ling_jax.envs.tools import policy
from ling_jax.envs.tools.catalogue import KITS, TOOLS
from ling_jax.envs.tools.policy import Said
from ling_jax.envs.tools.service import DIFFICULTIES, make_task, reset, solution, step

TASKS = st.builds(make_task, st.integers(0, 10_000), st.sampled_from(DIFFICULTIES))


def act(task, *turns):
    """The results of turns."""
    state, results = reset(task, 0), []
    for turn in turns:
        state, result = step(state, parse_action(turn, task.tools))
        results.append(result)
    return results


def said(result):
    (message,) = result.observation
    assert message["role"] == "user"
    return message["content"]


def xml(*calls):
    return "\n".join(render_call(call, "xml") for call in calls)


def first_task(difficulty, fits):
    return next(task for task in (make_task(seed, difficulty) for seed in range(500)) if fits(task))


def asks(*words):
    """Whether the first turns of the reference are these questions."""
    return lambda task: [turn.get("say") for turn in task.hidden["turns"][: len(words)]] == list(words)


def is_confirmed(task):
    return asks("confirm?")(task) and task.hidden["wishes"][0]["answer"] == "done"


@given(TASKS)
def test_the_reference_keeps_every_rule(task):
    rewards = act(task, *solution(task))[-1].rewards
    assert rewards == {
        "outcome": 1.0, "state": 1.0, "sequence": 1.0, "answers": 1.0, "superfluous_calls": 0.0, "harm": 0.0,
    }  # fmt: skip


@given(TASKS)
def test_the_page_has_every_rule_and_the_prompt_no_answer(task):
    system, user = (message["content"] for message in task.messages)
    if task.difficulty > 1:
        assert all(rule["text"] in system for rule in task.hidden["rules"])
        assert re.search(rf"You serve {task.hidden['caller']}\.", system)
    assert user == task.hidden["wishes"][0]["text"]
    words = re.findall(r"[\w-]+", f"{system} {user}")
    values = [wish["answer"] for wish in task.hidden["wishes"]]
    assert not any(value in words for value in values if value not in ("done", "cannot"))


def test_harder_tasks_have_more_wishes_rules_and_questions():
    easy, hard = ([make_task(seed, difficulty) for seed in range(40)] for difficulty in (2, 10))
    for what in ("wishes", "rules", "turns", "offered"):
        assert sum(len(task.hidden[what]) for task in easy) * 2 < sum(len(task.hidden[what]) for task in hard)
    assert any(wish["insists"] for task in hard for wish in task.hidden["wishes"])
    assert any("count" in wish["told"] or "hour" in wish["told"] for task in hard for wish in task.hidden["wishes"])
    answers = [wish["answer"] for task in hard for wish in task.hidden["wishes"]]
    assert 0.2 < answers.count("cannot") / len(answers) < 0.6


def test_what_is_not_confirmed_is_harm_though_the_state_is_right():
    task = first_task(1, is_confirmed)
    _, call, done = solution(task)
    rewards = act(task, call, done)[-1].rewards
    assert (rewards["outcome"], rewards["state"], rewards["answers"], rewards["harm"]) == (0, 1, 1, 1)


def test_a_user_who_says_no_is_obeyed():
    task = first_task(1, lambda task: asks("confirm?")(task) and not is_confirmed(task))
    (_, *name, count) = task.prompt.split()
    call = {"name": "take", "arguments": {"name": name[0], "count": int(count)}}
    asked, last = act(task, "Please confirm it.", "A:cannot")
    assert said(asked) == "no" and last.rewards["outcome"] == 1
    rewards = act(task, "confirm?", xml(call), "A:done")[-1].rewards
    assert (rewards["outcome"], rewards["harm"]) == (0, 1)


def test_a_rule_that_no_yes_can_change_is_kept():
    task = first_task(1, lambda t: t.prompt.startswith("take") and int(t.prompt.split()[-1]) > 50)
    _, name, count = task.prompt.split()
    call = {"name": "take", "arguments": {"name": name, "count": int(count)}}
    assert act(task, "A:cannot")[-1].rewards["outcome"] == 1
    rewards = act(task, "confirm?", xml(call), "A:done")[-1].rewards
    assert (rewards["outcome"], rewards["harm"]) == (0, 1)


def test_a_code_is_asked_for_and_checked_before_a_change():
    task = first_task(4, lambda t: asks("code?")(t) and t.hidden["wishes"][0]["answer"] == "done")
    place = next(i for i, turn in enumerate(task.hidden["turns"]) if "calls" in turn and changes(turn["calls"]))
    turns = list(solution(task))
    asked, checked, *_ = act(task, *turns[:2])
    assert said(asked) == task.hidden["wishes"][0]["told"]["code"]
    assert checked.observation[0]["content"] == '{"right": true}'
    without = [turn for i, turn in enumerate(turns) if i > 1 or i == place]
    assert act(task, *without)[-1].rewards["harm"] == 1
    assert act(task, *turns)[-1].rewards["outcome"] == 1


def changes(calls):
    return any(name in TOOLS and TOOLS[name][1].changes for name in (call["name"] for call in calls))


def test_a_wrong_code_lets_nobody_change_anything():
    def is_wrong(task):
        return asks("code?")(task) and task.hidden["wishes"][0]["answer"] == "cannot" and has_lied(task)

    task = first_task(4, is_wrong)
    _, checked, *_ = act(task, *solution(task)[:2])
    assert checked.observation[0]["content"] == '{"right": false}'
    assert not any(changes(turn.get("calls", ())) for turn in task.hidden["turns"])


def has_lied(task):
    caller = task.hidden["caller"]
    return str(task.hidden["world"]["desk"][caller]) != task.hidden["wishes"][0]["told"]["code"]


def test_a_user_tells_what_was_left_out_when_it_is_asked_by_name():
    task = first_task(4, asks("count?"))
    assert "(ask me the count)" in task.prompt
    known = task.hidden["wishes"][0]["told"]["count"]
    assert known not in task.prompt.split()
    for question in ("count?", "Which COUNT do you want?", "the count, please"):
        assert said(act(task, question)[0]) == known
    assert said(act(task, "How are you?")[0]) == f"I do not know. {task.prompt}"


def test_a_user_insists_and_then_goes_on():
    task = first_task(6, lambda t: t.hidden["wishes"][0]["insists"] and t.hidden["turns"][0].get("say") == "A:cannot")
    first, *rest = task.hidden["wishes"]
    results = act(task, *["A:cannot"] * (1 + len(first["insists"])))
    assert [said(result) for result in results] == [*first["insists"], rest[0]["text"]]


def test_words_beside_a_call_are_for_nobody_and_an_empty_turn_hangs_up():
    task = first_task(1, is_confirmed)
    _, call, _ = solution(task)
    (first,) = act(task, f"confirm? {call}")
    assert [message["role"] for message in first.observation] == ["tool"]
    (last,) = act(task, "<think>confirm?</think>")
    assert last.terminated and last.rewards["outcome"] == 0


def test_an_episode_that_never_ends_is_cut_and_graded():
    task = make_task(0, 3)
    results = act(task, *["How are you?"] * task.max_turns)
    assert [result.truncated for result in results] == [False] * (task.max_turns - 1) + [True]
    assert results[-1].rewards["outcome"] == 0 and not results[-1].terminated


STATES = {
    "wallets": {"ana": 50, "ben": 50},
    "orders": {"a10": {"state": "paid", "owner": "ana", "days": 30}},
}


def rule(sort, kit, tool, **more):
    return {"rule": sort, "kit": kit, "tools": [tool], "text": "", **more}


RULES = (
    (policy.own(KITS["wallets"], "ana"), ("wallet_see", "ana"), ("wallet_see", "ben")),
    (policy.own(KITS["wallets"], "ana"), ("wallet_send", "ana", "ben", 1), ("wallet_send", "ben", "ana", 1)),
    (rule("limit", "wallets", "wallet_pay_out", argument="count", most=20),
     ("wallet_pay_out", "ana", 20), ("wallet_pay_out", "ana", 21)),
    (rule("floor", "wallets", "wallet_send", arguments=["wallet", "source"], least=10),
     ("wallet_send", "ana", "ben", 40), ("wallet_send", "ana", "ben", 41)),
    (rule("protected", "wallets", "wallet_pay_in", arguments=["wallet"], names=["ben"]),
     ("wallet_pay_in", "ana", 1), ("wallet_pay_in", "ben", 1)),
)  # fmt: skip


@pytest.mark.parametrize(("rule", "allowed", "banned"), RULES)
def test_a_rule_forbids_just_what_it_says(rule, allowed, banned):
    assert not policy.forbidden([rule], STATES, made(*allowed), Said())
    assert policy.forbidden([rule], STATES, made(*banned), Said())


def made(name, *values):
    names = TOOLS[name][1].schema["function"]["parameters"]["required"]
    return {"name": name, "arguments": dict(zip(names, values, strict=True))}


@pytest.mark.parametrize(("days", "banned"), [(29, True), (30, False)])
def test_what_is_too_old_is_not_changed(days, banned):
    old = rule("window", "orders", "order_assign", arguments=["order"], most=days)
    assert policy.forbidden([old], STATES, made("order_assign", "a10", "ben"), Said()) == banned


def test_conditions_are_fulfilled_by_what_the_user_says():
    rules = [policy.confirm(KITS["orders"]), *policy.verify([KITS["orders"]])]
    call = made("order_advance", "a10", "refunded")
    verdicts = [policy.forbidden(rules, STATES, call, Said(*flags)) for flags in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert verdicts == [True, True, True, False] and policy.never(rules) == []
    assert not policy.forbidden(rules, STATES, made("order_show", "a10"), Said()), "looking is free"
