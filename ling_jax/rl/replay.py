"""A run again from its start, compared with its log.

The log says which tokens of each rollout came from which weights, and which batch made the next ones. So a replay needs
neither the schedule nor the clock of the run: version by version it draws the tokens of these weights, for all rollouts
that were trained on, in any order, and learns from the batch that the log names.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence

from etils import epath

from ling_jax.envs import environment
from ling_jax.files import parse_object
from ling_jax.rl.buffer import Group, ids_of, record_of
from ling_jax.rl.config import RLConfig
from ling_jax.rl.episode import Episode
from ling_jax.rl.harvest import answers_to_learn, harvest_of
from ling_jax.rl.learner import Event, Learner, event_of
from ling_jax.rl.log import read_fingerprints
from ling_jax.rl.loop import make_learner, new_state
from ling_jax.rl.prepare import Run, origin_of
from ling_jax.rl.prompts import begin_prompt
from ling_jax.rl.trajectory import FAILED
from ling_jax.run.program_cache import use_compilation_cache
from ling_jax.run.workdir import has_checkpoint, open_workdir, unlock


def check_replay(workdir) -> None:
    """Raises ValueError where the workdir holds no run to compare with; creates nothing."""
    workdir = open_workdir(workdir)
    for there, what in ((has_checkpoint(workdir), "checkpoint"), ((workdir / "events.jsonl").exists(), "events.jsonl")):
        if not there:
            raise ValueError(f"{workdir} has no {what}: there is no run to replay; name the workdir of one")


def replay(run: Run) -> int:
    """Runs it again from its start to its newest checkpoint and compares with the log: tokens, log-probs, batches,
    losses.

    Returns how many steps were the same. Raises ValueError at the first event that is another, and where sessions
    would act in the world a second time.
    """
    use_compilation_cache()
    path, steps = run.workdir / "events.jsonl", run.start.step
    try:
        _check_repeatable(run)
        run = dataclasses.replace(run, start=origin_of(run.config, run.workdir))
        log = list(itertools.islice(_by_step(path), steps))
        with make_learner(run, new_state(run)) as learner:
            _check_fingerprint(run, learner.collector.fingerprint)
            rollouts = Rollouts(run.config, learner, log)
            for step, events in enumerate(log):
                rollouts.generate(step)
                _compare(step, events, _learn(learner, rollouts, events), path)
                print(f"replayed step={step + 1}/{steps} events={len(events)}: the same", flush=True)
    finally:
        unlock(run.workdir, run.lock)
    return steps


class Rollouts:
    """The rollouts of a log that were trained on, as far as they have come."""

    def __init__(self, config: RLConfig, learner: Learner, log: Sequence[Sequence[Event]]):
        self.config, self.learner = config, learner
        self.tasks: dict[int, int] = {}  # prompt -> number of its task
        self.runs: dict[int, list[tuple[int, int]]] = {}  # rollout -> (version, tokens); those that failed left out
        for event in itertools.chain.from_iterable(log):
            if event["kind"] == "prompt":
                self.tasks[event["prompt"]] = event["task"]
            elif event["kind"] == "taken":
                told = event["rollouts"].items()
                self.runs |= {int(i): [*map(tuple, r["runs"])] for i, r in told if r["status"] not in FAILED}
        self.episodes: dict[int, Episode] = {}

    def generate(self, version: int) -> None:
        """Draws the tokens of these weights, the learner's."""
        going, until = {}, {}
        for i, runs in self.runs.items():
            if any(of == version for of, _ in runs):
                going[i] = self._episode(i)
            if runs and runs[-1][0] > version:
                until[i] = sum(count for of, count in runs if of <= version)
        collector = self.learner.collector
        if version == 0:
            collector.prepare(self.learner.state.params, version)
        collector.commit()  # what `_learn` has prepared
        while going:
            collector.advance(going, until)
            going = {i: episode for i, episode in going.items() if episode.running and not _is_at(episode, until)}
        collector.advance({})  # all leave

    def group(self, prompt: int) -> Group:
        """The answers to a prompt; None for one that failed or was thrown away."""
        return Group(prompt, tuple(map(self.episodes.get, ids_of(prompt, self.config.rollout.group_size))))

    def _episode(self, i: int) -> Episode:
        if i not in self.episodes:
            prompt = i // self.config.rollout.group_size
            begun = begin_prompt(self.config, self.learner.reader, prompt, self.tasks[prompt]).episodes
            self.episodes |= {episode.id: episode for episode in begun if episode.id in self.runs}
        return self.episodes[i]


