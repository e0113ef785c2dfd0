"""Toolkits: a kind of state machine in a domain."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.envs.tools.call import ToolError, argument_error, call_tool, carry_out
from ling_jax.envs.tools.catalogue import KINDS, KITS, LARGE, SMALL, TOOLS
from ling_jax.envs.tools.environment import KITS as FIRST_KITS
from ling_jax.envs.tools.episode import state_hash
from ling_jax.envs.tools.kits import CANNOT, DONE

SEEDS = st.integers(0, 10_000)
FEW = settings(max_examples=12)  # of each of the toolkits
each = pytest.mark.parametrize("name", KITS)


def world_of(name, seed, size=5):
    rng = random.Random(seed)
    return rng, KITS[name].initial(rng, size)


def carried_out(name, state, calls):
    """(state, results) after calls, none of which is refused."""
    results = []
    for call in calls:
        world, result, error = carry_out(TOOLS, {name: state}, call)
        assert error is None, (call, error)
        state = world[name]
        results.append(result)
    return state, results


def test_the_catalogue_has_more_than_forty_toolkits_of_ten_kinds():
    assert len(LARGE) >= 55 and len(KINDS) == 10
    assert len(TOOLS) == sum(len(kit.tools) for kit in KITS.values()) >= 250, "a tool's name is one tool's"
    assert not TOOLS.keys() & {tool.name for kit in FIRST_KITS.values() for tool in kit.TOOLS}
    for name in LARGE:
        kit = KITS[name]
        assert {tool.changes for tool in kit.tools} == {True, False} and len(kit.tools) >= 4


@each
def test_schemas_are_typed_and_described(name):
    for tool in KITS[name].tools:
        function = tool.schema["function"]
        parameters = function["parameters"]
        assert tool.schema["type"] == "function" and function["description"].endswith(".")
        assert "{" not in function["description"]
        assert parameters["required"] == list(parameters["properties"]) and parameters["required"]
        assert all(schema["type"] in ("string", "integer") for schema in parameters["properties"].values())


@each
@FEW
@given(seed=SEEDS)
def test_every_wish_can_be_fulfilled_and_changes_what_it_says(name, seed):
    rng, state = world_of(name, seed)
    for wish in KITS[name].wishes(rng, state):
        after, results = carried_out(name, state, wish.calls)
        changing = any(TOOLS[call["name"]][1].changes for call in wish.calls)
        assert (after != state) == changing, wish
        assert changing or wish.answer not in (DONE, CANNOT), "a wish that changes nothing asks for something"
        if wish.answer != DONE:
            told = json.dumps(results)
            counted = str(max(len(result) for result in results if isinstance(result, list | dict)))
            assert wish.answer in told or wish.answer == counted, "a tool gives the answer"
        assert "{" not in wish.text and (not wish.told or "ask me the" in wish.vague)


@each
@FEW
@given(seed=SEEDS, size=st.integers(4, 30))
def test_the_same_draws_give_the_same_state(name, seed, size):
    first, second = (KITS[name].initial(random.Random(seed), size) for _ in range(2))
    assert json.dumps(first) == json.dumps(second) and state_hash(first) == state_hash(second)


def arguments(data, tool, state):
    """Values of a tool's parameters, right and wrong ones."""
    names = sorted(state.get("messages", state))
    words = st.sampled_from([*names, *json.dumps(state).replace('"', " ").split(), "nobody"])
    found = {}
    for name, schema in tool.schema["function"]["parameters"]["properties"].items():
        right = words if schema["type"] == "string" else st.integers(-3, 120)
        if "enum" in schema:
            right = st.sampled_from(schema["enum"])
        found[name] = data.draw(st.one_of(right, right, st.none(), st.text(max_size=2), st.booleans()))
    return found


@each
@FEW
@given(data=st.data(), seed=SEEDS)
def test_a_refused_call_and_one_that_reads_change_nothing(name, data, seed):
    _, state = world_of(name, seed)
    tool = data.draw(st.sampled_from(KITS[name].tools))
    before = json.dumps(state)
    call = {"name": tool.name, "arguments": arguments(data, tool, state)}
    after, result, error = call_tool({tool.name: tool}, state, call)
    assert json.dumps(state) == before, "the state that was given is as it was"
    assert (result is None) != (error is None)
    if error is not None or not tool.changes:
        assert state_hash(after) == state_hash(state)
    if argument_error(tool.schema["function"]["parameters"], call["arguments"]):
        assert error is not None
    json.dumps([after, result])


