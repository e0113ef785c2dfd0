"""A run again from its start, compared with its log."""

import dataclasses
import itertools
import json
from collections.abc import Iterator

from etils import epath

from ling_jax.envs import environment
from ling_jax.files import parse_object
from ling_jax.rl.learner import Event
from ling_jax.rl.loop import make_learner, new_state
from ling_jax.rl.prepare import Run, origin_of
from ling_jax.run.program_cache import use_compilation_cache
from ling_jax.run.workdir import has_checkpoint, open_workdir, unlock


def check_replay(workdir) -> None:
    """Raises ValueError where the workdir holds no run to compare with; creates nothing."""
    workdir = open_workdir(workdir)
    for there, what in ((has_checkpoint(workdir), "checkpoint"), ((workdir / "events.jsonl").exists(), "events.jsonl")):
        if not there:
            raise ValueError(f"{workdir} has no {what}: there is no run to replay; name the workdir of one")


def replay(run: Run) -> int:
    """Runs it again from its start to its newest checkpoint and compares every event with the log: tokens, batches,
    losses, decisions.

    Returns how many steps were the same. Raises ValueError at the first event that is another, and where sessions
    would act in the world a second time.
    """
    use_compilation_cache()
    path, steps = run.workdir / "events.jsonl", run.start.step
    try:
        _check_repeatable(run)
        run = dataclasses.replace(run, start=origin_of(run.config, run.workdir))
        with make_learner(run, new_state(run)) as learner:
            logged = _by_step(path)
            for step in range(steps):
                wanted = next(logged, [])
                found = learner.step(arrivals=_arrivals(wanted)).events
                _compare(step, wanted, found, path)
                print(f"replayed step={step + 1}/{steps} events={len(found)}: the same", flush=True)
    finally:
        unlock(run.workdir, run.lock)
    return steps


def _check_repeatable(run: Run) -> None:
    for name in dict.fromkeys(source.environment for source in run.config.tasks):
        if not environment(name).session().replayable:
            raise ValueError(
                f"sessions of {name} cannot be repeated, and a replay would act in their world again; "
                "only runs whose sessions are `replayable` can be replayed"
            )


def _by_step(path: epath.Path) -> Iterator[list[Event]]:
    """The events of one step after the other. Read only as far as asked for: the last line may have been cut off."""
    with path.open() as file:
        read = (parse_object(line, str(path)) for line in file)
        for _, events in itertools.groupby(read, key=lambda event: event.get("step")):
            yield list(events)


def _arrivals(events: list[Event]) -> dict[int, list[int]]:
    """{piece: rollouts whose environments answered before it} of a step."""
    told = next((event.get("arrived", {}) for event in events if event["kind"] == "generated"), {})
    return {int(piece): ids for piece, ids in told.items()}


def _compare(step: int, logged: list[Event], found: list[Event], path) -> None:
    plain = json.loads(json.dumps(found))
    for i, (event, wanted) in enumerate(zip(plain, logged, strict=False)):
        if {"step": step} | event != wanted:
            raise ValueError(f"{path}: event {i} of step {step} is {wanted}, its replay {event}")
    if len(plain) != len(logged):
        raise ValueError(f"{path}: step {step} has {len(logged)} events, its replay {len(plain)}")
