"""Small Python projects with a mistake or several in them: find out why tests fail, and mend the code.

A project is a package of modules with unittest files beside it, made from seed modules of our own (`mutants`) under
names that a seed draws (`variants`). The agent sees some of the tests, one that fails for each mistake among them. The
verdict is that of all tests: those that the mistakes break have to pass (Ling 2.6 report §3.2.1), and the others still.
"""

import functools
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from ling_jax import data
from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.base import HELD_OUT_FRACTION, HELD_OUT_SEEDS, Task, draw_task
from ling_jax.envs.coding import mutants, variants, workspace
from ling_jax.envs.coding.integrity import flat
from ling_jax.envs.coding.mutants import Mutant
from ling_jax.envs.coding.repository_session import RepositorySession

NAME = "repositories"
SANDBOXED = True
MODULES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4}  # by difficulty, our choice: modules, each with a file of tests,
MISTAKES = {1: 1, 2: 1, 3: 1, 4: 2, 5: 3, 6: 4}  # and how many of them have a mistake
DIFFICULTIES = range(1, 7)  # 1 names test and function, 2 and 3 the test, the others say that tests fail
SEEN = 0.5  # our choice: the share of the other tests that the agent sees
TURNS_PER_MISTAKE = 8  # our choice: to look, to run, to edit, to run again
TOKENS_PER_TURN = 512  # our choice
SYSTEM = (
    "You mend a Python project with the tools. The work folder is the project's root; `python3 -m unittest` runs the "
    "tests. The tests are right, leave them as they are; more tests than you see have to pass in the end. Call "
    f"{workspace.DONE} when the work is done."
)


def make_task(seed: int, difficulty: int) -> Task:
    """A project with `MISTAKES[difficulty]` mistakes, each in another module.

    Held-out tasks have mistakes that no training task has, under whatever names.
    """
    held_out = isinstance(seed, int) and seed >= HELD_OUT_SEEDS
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, functools.partial(_draw, held_out=held_out))


def session() -> RepositorySession:
    """An episode in a box."""
    return RepositorySession()


def solution(task: Task, *, error_rate: float = 0.0, seed: int = 0) -> tuple[str, ...]:
    """An edit for each mistake, then `task_done`; each edit is left out with probability `error_rate`."""
    rng = random.Random(f"{task.id}/{seed}")
    edits = [fix for fix in task.hidden["fixes"] if rng.random() >= error_rate]
    calls = [{"name": workspace.REPLACE, "arguments": dict(edit)} for edit in edits]
    return tuple(render_call(call, "xml") for call in [*calls, {"name": workspace.DONE, "arguments": {}}])


def null_solution(task: Task) -> tuple[str, ...]:
    """The agent that does nothing and says that it is done."""
    return solution(task, error_rate=1.0)


def copy_solution(task: Task) -> tuple[str, ...]:
    """The agent that writes every file as it found it, and says that it is done."""
    calls = [
        {
            "name": workspace.BASH,
            "arguments": {"command": "for f in $(find . -name '*.py'); do cp $f x; cp x $f; done"},
        },
        {"name": workspace.DONE, "arguments": {}},
    ]
    return tuple(render_call(call, "xml") for call in calls)


def _draw(rng: random.Random, difficulty: int, held_out: bool) -> dict[str, Any]:
    package, known = rng.choice(variants.PACKAGES), _mutants(held_out)
    wrong_seeds = rng.sample(sorted(known), MISTAKES[difficulty])
    others = sorted(set(mutants.NAMES) - set(wrong_seeds))
    parts = [_draw_part(rng, package, seed, rng.choice(known[seed])) for seed in wrong_seeds]
    parts += [_draw_part(rng, package, seed) for seed in rng.sample(others, MODULES[difficulty] - len(parts))]
    rng.shuffle(parts)
    files = {f"{package}/__init__.py": "", "tests/__init__.py": ""}
    for part in parts:
        files |= {part["path"]: part["source"], f"tests/test_{part['module']}.py": part["seen"]}
    wrong = [part for part in parts if part["fix"]]
    turns = TURNS_PER_MISTAKE * (len(wrong) + 1)
    text = json.dumps([files, [part["tests"] for part in parts], [part["fix"] for part in wrong]], sort_keys=True)
    revision = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    request = f"Project {package}, revision {revision}. {_request(wrong, difficulty)}"
    return {
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}],
        "tools": list(workspace.TOOLS),
        "hidden": {
            "files": dict(sorted(files.items())),
            "tests": {f"test_{part['module']}": part["tests"] for part in parts},
            "fail_to_pass": [test for part in parts for test in part["failing"]],
            "pass_to_pass": [test for part in parts for test in part["passing"]],
            "fixes": [part["fix"] for part in wrong],
        },
        "max_tokens": TOKENS_PER_TURN * turns,
        "max_turns": turns,
    }


