"""Pipelines of steps on files, drawn one step after the other."""

import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ling_jax.envs.workflow import files, kinds
from ling_jax.envs.workflow.domains import DOMAINS, Table, draw_events, draw_jobs, draw_things
from ling_jax.envs.workflow.files import ENDINGS, script, text_of

NAMES = ("amber", "birch", "cedar", "delta", "ember", "frost", "grove", "heron", "iris", "kite", "maple", "north")
LAST = 0.7  # our choice: the chance that a step reads what the step before wrote, and not any table
WRONG_PATHS, WRONG_COLUMNS = ("data/{}", "{}.bak", "new_{}"), ("{}_id", "{}s", "the_{}")  # each stops a script
DRAWS = 100  # of a step before the pipeline is drawn anew


class Level(NamedTuple):
    """How difficult a pipeline is."""

    steps: int
    kinds: tuple[str, ...]
    rows: int  # of the largest table, at most
    damaged: bool = False  # whether the first step mends a file
    scripts: int = 0  # steps that have a script which stops with an error


class Step(NamedTuple):
    """A step and what it writes."""

    words: str
    output: str
    code: str
    table: Table
    inputs: tuple[str, ...] = ()


class Pipeline(NamedTuple):
    """Files to begin with, and steps on them."""

    files: dict[str, str]  # path -> content
    steps: list[Step]
    faults: dict[int, dict[str, str]]  # number of a step with a script -> the edit that mends it


def draw_pipeline(rng: random.Random, level: Level) -> Pipeline:
    """A pipeline in which no step writes what a file holds already, and none nothing."""
    while True:
        contents, tables, steps = _start(rng, level)
        names = iter(rng.sample(NAMES, level.steps))
        for _ in range(level.steps - len(steps)):
            step = _draw_step(rng, level, tables, steps, next(names))
            if step is None:
                break
            steps.append(step)
            tables[step.output] = step.table
        if len(steps) == level.steps:
            return _with_scripts(rng, level, contents, steps)


def _start(rng: random.Random, level: Level) -> tuple[dict[str, str], dict[str, Table], list[Step]]:
    """(contents of files, tables by path, a first step where one mends a file)."""
    domain = rng.choice(DOMAINS)
    things = draw_things(rng, domain, rng.randint(4, 8))
    events = draw_events(rng, domain, things, rng.randint(level.rows // 2, level.rows))
    contents, tables, steps = {}, {}, []
    if level.damaged:
        path, output = f"{domain.events}.jsonl", f"{domain.events}_mended{rng.choice(ENDINGS)}"
        contents[path], events = files.damaged(rng, events)
        words, code = files.mending(path, events)
        steps.append(Step(words, output, code, events, (path,)))
        tables[output] = events
    else:
        tables[domain.events + rng.choice(ENDINGS)] = events
    if "join" in level.kinds:
        tables[domain.things + rng.choice(ENDINGS)] = things
    if "plan" in level.kinds:
        tables["jobs" + rng.choice(ENDINGS)] = draw_jobs(rng, rng.randint(5, 12))
    contents |= {path: text_of(path, table) for path, table in tables.items() if not steps or path != steps[0].output}
    return contents, tables, steps


def _draw_step(rng: random.Random, level: Level, tables: dict[str, Table], steps: Sequence[Step], name: str):
    known = [table.rows for table in tables.values()]
    for _ in range(DRAWS):
        path = steps[-1].output if steps and rng.random() < LAST else rng.choice(list(tables))
        drawn = kinds.KINDS[rng.choice(level.kinds)](rng, tables, path)
        if drawn and drawn.table.rows and drawn.table.rows not in known:
            return Step(drawn.words, name + rng.choice(ENDINGS), drawn.code, drawn.table, drawn.inputs)
    return None


def _with_scripts(rng: random.Random, level: Level, contents: dict[str, str], steps: list[Step]) -> Pipeline:
    faults = {}
    for number in sorted(rng.sample(range(len(steps)), level.scripts)):
        step = steps[number]
        path = f"steps/{step.output.partition('.')[0]}.py"
        spots = [*re.finditer(r"\bread\('([\w.]+)'\)", step.code), *re.finditer(r"\brow\['(\w+)'\](?! =)", step.code)]
        spot = rng.choice(spots)
        right = repr(spot[1])
        wrong = repr(rng.choice(WRONG_PATHS if "." in spot[1] else WRONG_COLUMNS).format(spot[1]))
        start = spot.start(1) - 1
        code = step.code[:start] + wrong + step.code[start + len(right) :]
        contents[path] = script(code, step.output)
        faults[number] = {"path": path, "search": wrong, "replace": right}
    return Pipeline(contents, steps, faults)


def hidden_of(pipeline: Pipeline) -> dict[str, Any]:
    """What a session and the reference solver need, as JSON values."""
    outputs = [
        {
            "path": step.output,
            "columns": list(step.table.columns),
            "rows": [[row[name] for name in step.table.columns] for row in step.table.rows],
        }
        for step in pipeline.steps
    ]
    commands = [f"python3 - <<'END'\n{script(step.code, step.output)}END" for step in pipeline.steps]
    faults = {str(number): fault for number, fault in pipeline.faults.items()}
    return {"files": pipeline.files, "outputs": outputs, "commands": commands, "faults": faults}
