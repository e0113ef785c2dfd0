"""Episodes that give several samples: they share an advantage, and are one answer in the mean of a loss."""

import dataclasses

import jax
import numpy as np
import pytest

from ling_jax.parallel.sharding import make_mesh
from ling_jax.rl.answers import Answer, token_weights
from ling_jax.rl.batch import layout_for, pack
from ling_jax.rl.buffer import Group
from ling_jax.rl.episode import restore_episode
from ling_jax.rl.episode_answers import answers_of
from ling_jax.rl.trajectory import Trajectory
from tests.helpers.tiny_collector import READER, begin


def answer(size: int, *, group: int = 0, episode: int | None = None) -> Answer:
    zeros = np.zeros(size + 2, np.float32)
    mask = np.arange(size + 2) >= 2
    return Answer(group, 1.0, zeros.astype(np.int32), mask, zeros, zeros.astype(np.int32), zeros.astype(np.int32),
                  episode=episode)  # fmt: skip


def test_samples_of_an_episode_weigh_what_it_weighs_as_one_sample():
    whole = token_weights([answer(8, episode=4), answer(4, episode=5)], "rows")
    parts = token_weights([answer(3, episode=4), answer(5, episode=4), answer(4, episode=5)], "rows")
    assert parts.tolist() == [whole[0], whole[0], whole[1]] == [1 / 16, 1 / 16, 1 / 8]


def test_answers_without_an_episode_are_alone():
    assert token_weights([answer(8), answer(4)], "rows").tolist() == [1 / 16, 1 / 8]


@pytest.mark.parametrize(("normaliser", "weights"), [("tokens", [1 / 12] * 3), ("groups", [1 / 16, 1 / 16, 1 / 8])])
def test_other_means_count_tokens(normaliser, weights):
    found = [answer(3, episode=4), answer(5, episode=4), answer(4, group=1, episode=8)]
    assert token_weights(found, normaliser) == pytest.approx(weights)


def trajectory(name: str, prompt: int, drawn: int) -> Trajectory:
    made = Trajectory(name, range(prompt))
    made.append_generation(range(drawn), -np.ones(drawn), 3)
    return made


def test_parts_are_learnt_from_with_the_advantage_of_their_episode():
    first, second = begin(2)
    for episode in (first, second):
        episode.trajectory = trajectory(episode.task.id, 3, 4)
        episode.end("finished")
    first.parts = [trajectory(first.task.id, 3, 4), trajectory(first.task.id, 9, 2)]
    found = answers_of([Group(0, (first, second))], np.array([[0.5, -0.5]]), READER, version=4)
    assert [(len(a), int(a.mask.sum()), a.advantage, a.episode) for a in found] == [
        (7, 4, 0.5, first.id), (11, 2, 0.5, first.id), (7, 4, -0.5, second.id),
    ]  # fmt: skip
    assert all(set(a.ages[a.mask].tolist()) == {1} for a in found)


def test_parts_are_stored_with_their_episode():
    (episode,) = begin(1)
    episode.parts = [trajectory(episode.task.id, 3, 4)]
    again = restore_episode(episode.to_json(), episode.task)
    assert [part.to_json() for part in again.samples] == [part.to_json() for part in episode.parts]
    old = {name: value for name, value in episode.to_json().items() if name != "parts"}
    assert restore_episode(old, episode.task).parts == []


def test_a_batch_has_room_for_all_samples():
    mesh = make_mesh({}, jax.devices()[:1])
    layout = layout_for(2, 1, 16, mesh)
    many = [dataclasses.replace(answer(14), episode=i // 4) for i in range(8)]
    batch = pack(many, layout._replace(microbatches=4))
    assert batch.mask.sum() == 8 * 14