def _is_at(episode: Episode, until: dict[int, int]) -> bool:
    return episode.id in until and len(episode.trajectory) >= until[episode.id]


def _learn(learner: Learner, rollouts: Rollouts, logged: Sequence[Event]) -> list[Event]:
    """Learns from the batch that the log names, and prepares the next weights; its events."""
    (taken,) = (event for event in logged if event["kind"] == "taken")
    groups = [rollouts.group(prompt) for prompt in taken["prompts"]]
    harvest = harvest_of(learner.config, learner.reward, groups, learner.reader, learner.memory)
    version = taken["step"]
    answers, _ = answers_to_learn(learner.config, harvest, learner.reader, version)
    learner.state, updates = learner.learn(learner.state, answers, version)
    learner.memory = harvest.memory
    records = {str(e.id): record_of(e.trajectory) for group in groups for e in group.episodes if e is not None}
    weights = learner.collector.prepare(learner.state.params, version + 1)
    moved = {"kind": "version", "weights": weights}
    return [{"kind": "taken", "rollouts": records}, *(event_of(update, harvest.groups) for update in updates), moved]


def _check_repeatable(run: Run) -> None:
    if run.config.rollout.agent:
        raise ValueError(
            f"rollout.agent is {run.config.rollout.agent}: what a program asks, and when, cannot be repeated; only runs"
            " without an agent can be replayed"
        )
    for name in dict.fromkeys(source.environment for source in run.config.tasks):
        if not environment(name).session().replayable:
            raise ValueError(
                f"sessions of {name} cannot be repeated, and a replay would act in their world again; "
                "only runs whose sessions are `replayable` can be replayed"
            )


def _check_fingerprint(run: Run, ours: str) -> None:
    """Raises ValueError where another machine or other programs drew the tokens of the run."""
    for line in read_fingerprints(run.workdir):
        if line["fingerprint"] != ours:
            raise ValueError(
                f"{run.workdir}: from step {line['step']} on an engine {line['fingerprint']} drew, and this one is "
                f"{ours}: another model, machine, JAX version, mesh or XLA flags, whose bits differ; replay it there"
            )


def _by_step(path: epath.Path) -> Iterator[list[Event]]:
    """The events of one step after the other. Read only as far as asked for: the last line may have been cut off."""
    with path.open() as file:
        read = (parse_object(line, str(path)) for line in file)
        for _, events in itertools.groupby(read, key=lambda event: event.get("step")):
            yield list(events)


def _compare(step: int, logged: Sequence[Event], found: Sequence[Event], path) -> None:
    """Raises ValueError on the first rollout, optimisation step or weights that are others."""
    taken, *updates, moved = json.loads(json.dumps(found))
    (wanted,) = (event for event in logged if event["kind"] == "taken")
    for i, record in taken["rollouts"].items():
        if record != wanted["rollouts"][i]:
            raise ValueError(f"{path}: rollout {i} of step {step} is {wanted['rollouts'][i]}, its replay {record}")
    told = [event for event in logged if event["kind"] == "update"]
    for event, update in itertools.zip_longest(told, updates):
        if update is None or event != {"step": step} | update:
            raise ValueError(f"{path}: an update of step {step} is {event}, its replay {update}")
    (version,) = (event for event in logged if event["kind"] == "version")
    if version["weights"] and version["weights"] != moved["weights"]:
        raise ValueError(f"{path}: step {step} led to weights {version['weights']}, its replay to {moved['weights']}")