@functools.cache
def _mutants(held_out: bool) -> dict[str, tuple[Mutant, ...]]:
    """The mistakes on one side of the split, of seeds that have one; at least two tests find each."""
    found = {}
    for seed, all_of_them in mutants.table().items():
        on_side = [
            mutant
            for mutant in all_of_them
            if len(mutant.failing) > 1 and data.is_held_out(f"{seed}/{mutant.mutation}", HELD_OUT_FRACTION) == held_out
        ]
        found |= {seed: tuple(on_side)} if on_side else {}
    return found


def _draw_part(rng: random.Random, package: str, seed: str, mutant: Mutant | None = None) -> dict[str, Any]:
    """A module, its tests, and what is wrong with it."""
    module = rng.choice(variants.MODULES[seed].split())
    renames, whole = variants.draw_renames(rng, seed), f"{mutants.SEEDS}.{seed}"
    right, tests = mutants.source(seed), mutants.test_source(seed)
    failing = mutant.failing if mutant else ()
    passing = [test for test in mutants.test_places(seed) if test not in failing]
    shown = rng.sample(failing, 1) if mutant else []
    seen = shown + [test for test in passing if rng.random() < SEEN]
    source = mutant.mutation.applied(right) if mutant else right

    def final(text: str) -> str:
        return variants.renamed(text, renames).replace(whole_renamed, f"{package}.{module}")

    whole_renamed = variants.renamed(whole, renames)
    path = f"{package}/{module}.py"
    where = _function_at(right, mutant.mutation.start) if mutant else ""
    return {
        "path": path,
        "module": module,
        "source": final(source),
        "tests": final(tests),
        "seen": final(mutants.tests_with(seed, frozenset(seen))),
        "failing": [f"test_{module}.{final(test)}" for test in failing],
        "passing": [f"test_{module}.{final(test)}" for test in passing],
        "shown": [f"tests.test_{module}.{final(test)}" for test in shown],
        "function": final(where),
        "fix": _fix(path, final, right, mutant) if mutant else None,
    }


def _request(wrong: Sequence[dict[str, Any]], difficulty: int) -> str:
    first = wrong[0]
    if difficulty == 1:
        return f"{first['shown'][0]} fails. The mistake is in {first['function']} of {first['path']}."
    if difficulty <= 3:
        return f"{first['shown'][0]} fails. Find out why, and mend the code."
    return f"Tests fail; there are {len(wrong)} mistakes, each in another module. Find and mend them."


def _function_at(source: str, place: int) -> str:
    """The name of the function, or the line, that a place of the source is in."""
    head = source[: source.index("\n", place)].splitlines()
    found = next((line for line in reversed(head) if line.lstrip().startswith("def ")), None)
    return found.split("def ")[1].split("(")[0] if found else "its first lines"


def _fix(path: str, final: Callable[[str], str], right: str, mutant: Mutant) -> dict[str, str]:
    """The edit that mends the file: whole lines, as many around the mistake as make them stand there once.

    The mended lines stand nowhere in the file, so that a search for them finds leaks (`integrity.leaks`).
    """
    mutation, whole = mutant.mutation, final(mutant.mutation.applied(right))
    start = right.rfind("\n", 0, mutation.start) + 1
    stop = right.find("\n", max(mutation.start, mutation.stop - 1)) + 1
    while True:
        wrong = final(right[start : mutation.start] + mutation.text + right[mutation.stop : stop])
        mended = final(right[start:stop])
        if wrong and whole.count(wrong) == 1 and flat(mended) not in flat(whole):
            return {"path": path, "search": wrong, "replace": mended}
        start = right.rfind("\n", 0, max(0, start - 1)) + 1
        stop = right.find("\n", stop) + 1 or len(right)