@given(st.sampled_from(LARGE), SEEDS)
def test_equal_states_have_equal_hashes_and_others_have_others(name, seed):
    rng, state = world_of(name, seed)
    turned = json.loads(json.dumps(dict(reversed(state.items()))))
    assert state_hash(turned) == state_hash(state)
    changing = [w for w in KITS[name].wishes(rng, state) if any(TOOLS[c["name"]][1].changes for c in w.calls)]
    after, _ = carried_out(name, state, rng.choice(changing).calls)
    assert state_hash(after) != state_hash(state)


REFUSALS = (
    ("wallets", {"ana": 5, "ben": 1}, ("wallet_pay_out", "ana", 6), "'ana' has 5, which is less than 6"),
    ("wallets", {"ana": 5, "ben": 1}, ("wallet_send", "ana", "ana", 1), "the same; nothing to move"),
    ("wallets", {"ana": 5}, ("wallet_see", "anna"), "unknown wallet 'anna', did you mean 'ana'"),
    ("rooms", {"red": {"monday 9": "ana"}}, ("room_book", "red", "monday", 9, "ben"), "is taken on monday 9"),
    ("rooms", {"red": {}}, ("room_cancel", "red", "monday", 9), "not booked on monday 9"),
    ("warehouse", {"rug": {"free": 2, "held": 1}}, ("stock_out", "rug", 3), "2 of 'rug' are free"),
    ("warehouse", {"rug": {"free": 2, "held": 1}}, ("stock_release", "rug", 2), "1 of 'rug' are held"),
    ("restaurant", {"bar": ["ana"]}, ("table_wait", "bar", "ana"), "'ana' is in 'bar' already"),
    ("restaurant", {"bar": []}, ("table_seat", "bar"), "nobody is in 'bar'"),
    ("staff", {"ana": {"site": "oslo"}}, ("staff_update", "ana", "site", "rome"), "site cannot be 'rome'"),
    ("doors", {"lab": ["ana"]}, ("door_allow", "lab", "ana"), "'ana' has 'lab' already"),
    ("doors", {"lab": ["ana"]}, ("door_block", "lab", "ben"), "'ben' does not have 'lab'"),
    ("mail", {"messages": {}, "sent": []}, ("mail_delete", "m10"), "unknown mail 'm10'"),
    ("orders", {"a1": {"state": "paid", "owner": "ana", "days": 3}}, ("order_advance", "a1", "delivered"),
     "is paid; after that comes packed or refunded"),
    ("buses", {"red": ["mill", "gate"]}, ("bus_add_stop", "red", "gate", "mill"), "'gate' is on 'red' already"),
    ("buses", {"red": ["mill"]}, ("bus_drop_stop", "red", "gate"), "'gate' is not on 'red'"),
    ("lamps", {"hall": {"power": "off", "level": 3}}, ("lamp_dim", "hall", 9), "is off; switch it on before"),
    ("lamps", {"hall": {"power": "off", "level": 3}}, ("lamp_dim", "hall", 101), "expected 0 to 100"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "state", "made", "message"), REFUSALS)
def test_a_toolkit_refuses_what_cannot_be(name, state, made, message):
    tool = TOOLS[made[0]][1]
    names = tool.schema["function"]["parameters"]["required"]
    call = {"name": tool.name, "arguments": dict(zip(names, made[1:], strict=True))}
    after, _, error = call_tool({tool.name: tool}, state, call)
    assert message in error and after == state


def test_the_smallest_toolkits_have_short_wishes():
    for name in SMALL:
        rng, state = world_of(name, 0)
        assert all(len(wish.text) <= 12 for wish in KITS[name].wishes(rng, state))


def test_a_kind_raises_its_refusals_for_the_tools_to_answer():
    with pytest.raises(ToolError, match="has 5"):
        TOOLS["wallet_pay_out"][1].run({"ana": 5}, wallet="ana", count=6)
