"""What a run of reinforcement learning promises."""

import dataclasses
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from ling_jax.chat.end_tokens import end_ids
from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.folder import ModelFolder
from ling_jax.checkpoint.steps import steps_in
from ling_jax.envs import find
from ling_jax.envs.pure import PureSession
from ling_jax.envs.reasoning import running_sums
from ling_jax.evaluate.viewer import read_trajectories
from ling_jax.rl import loop, stage
from ling_jax.rl.buffer import Group, RolloutBuffer
from ling_jax.rl.collector import play
from ling_jax.rl.episode import Episode
from ling_jax.rl.episode_answers import answers_of
from ling_jax.rl.failures import TooManyFailures
from ling_jax.rl.harvest import advantages_of
from ling_jax.rl.loop import make_learner, new_state, train
from ling_jax.rl.prepare import prepare
from ling_jax.rl.prompts import begin_prompt
from ling_jax.rl.replay import check_replay, replay
from ling_jax.rl.reward import Reward, Rewards
from ling_jax.run.steps import Interrupted, TooManyNonfiniteSteps
from ling_jax.run.workdir import unlock
from tests.helpers.chatty import Chatty, Delayed
from tests.helpers.event_log import check_log
from tests.helpers.faults import assert_same_end
from tests.helpers.rl_run import lines_of, prepared, small_config, tokenizer

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """(workdir, last line) of a run in one go."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(prepared(small_config(start), workdir))


def test_a_run_leaves_what_its_report_names(whole, capsys):
    workdir, last = whole
    lines = lines_of(workdir)
    assert [line["step"] for line in lines] == list(range(6)) and last["step"] == 5
    assert all(0 < line["answers"] <= 4 and not line["nonfinite"] for line in lines)
    assert {"masked_fraction", "masked_fraction/0.9-0.99", "entropy", "reward/brief", "ratio/0.5"} <= lines[0].keys()
    samples = lines_of(workdir, "samples")
    assert {sample["step"] for sample in samples} == set(range(6)) and all(sample["text"] for sample in samples)
    files = sorted((workdir / "trajectories").iterdir())
    assert [file.name for file in files] == [f"{step:06}.jsonl" for step in range(6)]
    found = [one for file in files for one in read_trajectories(file)]
    assert [one["extra"]["reward"] for one in found] == [sample["reward"] for sample in samples]
    assert [one["final_metrics"]["total_completion_tokens"] for one in found] == [one["tokens"] for one in samples]
    (events,) = (workdir / "tensorboard").iterdir()
    assert b"reward/brief" in events.read_bytes() and b"masked_fraction" in events.read_bytes()
    params, config = orbax.load_params(workdir / "checkpoints")
    assert config.vocab_size == params["embed"].shape[0]


def test_all_files_beside_the_tokenizer_go_along(start, tmp_path):
    shutil.copytree(start, tmp_path / "start")
    (tmp_path / "start" / "tokenizer" / "LICENSE").write_text("MIT")
    prepared(small_config(tmp_path / "start"), tmp_path / "run")
    found, wanted = (  # a run may add what it declares of end tokens
        {path.name: path.read_bytes() for path in (tmp_path / name / "tokenizer").iterdir()}
        for name in ("start", "run")
    )
    assert found.items() <= wanted.items() and "LICENSE" in found


def test_recorded_log_probs_are_those_of_training(whole):
    """Of tokens that the very weights of the step drew, in float32; there are some."""
    lines = lines_of(whole[0])
    assert sum(line["mismatch_same_version/tokens"] > 0 for line in lines) >= 2
    assert max(line["mismatch_same_version/max"] for line in lines) <= 1e-5
    assert max(line["staleness/max"] for line in lines) >= 2, "nothing here was stale"
    assert max(line["mismatch/max"] for line in lines) > 1e-3, "stale tokens were scored anew"


def test_version_tags_and_discards_agree_with_the_log(start, tmp_path):
    """Where no version waits, as in the reports, long answers do not end within four of them."""
    run, events, lost = prepared(small_config(start), tmp_path), [], 0
    with make_learner(run, new_state(run)) as learner:
        limits = dataclasses.replace(learner.rollouts.ledger.limits, wait_budgets=0)
        learner.rollouts = RolloutBuffer(limits, learner._draw, learner._emit)
        for _ in range(12):
            result = learner.step()
            events += json.loads(json.dumps(result.events))
            lost += result.metrics["discarded"]
            drew = check_log(events, max_staleness=4, max_retention=4, prompts_per_step=1, group_size=4)
            assert not learner.rollouts.episodes.keys() & drew.keys()
    unlock(run.workdir, run.lock)
    assert any(len(runs) >= 3 for runs in drew.values()), "no rollout saw three versions"
    assert lost == sum(len(event.get("discarded", ())) for event in events) > 0, "none was discarded"


def test_long_answers_are_learnt_from(start, tmp_path):
    """The same run as it is: a version waits for what it would throw away."""
    run = prepared(small_config(start), tmp_path)
    with make_learner(run, new_state(run)) as learner:
        found = [learner.step().metrics for _ in range(12)]
    unlock(run.workdir, run.lock)
    assert sum(metrics["discarded"] for metrics in found) == 0 and found[-1]["tokens_learnt"] == 1
    assert all(metrics["outstanding"] <= metrics["outstanding_bound"] == 20 for metrics in found)
    assert found[-1]["length/learnt"] == found[-1]["length/ended"] > 10


def test_replay_is_bit_exact(whole, start, tmp_path):
    assert replay(prepared(small_config(start), whole[0])) == 6
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "events.jsonl"
    lines = path.read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if '"kind": "update"' in line)
    event = json.loads(lines[last])
    lines[last] = json.dumps(event | {"loss": repr(np.nextafter(np.float32(event["loss"]), np.float32(1)).item())})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"of step 5 is .*'update'.* its replay"):
        replay(prepared(small_config(start), tmp_path / "run"))


def test_a_replay_begins_with_the_weights_that_the_run_began_with(start, tmp_path):
    """Although the stage before has gone on."""
    before, workdir = tmp_path / "before", tmp_path / "run"
    shutil.copytree(start, before)
    config = small_config(before, steps=2)
    train(prepared(config, workdir))
    shutil.copytree(workdir / "checkpoints" / "2", before / "checkpoints" / "2")
    assert replay(prepared(config, workdir)) == 2


def test_a_log_that_is_not_there_is_no_run_to_replay(whole, tmp_path):
    check_replay(whole[0])
    with pytest.raises(ValueError, match="has no checkpoint: there is no run to replay"):
        check_replay(tmp_path / "run")
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match=r"has no events\.jsonl: there is no run"):
        check_replay(tmp_path / "run")


def test_resume_is_bit_exact(whole, start, tmp_path):
    for steps in (1, 3, 6):
        train(prepared(small_config(start, steps=steps, save_every=100), tmp_path))
    assert_same_end(whole[0], tmp_path)
    for name in ("events.jsonl", "samples.jsonl", *(f"trajectories/{step:06}.jsonl" for step in range(6))):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


def test_what_a_killed_run_wrote_after_its_checkpoint_is_forgotten(whole, start, tmp_path):
    """As if the checkpoints of steps 5 and 6 had not been written."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    with (workdir / "events.jsonl").open("a") as file:
        file.write('{"step": 6, "ki')
    (workdir / "trajectories" / "000008.jsonl").write_text("")
    train(prepared(small_config(start), workdir))
    assert [path.stem for path in sorted((workdir / "trajectories").iterdir())] == [f"{i:06}" for i in range(6)]
    assert_same_end(whole[0], workdir)
    assert (workdir / "events.jsonl").read_bytes() == (whole[0] / "events.jsonl").read_bytes()


