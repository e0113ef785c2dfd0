"""An engine on a mesh draws what one device draws, and says which meshes it cannot use."""

import json

import numpy as np
import pytest

from ling_jax.engine import Engine, memory_for
from ling_jax.engine.memory import plan_memory
from ling_jax.engine.schedule import Feed, lay_out, lay_out_parts
from ling_jax.engine.step import DRAW, NOTHING, Rows
from ling_jax.parallel.sharding import abstract_mesh
from tests.helpers.engines import FIELDS, SLOTS, model_of
from tests.helpers.programs import output_of
from tests.helpers.tiny import tiny_config

MESHES = [
    {"data": 8}, {"expert": 8}, {"data": 4, "expert": 2}, {"data": 4, "tensor": 2},
    {"data": 2, "expert": 2, "tensor": 2},
]  # fmt: skip
HELPER = "tests.helpers.engine_on_mesh"


def test_a_mesh_draws_what_one_device_draws():
    """Prompts of many lengths, all kinds of draws, turns that are extended, cancelled, paused; a follower does, too."""
    output = output_of(HELPER, "quick", json.dumps(MESHES[-1]))
    assert "equal" in output and "followed" in output


@pytest.mark.slow
@pytest.mark.parametrize("family", ["2.6", "2.0", "linear-2.0"])
def test_every_mesh_draws_what_one_device_draws(family):
    """Also in chunks, and by the shorter program of steps that only draw."""
    lines = output_of(HELPER, "story", family, *map(json.dumps, MESHES)).splitlines()
    assert len(lines) == len(MESHES)


@pytest.mark.slow
def test_new_weights_meet_turns_under_way_as_on_one_device():
    meshes = MESHES[0], MESHES[4]
    assert len(output_of(HELPER, "versions", *map(json.dumps, meshes)).splitlines()) == 3 * len(meshes)


@pytest.mark.slow
def test_with_exact_tiles_a_request_has_the_bits_that_it_has_alone():
    assert "alone" in output_of(HELPER, "alone", json.dumps(MESHES[-1]))


@pytest.mark.slow
def test_requests_wait_where_the_pages_of_a_part_lack():
    assert "equal" in output_of(HELPER, "few pages")


@pytest.mark.parametrize(
    ("sizes", "slots", "message"),
    [
        (
            {"fsdp": 2},
            4,
            "mesh has fsdp 2, and it would gather every weight .* set fsdp to 1 and data, expert",
        ),
        (
            {"context": 4},
            4,
            "mesh has context 4, and a sequence's pages and its state belong to one device",
        ),
        ({"data": 2, "expert": 4}, 12, r"slots is 12; the mesh has 8 parts .* expected a multiple, such as 16"),
    ],
)
def test_a_mesh_that_an_engine_cannot_use_is_refused(sizes, slots, message):
    with pytest.raises(ValueError, match=message):
        Engine(model_of()[0], slots=slots, memory_bytes=1e9, mesh=abstract_mesh(**sizes))
    with pytest.raises(ValueError, match=message):
        memory_for(model_of()[0], slots=slots, max_tokens=32, mesh=abstract_mesh(**sizes))


def test_a_device_has_its_share_of_the_memory():
    """Of the bytes for all slots a part has one D-th, and of a state `tensor` splits the heads."""
    config = tiny_config(**FIELDS)
    one = plan_memory(config, 16, memory_for(config, slots=16, max_tokens=64))
    mesh = abstract_mesh(data=4, tensor=2)
    part = plan_memory(config, 16, memory_for(config, slots=16, max_tokens=64, mesh=mesh), mesh)
    assert (part.parts, part.state_bytes, part.page_bytes) == (4, one.state_bytes // 2, one.page_bytes)
    assert 4 * (part.pages - 1) <= one.pages and part.pages > 4 * 4  # four slots of four pages, and the empty one
    assert str(part).startswith("engine: 16 slots in 4 parts; each has ")


def test_rows_of_a_part_are_at_its_places_in_every_tile():
    """What a part's feeds get in a plan of all is what they get in a plan of their own."""
    rng, slots, size, tiles = np.random.default_rng(0), 4, 4, 20
    feeds = []
    for slot in rng.permutation(3 * slots)[:9].tolist():
        length, draws = int(rng.integers(1, 6)), int(rng.integers(0, 9))
        targets = [NOTHING] * (length - 1) + [DRAW if draws else NOTHING]
        feeds.append(Feed(slot, rng.integers(0, 99, length).tolist(), int(rng.integers(0, 50)), targets, 7, draws))
    plan = lay_out_parts(feeds, slots, 3, size, tiles)
    by_part = plan.rows.reshape(len(Rows._fields), tiles, 3, size)
    for part in range(3):
        numbers = [number for number, feed in enumerate(feeds) if feed.slot // slots == part]
        alone = lay_out([feeds[number] for number in numbers], size, tiles)
        np.testing.assert_array_equal(by_part[:, :, part], alone.rows)
        assert plan.count >= alone.count and plan.reading >= alone.reading
    fields = Rows(*plan.rows.reshape(len(Rows._fields), -1))
    for number, feed in enumerate(feeds):
        read = plan.read[plan.first[number] : plan.first[number] + len(feed.tokens)]
        assert fields.token[read].tolist() == feed.tokens and set(fields.slot[read]) == {feed.slot}
        drawn = plan.drawn[: feed.draws, number]
        assert (drawn >= 0).all() and (fields.number[drawn] == 7 + np.arange(feed.draws)).all()
        assert (plan.drawn[feed.draws :, number] == -1).all()


def test_one_device_has_one_part():
    engine = Engine(model_of()[0], slots=SLOTS, memory_bytes=1e6)
    assert engine.leads and engine.plan.parts == 1 and "parts" not in str(engine.plan)
