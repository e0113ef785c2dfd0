"""A state comes back from disk as it was."""

import json
import shutil

import jax
import numpy as np
import pytest

from ling_jax.checkpoint import orbax
from tests.train.test_step import CONFIG, new_state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(state, its folder): three saves, of which two are kept."""
    folder, state = tmp_path_factory.mktemp("run") / "checkpoints", new_state()
    with orbax.open_manager(folder, keep=2) as manager:
        for step in (1, 2, 3):
            orbax.save(manager, step, state.replace(step=state.step + step), CONFIG)
        manager.wait_until_finished()
        assert sorted(manager.all_steps()) == [2, 3]
    return state, folder


def test_a_save_in_between_pushes_no_regular_one_out(tmp_path):
    with orbax.open_manager(tmp_path, keep=2, every=3) as manager:
        for step in (3, 6, 9, 10, 11):
            orbax.save(manager, step, {"params": np.zeros(1)}, CONFIG)
        manager.wait_until_finished()
        assert sorted(manager.all_steps()) == [6, 9, 10, 11]


def test_the_newest_state_is_restored_bit_for_bit(saved):
    state, folder = saved
    abstract = jax.tree.map(abstract_like, state)
    with orbax.open_manager(folder, keep=2) as manager:
        restored = orbax.restore(manager, abstract)
    assert int(restored.step) == 3
    jax.tree.map(np.testing.assert_array_equal, (restored.params, restored.opt_state), (state.params, state.opt_state))


def test_a_state_of_an_older_version_is_restored_by_its_older_names(tmp_path):
    state = new_state()
    older = {"bad_steps" if name == "skipped_steps" else name: value for name, value in vars(state).items()}
    with orbax.open_manager(tmp_path, keep=1) as manager:
        orbax.save(manager, 1, older | {"bad_steps": jax.numpy.asarray(7)}, CONFIG)
        manager.wait_until_finished()
        restored = orbax.restore(manager, jax.tree.map(abstract_like, state))
    assert int(restored.skipped_steps) == 7 and type(restored) is type(state)
    jax.tree.map(np.testing.assert_array_equal, (restored.params, restored.opt_state), (state.params, state.opt_state))


def abstract_like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def test_parameters_and_config_come_without_the_optimiser(saved):
    state, folder = saved
    params, config = orbax.load_params(folder, step=2)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, state.params)


def test_a_missing_step_is_named(saved):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint of step 7"):
        orbax.load_params(saved[1], step=7)


def test_an_error_of_orbax_is_one_line(saved, tmp_path):
    shutil.copytree(saved[1], tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints" / "3" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(orbax.DamagedCheckpoint, match="checkpoints/3/state cannot be read"):
        orbax.load_params(tmp_path / "checkpoints", verify=False)


@pytest.mark.parametrize(
    "change",
    [
        {"new_field": 1},
        {"vocab_size": "256"},
        {"vocab_size": None},
        {"rope_scaling": "yarn"},
        {"hf_source": "[]"},
        None,
    ],
    ids=str,
)
def test_a_record_that_is_no_model_is_one_error(saved, tmp_path, change):
    shutil.copytree(saved[1] / "3", tmp_path / "checkpoints" / "3")
    meta = tmp_path / "checkpoints" / "3" / "meta" / "metadata"
    model = json.loads(meta.read_text())["model"]
    meta.write_text("{" if change is None else json.dumps({"model": model | change}))
    with pytest.raises(orbax.DamagedCheckpoint, match=r"checkpoints/3/meta cannot be read: .*") as raised:
        orbax.load_config(tmp_path / "checkpoints", verify=False)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["[", "3", '{"model": 3}', '{"model": {"x": 1}}', "[" * 200_000, None])
def test_a_damaged_record_of_the_config_is_one_error(saved, tmp_path, content):
    shutil.copytree(saved[1], tmp_path / "checkpoints")
    (record,) = (tmp_path / "checkpoints" / "3" / "meta").glob("metadata")
    if content is None:
        record.unlink()
    else:
        record.write_text(content)
    with pytest.raises(orbax.DamagedCheckpoint, match="checkpoints/3/meta cannot be read") as error:
        orbax.load_config(tmp_path / "checkpoints", 3, verify=False)
    assert "\n" not in str(error.value)