def test_staleness_0_is_the_synchronous_loop(start, tmp_path):
    """Bit for bit: tokens, rewards and weights of a loop without pool, budget and versions."""
    config = small_config(start, rollout=dict(token_budget=0, max_staleness=0, max_retention=0), dpr_steps=0)
    run, other = prepared(config, tmp_path / "a"), prepared(config, tmp_path / "b")
    with make_learner(run, new_state(run)) as learner, make_learner(other, new_state(other)) as plain:
        for step in range(3):
            metrics = learner.step().metrics
            assert metrics["masked_fraction"] == 0 and metrics["staleness/max"] == 0 and metrics["groups"] == 1
            assert synchronous_step(plain, step) == metrics["loss"]
        for leaf, wanted in zip(jax.tree.leaves(learner.state), jax.tree.leaves(plain.state), strict=True):
            assert np.asarray(leaf).tobytes() == np.asarray(wanted).tobytes()
    unlock(run.workdir, run.lock), unlock(other.workdir, other.lock)


def synchronous_step(plain, step: int) -> float:
    """All answers to a prompt, then one update."""
    plain.collector.load(plain.state.params, step)
    number = int(np.random.default_rng((plain.config.train.seed, step)).choice(50))
    begun = begin_prompt(plain.config, plain.reader, step, number).episodes
    episodes = sorted(play(plain.collector, begun), key=lambda episode: episode.id)
    rewards, plain.memory = plain.reward.pay([episodes], plain.reader, plain.memory)
    groups = [Group(step, tuple(episodes))]
    answers = answers_of(groups, advantages_of(groups, rewards, (1, 4)), plain.reader, version=step)
    plain.state, (update,) = plain.learn(plain.state, answers, step)
    return update.metrics["loss"]


