"""Tasks for tools: calls are carried out, answered and graded."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs import parse_action
from ling_jax.envs.tools.call import ToolError, call_tool
from ling_jax.envs.tools.environment import DIFFICULTIES, KITS, TOOLS, make_task, reset, solution, step

ALL_TOOLS = {name: tool for name, (_, tool) in TOOLS.items()}


def act(task, *actions):
    """The results of turns, one after the other."""
    return states_and_results(task, *actions)[1]


def states_and_results(task, *actions):
    states, results = [reset(task, 0)], []
    for action in actions:
        state, result = step(states[-1], parse_action(action, task.tools))
        states.append(state)
        results.append(result)
    return states, results


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


def first_task(difficulty, condition):
    return next(filter(condition, (make_task(seed, difficulty) for seed in range(99))))


def bank_task():
    return first_task(3, lambda task: task.hidden["calls"][0]["name"].startswith("bank"))


@given(st.integers(0, 10_000), st.sampled_from(DIFFICULTIES))
def test_difficulty_is_the_number_of_calls(seed, difficulty):
    task = make_task(seed, difficulty)
    assert len(task.hidden["calls"]) == difficulty
    assert task.hidden["goal"] != task.hidden["world"]
    offered = {schema["function"]["name"] for schema in task.tools}
    assert {made["name"] for made in task.hidden["calls"]} <= offered
    assert len({TOOLS[name][0] for name in offered}) > 1, "irrelevant tools are among those offered"


def test_some_wishes_need_what_a_tool_tells():
    reads = 0
    for seed in range(60):
        task = make_task(seed, 2)
        first, second = task.hidden["calls"]
        if first["name"] in ("bank_balance", "inventory_count", "calendar_find"):
            reads += 1
            told = json.loads(act(task, render_call(first, "xml"))[0].observation[0]["content"])
            needed = next(value for value in second["arguments"].values() if isinstance(value, int))
            assert str(needed) not in task.prompt
            assert needed - 1 in told.values() or needed in told.values()
    assert reads > 5


@pytest.mark.parametrize("tool_format", ["xml", "json"])
def test_several_calls_in_one_turn_are_answered_in_order(tool_format):
    task = make_task(5, 4)
    turn = "".join(render_call(made, tool_format) for made in task.hidden["calls"])
    first, last = act(task, turn, "Done.")
    assert len(first.observation) == 4 and not first.rewards
    assert last.rewards == {"outcome": 1.0, "state": 1.0, "sequence": 1.0, "superfluous_calls": 0.0}
    assert last.terminated and last.observation == []


def test_looking_is_free_and_a_refused_call_can_be_made_good():
    task = bank_task()
    account = next(iter(task.hidden["world"]["bank"]))
    look = render_call(call("bank_balance", account=account), "xml")
    too_much = render_call(call("bank_transfer", source=account, target="nobody", amount=1), "xml")
    results = act(task, look, too_much, *solution(task))
    assert "unknown account 'nobody'" in results[1].error
    assert json.loads(results[1].observation[0]["content"]) == {"error": results[1].error}
    assert results[-1].rewards["outcome"] == 1 and results[-1].rewards["superfluous_calls"] == 2


def test_the_right_state_by_other_calls_is_not_the_right_sequence():
    task = bank_task()
    account = next(iter(task.hidden["world"]["bank"]))
    other = next(name for name in task.hidden["world"]["bank"] if name != account)
    there = call("bank_transfer", source=account, target=other, amount=1)
    back = call("bank_transfer", source=other, target=account, amount=1)
    *calls, done = solution(task)
    last = act(task, render_call(there, "xml") + render_call(back, "xml"), *calls, done)[-1]
    assert last.rewards == {"outcome": 0.0, "state": 1.0, "sequence": 0.0, "superfluous_calls": 2.0}


def test_a_change_of_an_irrelevant_tools_world_is_wrong():
    task = first_task(1, lambda task: "inventory_receive" in str(task.tools) and "item" not in task.prompt)
    item = next(iter(task.hidden["world"]["inventory"]))
    calls = render_call(call("inventory_receive", item=item, count=1), "xml")
    last = act(task, calls, *solution(task))[-1]
    assert last.rewards == {"outcome": 0.0, "state": 0.0, "sequence": 0.0, "superfluous_calls": 1.0}


@pytest.mark.parametrize("missing", range(3))
def test_a_missing_call_is_wrong(missing):
    task = first_task(3, lambda task: all(TOOLS[made["name"]][1].changes for made in task.hidden["calls"]))
    *calls, done = solution(task)
    last = act(task, *(c for i, c in enumerate(calls) if i != missing), done)[-1]
    assert (last.rewards["outcome"], last.rewards["sequence"]) == (0, 0)


def test_an_episode_is_cut_at_max_turns_and_still_graded():
    task = bank_task()
    look = render_call(call("bank_balance", account="nobody"), "xml")
    results = act(task, *([look] * task.max_turns))
    assert [result.truncated for result in results] == [False] * (task.max_turns - 1) + [True]
    assert not results[-1].terminated and results[-1].rewards["outcome"] == 0


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ("<tool_call>bank_balance", "unclosed_tool_call: write each call as the system message says"),
        ("<tool_call>{}</tool_call>", "malformed_tool_call: write"),
        ("<think>on and on", "unclosed_think: write"),
        (
            render_call(call("bank_balanse", account="ana"), "xml"),
            "unknown tool 'bank_balanse', did you mean 'bank_balance'?",
        ),
        (render_call(call("bank_balance"), "json"), "bank_balance: argument 'account' is missing"),
        (render_call(call("bank_balance", acount="a"), "xml"), "bank_balance: unknown argument 'acount', did you mean"),
        (
            render_call(call("bank_balance", account=7), "json"),
            "argument 'account' is 7; expected a value of type string",
        ),
        (
            render_call(call("bank_deposit", account="a", amount=True), "json"),
            "'amount' is True; expected a value of type",
        ),
        (render_call(call("bank_deposit", account="a", amount=0), "xml"), "'amount' is 0; expected 1 to 1000000"),
        (render_call(call("bank_deposit", account="a", amount=10**4000), "xml"), "expected 1 to 1000000"),
        (f'<tool_call>{{"name": "bank_balance", "arguments": {"[" * 9999}</tool_call>', "malformed_tool_call"),
    ],
)
def test_a_malformed_call_is_answered_and_changes_nothing(action, error):
    task = bank_task()
    (_, state), (result,) = states_and_results(task, action)
    assert error in result.error
    assert result.observation[0]["role"] == "tool"
    assert json.loads(result.observation[0]["content"])["error"] == result.error
    assert (state.episode.world, result.terminated, result.rewards) == (task.hidden["world"], False, {})


def values(schema, state):
    """Arguments of a parameter: right, wrong and absurd ones."""
    right = st.sampled_from(sorted(state)) if schema["type"] == "string" else st.integers(-2, 600)
    return st.one_of(right, st.sampled_from(schema.get("enum", [""])), st.none(), st.text(max_size=3), st.booleans())


@given(st.data())
def test_tools_are_pure_and_never_raise(data):
    task = make_task(0, 1)
    kit, tool = data.draw(st.sampled_from(sorted(TOOLS.values(), key=lambda pair: pair[1].name)))
    state = task.hidden["world"][kit]
    before = json.dumps(state)
    parameters = tool.schema["function"]["parameters"]["properties"]
    arguments = {name: data.draw(values(schema, state)) for name, schema in parameters.items()}
    after, result, error = call_tool(ALL_TOOLS, state, {"name": tool.name, "arguments": arguments})
    assert json.dumps(state) == before
    assert (result is None) != (error is None)
    assert error is None or after == state
    assert tool.changes or after == state
    json.dumps([after, result])


def test_a_bank_keeps_its_money_and_its_books():
    state = {"ana": 10, "ben": 0}
    bank = KITS["bank"]
    assert bank.bank_transfer(state, "ana", "ben", 4)[0] == {"ana": 6, "ben": 4}
    with pytest.raises(ToolError, match="'ana' has 10, which is less than 11"):
        bank.bank_transfer(state, "ana", "ben", 11)
    with pytest.raises(ToolError, match="one account"):
        bank.bank_transfer(state, "ana", "ana", 1)


def test_a_calendar_has_one_meeting_an_hour():
    state = {"demo": ["monday", 9]}
    calendar = KITS["calendar"]
    assert calendar.calendar_move(state, "demo", "friday", 10)[0] == {"demo": ["friday", 10]}
    assert calendar.calendar_cancel(state, "demo")[0] == {}
    for change, message in (
        (lambda: calendar.calendar_add(state, "retro", "monday", 9), "'demo' is on monday at 9; choose a free hour"),
        (lambda: calendar.calendar_add(state, "demo", "monday", 10), "there is a meeting 'demo' already"),
        (lambda: calendar.calendar_cancel(state, "demmo"), "unknown meeting 'demmo', did you mean 'demo'"),
    ):
        with pytest.raises(ToolError, match=message):
            change()


def test_schemas_are_in_openais_form():
    for tool in ALL_TOOLS.values():
        assert tool.schema["type"] == "function"
        parameters = tool.schema["function"]["parameters"]
        assert tool.schema["function"]["description"] and parameters["type"] == "object"
        assert parameters["required"] == list(parameters["properties"])
