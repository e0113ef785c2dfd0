"""Data sets of reasoning-gym, by name."""

import asyncio
import importlib.util

import pytest

from ling_jax.envs import HELD_OUT_SEEDS, environment, is_held_out, parse_action
from ling_jax.envs.reasoning import gym
from ling_jax.envs.sources import TaskSource, check_tasks, tasks

THERE = importlib.util.find_spec("reasoning_gym") is not None
needs_it = pytest.mark.skipif(not THERE, reason="needs pip install 'ling-jax[gym]'")
DATASETS = (
    "leg_counting",
    "chain_sum",
    "knights_knaves",
    "zebra_puzzles",
    "spell_backward",
    "mini_sudoku",
    "syllogism",
)


def play(env, task, text):
    async def played():
        session = env.session()
        await session.open(task, 0)
        return await session.step(parse_action(text))

    return asyncio.run(played())


@pytest.mark.skipif(THERE, reason="it is installed")
def test_without_the_package_one_line_says_what_to_install():
    with pytest.raises(ValueError, match=r"reasoning_gym:leg_counting.*pip install 'ling-jax\[gym\]'"):
        check_tasks(TaskSource(environment="reasoning_gym:leg_counting", difficulties=(1,), count=1), "tasks[0]")


@needs_it
@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_is_an_environment(name):
    env = environment(f"reasoning_gym:{name}")
    for difficulty in env.DIFFICULTIES[:2]:
        for seed in (3, HELD_OUT_SEEDS + 3):
            task = env.make_task(seed, difficulty)
            assert task.content() == env.make_task(seed, difficulty).content()
            assert is_held_out(task) == (seed >= HELD_OUT_SEEDS)
            assert play(env, task, env.solution(task)[0]).rewards["outcome"] == 1
            for text in ("", task.prompt, "A:", "A: no", "A:" + "x" * 5000):
                assert play(env, task, text).rewards["outcome"] == 0, text


@needs_it
def test_a_source_names_it_and_its_levels_are_the_difficulties():
    source = TaskSource(environment="reasoning_gym:leg_counting", difficulties=(1, 5), count=4)
    check_tasks(source, "tasks[0]")
    assert [task.difficulty for task in tasks(source)] == [1, 5, 1, 5]
    with pytest.raises(ValueError, match="reasoning_gym:leg_counting has 1 to"):
        check_tasks(TaskSource(environment="reasoning_gym:leg_counting", difficulties=(99,), count=1), "tasks[0]")


@needs_it
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("leg_count", "did you mean 'leg_counting'"),
        ("string_insertion", "which evaluates text as Python"),
        ("countdown", "which evaluates text as Python"),
    ],
)
def test_data_sets_that_are_not_there_or_run_answers_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        environment(f"reasoning_gym:{name}")


def test_code_that_runs_text_is_seen():
    for text in ("x = eval(answer)", "sp.parse_expr(answer)", "exec (a)".replace(" ", ""), "sympify(a)"):
        assert gym.RUNS_CODE.search(text), text
    for text in ("ast.literal_eval(answer)", "evaluate(x)", "model.eval_loss"):
        assert not gym.RUNS_CODE.search(text), text
