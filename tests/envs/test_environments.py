"""What every environment promises."""

import asyncio
import dataclasses
import functools
import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.chat.template import ChatTemplate, check_messages
from ling_jax.envs import HELD_OUT_SEEDS, NAMES, environment, is_held_out, parse_action
from ling_jax.envs.base import draw_task

TASKS = 200
MADE = [name for name in NAMES if name not in ("questions", "harbor")]  # those are read from files
each = pytest.mark.parametrize("name", MADE)
pure = pytest.mark.parametrize("name", [name for name in MADE if hasattr(environment(name), "reset")])  # without a box


@functools.cache
def tasks(name):
    """200 tasks of all difficulties, training and held-out ones."""
    env = environment(name)
    numbered = enumerate(itertools.islice(itertools.cycle(env.DIFFICULTIES), TASKS))
    return [env.make_task(i + (HELD_OUT_SEEDS if i % 10 == 0 else 0), difficulty) for i, difficulty in numbered]


def play(env, task, policy):
    """The rewards of an episode; `policy(messages)` writes each turn."""
    state, messages = env.reset(task, seed=0), list(task.messages)
    for _ in range(task.max_turns):
        action = policy(messages)
        state, result = env.step(state, parse_action(action, task.tools))
        messages += [{"role": "assistant", "content": action}, *result.observation]
        check_messages(messages)
        assert bool(result.rewards) == (result.terminated or result.truncated)
        if result.rewards:
            return result.rewards
    raise AssertionError(f"{task.id} went on after max_turns")


def share_solved(name, policy_of):
    outcomes = [play(environment(name), task, policy_of(task))["outcome"] for task in tasks(name)]
    return sum(outcomes) / len(outcomes)


@pure
def test_the_reference_solver_solves_everything(name):
    def scripted(task):
        turns = iter(environment(name).solution(task))
        return lambda messages: next(turns)

    assert share_solved(name, scripted) == 1


@pure
@pytest.mark.parametrize(
    "policy_of",
    [
        lambda task: lambda messages: "",
        lambda task: lambda messages: task.prompt,
        lambda task: lambda messages: messages[-1]["content"],
        lambda task: lambda messages: "".join(p.text for p in ChatTemplate().render(task.messages, tools=task.tools)),
        lambda task: lambda messages: "A:",
    ],
    ids=["null", "copy the prompt", "copy the last message", "copy the rendered prompt", "empty answer"],
)
def test_saying_nothing_and_copying_solve_nothing(name, policy_of):
    assert share_solved(name, policy_of) == 0


@each
@settings(max_examples=30)  # some puzzles take a tenth of a second to make
@given(st.data())
def test_a_seed_and_a_difficulty_mean_the_same_bytes(name, data):
    env = environment(name)
    seed, difficulty = data.draw(st.integers(0, 2**33)), data.draw(st.sampled_from(env.DIFFICULTIES))
    first, second = (env.make_task(seed, difficulty) for _ in range(2))
    assert first.content() == second.content()
    assert (first.seed, first.difficulty, first.environment) == (seed, difficulty, name)


@pytest.mark.parametrize(
    ("name", "task_id"),
    [
        ("running_sums", "1d3d4d053d04043d37ace558b117478f"),
        ("digit_sums", "34c5980822cbfd9945f3a6d787e799fe"),
        ("ordering", "905271ccde52b4ca0cf68c75080ac8cd"),
        ("tools", "8b9eb2c23075e48008bfff782346e305"),
        ("needle", "cb4d0abd0a4c9a64de43128e3a373ae3"),
        ("lookup", "af9b96ae4c998537c33c826bbd68cd3b"),
        ("functions", "49e584090ddbe1d2282117074fb27caf"),
        ("repositories", "592f40ae8a3c4a4d8abb177656424f8b"),
        ("toolkits", "d248db075e125fb4084299fae466040b"),
        ("service", "8343d6185c812e44a310e28d20a6e82d"),
        ("safety", "86e019c72b58209b1b26734f24b11de8"),
        ("knights", "29cf66491bbf044dc9f7011a34d360d9"),
        ("grid", "f4983f2b4ba6ff55a7164b2aaf7cbb37"),
        ("scheduling", "4e0c636e5eddd59455dfc538c4196fd6"),
        ("search", "91e514c9c786a8eb034c4557932b4ec7"),
        ("workflow", "135c0e4459fff482485b33d41537bb52"),
    ],
)
def test_tasks_are_the_same_on_every_machine(name, task_id):
    assert environment(name).make_task(seed=3, difficulty=4).id == task_id


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("running_sums", "d884872f692af9dc"),
        ("digit_sums", "07ff63d2724a9cee"),
        ("ordering", "e064d784cd2db2d2"),
        ("tools", "d38477f967f0ec69"),
        ("needle", "3d45722ebf2f4a06"),
        ("lookup", "9e2ea4eea3094b72"),
        ("functions", "2c373c6747c8aceb"),
        ("repositories", "f23d29fdc31970e3"),
        ("toolkits", "e3cda87815ad919a"),
        ("service", "3528d4522676e9a1"),
        ("safety", "a6c7d3c915bc0bc7"),
        ("knights", "5955ffb8e5f36bec"),
        ("grid", "1252a4be91a6fd0c"),
        ("scheduling", "53818cb23b9aae96"),
        ("search", "4b99455d6748b326"),
        ("workflow", "ce110413e32050a3"),
    ],
)
def test_held_out_tasks_stay_what_they_are(name, digest):
    """Published accuracies are of them."""
    env = environment(name)
    found = [env.make_task(HELD_OUT_SEEDS + i, difficulty).id for difficulty in env.DIFFICULTIES[:3] for i in range(8)]
    assert hashlib.blake2b("".join(found).encode(), digest_size=8).hexdigest() == digest