def test_tasks_that_do_not_fit_are_refused_before_anything_is_written(start, tmp_path):
    for config, message in (
        (
            small_config(start, rollout=dict(context=120)),
            r"difficulty 2\) has a prompt of \d+ tokens and may write 96; the",
        ),
        (small_config(start, rollout=dict(context=600)), "the context is 600 tokens; the model's, max_length, is 512"),
    ):
        with pytest.raises(ValueError, match=message):
            prepared(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reward_that_is_no_number_ends_the_run_saved(whole, start, tmp_path):
    """The same command goes on where it ended, once the reward is mended; no rollout is lost."""
    config, good = small_config(start, save_every=100), prepared(small_config(start), tmp_path / "other")
    unlock(good.workdir, good.lock)
    calls = []

    def pay(groups, reader, memory):
        calls.append(memory)
        rewards, memory = good.reward.pay(groups, reader, memory)
        if len(calls) == 3:
            rewards[0].total[-1] = np.nan
        return rewards, memory

    with pytest.raises(
        ValueError, match=r"reward 'preference' of prompt \d+\[3\] is nan; expected a finite num"
    ) as error:
        train(prepare(config, Reward(pay, -1, 1), tmp_path / "run"))
    assert error.value.__notes__ == ["the run is saved within step 3; the same command continues there"]
    train(prepared(config, tmp_path / "run"))
    assert_same_end(whole[0], tmp_path / "run")
    run = prepare(config, Reward(lambda groups, *_: ([Rewards(np.full(4, 1.5), {})], None), 0, 1), tmp_path / "high")
    with pytest.raises(ValueError, match=r"\[0\] is 1.5; expected a finite number"):
        train(run)
    assert (tmp_path / "high" / "partial.json").exists()


@pytest.mark.parametrize(
    ("version", "pieces"),
    [(0, 5), (3, 2), pytest.param(0, 1, marks=pytest.mark.slow), pytest.param(4, 1, marks=pytest.mark.slow)],
)
def test_a_signal_saves_between_two_pieces_and_the_same_call_goes_on(
    whole, start, tmp_path, monkeypatch, version, pieces
):
    """With rollouts that are not finished, in the first step and in one that begins with a checkpoint."""
    advance, seen = RolloutBuffer.advance, []

    def interrupted(self, *arguments):
        advance(self, *arguments)
        seen.append(self.version)
        if seen.count(version) == pieces and seen[-1] == version:
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append(time.perf_counter())

    config = small_config(start)
    with monkeypatch.context() as patch:
        patch.setattr(RolloutBuffer, "advance", interrupted)
        with pytest.raises(Interrupted, match=f"saved at step {version}"):
            train(prepared(config, tmp_path))
    assert time.perf_counter() - seen[-1] < 3 and (tmp_path / "partial.json").exists() == (version in (0, 4))
    train(prepared(config, tmp_path))
    assert_same_end(whole[0], tmp_path)
    assert (tmp_path / "events.jsonl").read_bytes() == (whole[0] / "events.jsonl").read_bytes()


def test_an_update_that_fails_ends_the_run_saved_and_nothing_is_lost(whole, start, tmp_path, monkeypatch):
    """Nor learnt from twice: the batch is still there when the same command goes on."""
    learn, calls = loop.learn, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError("no memory for the batch")
        return learn(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learn", failing)
        with pytest.raises(MemoryError) as error:
            train(prepared(small_config(start, save_every=100), tmp_path))
    failures, saved = error.value.__notes__
    assert failures.endswith("trainer: MemoryError: no memory for the batch")
    assert saved == "the run is saved within step 3; the same command continues there"
    train(prepared(small_config(start), tmp_path))
    assert_same_end(whole[0], tmp_path)
    assert (tmp_path / "events.jsonl").read_bytes() == (whole[0] / "events.jsonl").read_bytes()


@pytest.fixture
def cut_in_the_first_step(monkeypatch):
    """`cut(config, workdir)` starts a run, and sends it SIGTERM after its first piece of decoding."""

    def cut(config, workdir):
        def interrupted(*arguments):
            advance(*arguments)
            os.kill(os.getpid(), signal.SIGTERM)

        advance = RolloutBuffer.advance
        with monkeypatch.context() as patch:
            patch.setattr(RolloutBuffer, "advance", interrupted)
            with pytest.raises(Interrupted, match="saved at step 0"):
                train(prepared(config, workdir))
        assert (workdir / "partial.json").exists()

    return cut


def test_rollouts_of_another_config_or_start_are_left_out(start, tmp_path, cut_in_the_first_step, capsys):
    """Until a run has a checkpoint its workdir takes another config; tokens of the one before are of no use to it."""
    other, before = small_config(start, seed=1, steps=1), tmp_path / "before"
    train(prepared(other, tmp_path / "alone"))
    cut_in_the_first_step(small_config(start, steps=1), tmp_path / "run")
    capsys.readouterr()
    train(prepared(other, tmp_path / "run"))
    told = capsys.readouterr().err
    assert "partial.json are left out, since the run is another: train.seed: 0 in the workdir, 1 now" in told
    assert_same_end(tmp_path / "alone", tmp_path / "run")
    shutil.copytree(start, before)
    cut_in_the_first_step(small_config(before, steps=1), tmp_path / "again")
    (step,) = (before / "checkpoints").iterdir()
    shutil.copytree(step, step.with_name("9"))
    train(prepared(small_config(before, steps=1), tmp_path / "again"))
    assert f"{before} was at step {step.name}, and is at 9 now" in capsys.readouterr().err


def test_an_evaluation_that_a_signal_came_before_is_made_up(start, tmp_path, monkeypatch):
    """Before the first step; and after the last one, where the run is done but for that."""
    config, evaluate, left = small_config(start, steps=1, eval_tasks=2), stage.evaluate, [0, 2]

    def interrupted(*arguments, **options):
        if left and left.pop() == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    summaries = [tmp_path / "evaluation" / step / "summary.json" for step in ("000000", "000001")]
    monkeypatch.setattr(stage, "evaluate", interrupted)
    with pytest.raises(Interrupted):
        train(prepared(config, tmp_path))
    assert not any(path.exists() for path in summaries)
    left[:] = [2, 0]
    train(prepared(config, tmp_path))
    assert [path.exists() for path in summaries] == [True, False] and steps_in(tmp_path / "checkpoints") == [1]
    train(prepared(config, tmp_path))
    assert all(path.exists() for path in summaries)


def test_turns_are_scored_as_they_were_drawn(start, tmp_path, monkeypatch):
    """Tool output between turns, fed while other rollouts go on, and read anew under the next weights."""
    monkeypatch.setitem(find._SHIPPED, "running_sums", Chatty)
    often = frozenset(range(7, 60)) | end_ids(tokenizer())  # so that a random model ends its turns
    monkeypatch.setattr(ModelFolder, "end_ids", often)
    config = small_config(start, reward="outcome", rollout=dict(max_tokens=24, context=184))
    run, turns = prepared(config, tmp_path), []
    with make_learner(run, new_state(run)) as learner:
        for _ in range(4):
            metrics = learner.step().metrics
            assert metrics["mismatch_same_version/max"] <= 1e-5
            stored = json.loads(json.dumps(learner.to_json()))
            turns += [len(entry["trajectory"]["turns"]) for entry in stored["rollouts"]["episodes"]]
            before = learner.rollouts.episodes
            learner.restore(stored)
            for i, episode in learner.rollouts.episodes.items():
                assert episode.context == before[i].context and episode.messages == before[i].messages
    unlock(run.workdir, run.lock)
    assert max(turns) == 3


def test_a_run_whose_environments_answer_when_the_clock_says_replays_from_its_log(start, tmp_path, monkeypatch):
    monkeypatch.setattr(Chatty, "session", staticmethod(lambda: Delayed(lambda task, seed: (), Chatty.step)))
    monkeypatch.setitem(find._SHIPPED, "running_sums", Chatty)
    monkeypatch.setattr(ModelFolder, "end_ids", frozenset(range(7, 60)) | end_ids(tokenizer()))
    config = small_config(start, reward="outcome", rollout=dict(max_tokens=24, context=184), steps=4)
    train(prepared(config, tmp_path))
    taken = [event for event in lines_of(tmp_path, "events") if event["kind"] == "taken"]
    assert any(len(record["runs"]) > 1 for event in taken for record in event["rollouts"].values())
    assert replay(prepared(config, tmp_path)) == 4


def broken_step(state, action):
    raise OSError("no sandbox")


class Broken:
    """An environment without a world."""

    DIFFICULTIES = running_sums.DIFFICULTIES
    make_task, solution = staticmethod(running_sums.make_task), staticmethod(running_sums.solution)
    session = staticmethod(lambda: PureSession(running_sums.reset, broken_step))


@pytest.fixture
def break_the_world(monkeypatch):
    """From now on. Those that a limit cuts off break, too."""
    end = Episode.end

    def break_it():
        monkeypatch.setitem(find._SHIPPED, "running_sums", Broken)
        fail = lambda self, status, error="": end(self, "env_failed", error or "no sandbox")  # noqa: E731
        monkeypatch.setattr(Episode, "end", fail)

    return break_it


def assert_weights_are_those_of(start, workdir):
    before, after = (orbax.load_params(folder / "checkpoints")[0] for folder in (start, workdir))
    for leaf, wanted in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(leaf, wanted)


def test_a_world_that_breaks_ends_the_run_and_changes_nothing(start, tmp_path, break_the_world, capsys):
    """No answer has a reward, so no step may move the weights."""
    run = prepared(small_config(start, max_nonfinite_steps=2, max_failed_share=1.0), tmp_path)
    break_the_world()
    with pytest.raises(TooManyNonfiniteSteps, match="2 steps until step 2 changed nothing"):
        train(run)
    assert "env_failed: OSError: no sandbox" in capsys.readouterr().out
    assert_weights_are_those_of(start, tmp_path)


def test_too_many_failures_end_the_run_saved(start, tmp_path, break_the_world):
    run = prepared(small_config(start, max_nonfinite_steps=99, steps=99, save_every=99), tmp_path)
    break_the_world()
    with pytest.raises(TooManyFailures, match=r"3\d of the last 3\d rollouts failed, and train.max_failed"):
        train(run)
    assert_weights_are_those_of(start, tmp_path)


def test_an_environment_that_breaks_on_its_own_solution_is_refused_before_anything_is_written(
    start, tmp_path, break_the_world
):
    break_the_world()
    with pytest.raises(OSError, match=r"task .* of running_sums: OSError: no sandbox"):
        prepared(small_config(start), tmp_path / "run")
    assert not (tmp_path / "run").exists()
