"""Several processes work in one store: ports into it and out of it, and runs that save there."""

import pytest

from ling_jax import paths
from ling_jax.checkpoint import load_hf, orbax
from ling_jax.checkpoint.manifest import read, verify
from ling_jax.checkpoint.steps import steps_in
from ling_jax.sums import local_copy
from tests.helpers.damage import files_below
from tests.helpers.tiny import assert_trees_equal
from tests.launch import test_many_hosts, test_port_on_hosts
from tests.launch.test_many_hosts import assert_same_run, run_hosts, started, wait_for
from tests.launch.test_port_on_hosts import port

alone, command, source = test_many_hosts.alone, test_many_hosts.command, test_port_on_hosts.source  # fixtures


@pytest.mark.slow
def test_two_processes_port_into_a_store_and_back_within_it(source, gs, tmp_path):
    shards = "--shard_gb=0.00003"
    into, back = [f"--source={source}", f"--target={gs}/run"], [f"--source={gs}/run", f"--target={gs}/back", shards]
    for done in port(2, [*into, "--dry_run"])[::2]:
        assert "measured here on a few batches" in done.stdout
    assert not paths.files_below(gs)
    port(2, [*into, "--verify"], [*back, "--dry_run"])
    assert not paths.files_below(gs / "back")
    port(2, [*back, "--verify"], [f"--source={gs}/run", f"--target={tmp_path / 'back'}", shards])
    assert verify(gs / "run" / "checkpoints" / "0")
    assert any("process_1/" in name for name in read(gs / "run" / "checkpoints" / "0")["files"])
    assert_trees_equal(orbax.load_params(gs / "run" / "checkpoints")[0], load_hf(source)[0])
    wanted = files_below(tmp_path / "back")
    assert sorted(wanted) == paths.files_below(gs / "back")
    for name, content in wanted.items():
        assert (gs / "back" / name).read_bytes() == content, name


@pytest.mark.slow
def test_a_host_that_is_killed_in_a_save_and_damage_send_all_to_the_checkpoint_before(
    command, alone, gs, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    workdir, saves = gs / "run", gs / "run" / "checkpoints"
    with started(command, 2, workdir, timeout=20, log=tmp_path) as (first, second):
        wait_for(lambda: paths.files_below(saves / "20"), first, second)
        second.process.kill()
        assert first.returncode == 1
    assert "error: host 1 (" in first.stderr and steps_in(saves) == [10], first.stderr
    for message in ("", "WARNING: DAMAGED CHECKPOINT"):
        first, second = run_hosts(command, 2, workdir, log=tmp_path)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert message in first.stderr and "WARNING" not in second.stderr
        assert steps_in(saves) == steps_in(alone / "checkpoints") and verify(saves / "30")
        assert_same_run(alone, local_copy(workdir))
        of_second = next(name for name in paths.files_below(saves / "30" / "state") if "process_1/d/" in name)
        (saves / "30" / "state" / of_second).write_bytes(b"other")
    assert (gs / "run" / "checkpoints" / "30.damaged").exists()