@each
def test_ids_differ_just_where_content_differs(name):
    drawn = [environment(name).make_task(seed, environment(name).DIFFICULTIES[0]) for seed in range(400)]
    for a, b in itertools.combinations(drawn, 2):
        assert (a.id == b.id) == (a.prompt == b.prompt and a.hidden == b.hidden and a.tools == b.tools)
    task = drawn[0]
    assert dataclasses.replace(task, seed=9).id == task.id
    for change in ({"max_tokens": 1}, {"max_turns": 99}, {"difficulty": 7}, {"hidden": {}}, {"tools": [{}]}):
        assert dataclasses.replace(task, **change).id != task.id


@each
def test_no_training_seed_makes_a_held_out_prompt(name):
    env = environment(name)
    lowest = env.DIFFICULTIES[0]  # the smallest space, where chance alone would make many twice
    train = [env.make_task(seed, lowest) for seed in range(600)]
    held_out = [env.make_task(HELD_OUT_SEEDS + seed, lowest) for seed in range(150)]
    assert not {task.prompt for task in train} & {task.prompt for task in held_out}
    assert all(is_held_out(task) for task in held_out) and not any(is_held_out(task) for task in train)


@each
def test_prompts_render_as_conversations(name):
    task = environment(name).make_task(0, 3)
    text = "".join(piece.text for piece in ChatTemplate().render(task.messages, tools=task.tools, prompt=True))
    assert f"<role>HUMAN</role>{task.prompt}<|role_end|>" in text
    assert all(schema["function"]["name"] in text for schema in task.tools)


@each
def test_out_of_range_is_refused_by_its_bounds(name):
    env = environment(name)
    low, high = env.DIFFICULTIES[0], env.DIFFICULTIES[-1]
    for difficulty in (low - 1, high + 1, -3):
        with pytest.raises(ValueError, match=f"{name}: difficulty is {difficulty}; expected {low} to {high}"):
            env.make_task(0, difficulty)
    with pytest.raises(ValueError, match=f"{name}: seed is -1; expected an integer from 0"):
        env.make_task(-1, low)


@pure
def test_a_session_is_the_functions_of_its_environment_and_acts_again_the_same(name):
    env = environment(name)
    task = env.make_task(7, 3)
    actions = [parse_action(turn, task.tools) for turn in env.solution(task)]

    async def results():
        session = env.session()
        assert session.instant and session.replayable
        await session.open(task, 0)
        found = [await session.step(action) for action in actions]
        await session.close()
        return found

    state, wanted = env.reset(task, 0), []
    for action in actions:
        state, result = env.step(state, action)
        wanted.append(result)
    assert asyncio.run(results()) == wanted == asyncio.run(results()) and wanted[-1].rewards["outcome"] == 1


def test_an_action_is_parsed_once_and_keeps_its_words():
    raw = (
        "<think>hm</think>a<tool_call>get\n<arg_key>name</arg_key>\n<arg_value>c</arg_value>\n</tool_call>b<tool_call>"
    )
    action = parse_action(raw)
    assert (action.reasoning, action.content, action.raw) == ("hm", "ab<tool_call>", raw)
    assert action.tool_calls == ({"name": "get", "arguments": {"name": "c"}},)
    assert action.errors == ("unclosed_tool_call",)


@pure
def test_an_ended_episode_is_over(name):
    task = environment(name).make_task(0, 2)
    ended, _ = environment(name).step(environment(name).reset(task, 0), parse_action(""))
    with pytest.raises(ValueError, match="the episode has ended"):
        environment(name).step(ended, parse_action(""))


@pure
@given(st.data())
def test_a_turn_can_be_any_text(name, data):
    task = environment(name).make_task(1, 2)
    parts = st.one_of(
        st.text(), st.sampled_from(["A:", "<tool_call>", "</tool_call>", "<think>", '{"name": "f"}', "\n"])
    )
    action = parse_action("".join(data.draw(st.lists(parts, max_size=6))), task.tools)
    start = environment(name).reset(task, 0)
    assert environment(name).step(start, action) == environment(name).step(start, action)


@given(st.integers(0, 100), st.integers(0, 2**32))
def test_the_split_depends_on_the_messages_alone(number, seed):
    def draw(rng, difficulty):
        del difficulty
        content = str(rng.randrange(number + 100))
        return dict(messages=[{"role": "user", "content": content}], hidden={}, max_tokens=1, max_turns=1)

    task = draw_task("numbers", seed, 1, range(1, 2), draw)
    assert is_held_out(task) == (seed >= HELD_OUT_SEEDS)
    assert is_held_out(dataclasses.replace(task, seed=0, max_tokens=5, hidden={"a": 1})) == is_held_out(task)
