"""Programs compile for TPUs that are not here; what cannot is refused in one line."""

import dataclasses
import importlib
import importlib.util
import json
import math
import pickle
import re
import subprocess
import sys

import pytest

from ling_jax.compile.programs import misfit
from ling_jax.compile.report import bytes_asked_for
from ling_jax.compile.topology import describe, slice_topology
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import abstract_mesh
from ling_jax.run.start import with_sizes
from ling_jax.train.config import PretrainConfig, from_dict
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import device_rows
from ling_jax.train.state import abstract_state, state_bytes
from pallas_kernels.chips import CHIPS
from tests.helpers.faults import ROOT
from tests.helpers.programs import needs_libtpu


def test_an_unknown_chip_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"'v5q:2x2' is unknown: 'v5q' is none of v5e, v5p, v6e, tpu7x"):
        describe("v5q:2x2")


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        ("v5p-256", "v5p:4x4x8"),  # TensorCores, two a chip
        ("v5p-2048", "v5p:8x8x16"),
        ("v5litepod-256", "v5e:16x16"),
        ("v5e-8", "v5e:2x4"),
        ("v6e-32", "v6e:4x8"),
        ("v5p:8x8x2", "v5p:8x8x2"),
    ],
)
def test_a_slice_is_named_as_its_cloud_names_it(name, topology):
    assert slice_topology(name) == topology


def test_a_size_that_no_slice_has_is_answered_with_the_nearest():
    nearest = r"v5p-200' is no slice .*TensorCores, two a chip.* v5p-128 \(v5p:4x4x4\) and v5p-256 \(v5p:4x4x8\)"
    with pytest.raises(ValueError, match=nearest):
        slice_topology("v5p-200")
    with pytest.raises(ValueError, match="'v4' is none of v5e, v5p, v6e, tpu7x"):
        describe(slice_topology("v4-8"))


@pytest.mark.parametrize("name", ["v5e:16x32", "v5e:2x4x4", "v6e:2x2x2"])
def test_layouts_that_a_chip_does_not_have_are_refused_before_libtpu_aborts(name):
    with pytest.raises(ValueError, match=f"'{name}' does not exist: v.e has two axes of 16 at the most"):
        describe(name)


def test_libtpu_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[tpu\]'"):
        describe("v5p:2x2x1")


PODS = {  # config: (chip, devices, tokens of a device in a microbatch)
    "ling_2_6_1t": ("v5p", 1024, 4096),
    "ling_2_6_1t_32k": ("v5p", 1024, 4096),
    "ling_2_6_1t_256k": ("v5p", 1024, 4096),
    "ling_2_6_flash": ("v6e", 256, 8192),
    "ling_2_6_flash_32k": ("v6e", 256, 8192),
    "ling_2_6_flash_256k": ("v6e", 256, 8192),
    "continue_2_6_flash": ("v6e", 256, 8192),
}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_config_splits_over_its_pod(name):
    config = importlib.import_module(f"configs.pretrain.{name}").get_config()
    if config.start_from is not None:
        config.start_from = "ling-2.6-flash"  # its sizes, as `launch.compile` takes them
    config = with_sizes(from_dict(PretrainConfig, config.to_dict()))
    mesh = abstract_mesh(**dataclasses.asdict(config.mesh))
    chip, devices, tokens = PODS[name]
    assert mesh.size == devices
    optimizer = make_optimizer(config.optimizer, config.train.steps, model_spec(config.model))
    assert state_bytes(abstract_state(config.model, optimizer, mesh)) < 0.25 * CHIPS[chip].hbm_bytes
    held = device_rows(config.train.batch_size, config.train.microbatches, mesh)
    assert held * config.data.sequence_length == tokens * config.train.microbatches * devices


FIELDS = {
    "program": "train", "hbm_bytes": 95e9, "argument_bytes": 12e9, "hbm_peak_bytes": 120e9, "microbatches": 9,
    "batch_size": 18144, "mesh": {"data": 1, "fsdp": 128, "expert": 8, "context": 1, "tensor": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"takes 120.0 GB of every device, 25.0 GB too many; train.microbatches=12 would make it about 93.0 GB"),
        ({"microbatches": 18}, r"25.0 GB too many; 2 times the devices along mesh.fsdp would do"),
        (
            {"argument_bytes": 190e9, "hbm_peak_bytes": 190e9},
            r"arguments alone .* 95.0 GB too many.* 2 times further",
        ),
        ({"program": "decode", "rows": 64}, r"half of the rows \(--rows=32\)"),
        (
            {"program": "decode", "rows": 64, "argument_bytes": 190e9, "hbm_peak_bytes": 190e9},
            r"arguments alone .* 95.0 GB too many: --rows=32, or split them 2 times further",
        ),
    ],
    ids=["rows", "one row", "state", "decode", "caches"],
)
def test_what_does_not_fit_says_by_how_much_and_what_would(changes, message):
    assert re.search(message, misfit(FIELDS | changes))


@pytest.mark.parametrize(
    ("error", "gib"),
    [
        ("Ran out of memory in memory space hbm. Used 114.90G of 95.74G hbm. Exceeded hbm capacity by 19.16G", 114.9),
        ("the total memory required for HLO temporaries (30.54G) exceeds available HBM (15.75G)", 30.54),
    ],
)
def test_the_compilers_refusals_are_read(error, gib):
    assert bytes_asked_for(f"RESOURCE_EXHAUSTED: {error}") == gib * 2**30


def test_another_memory_that_is_too_small_is_not_taken_for_hbm():
    assert bytes_asked_for("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17M of 16M vmem") == 0


@needs_libtpu
@pytest.mark.slow
def test_one_chip_and_a_vocabulary_that_is_all_the_work(tmp_path):
    """Prefill has logits of the last token alone; MFU over 1 would be an error."""
    file = tmp_path / "report.json"
    done = compile_tiny(
        *("--topology=v5e:1x1", "--program=prefill", "--rows=512", "--config.model.vocab_size=400000"),
        *("--config.mesh.data=1", f"--json_out={file}"),
    )
    assert done.returncode == 0, done.stderr
    fields = json.loads(file.read_text())
    assert 0 < fields["model_flops"] <= fields["flops_per_chip"] and fields["model_flops_mtp"] == 0


def compile_tiny(*arguments):
    program = [sys.executable, "-m", "launch.compile", "--config=configs/pretrain/tiny_2_6.py", *arguments]
    return subprocess.run(program, capture_output=True, text=True, cwd=ROOT)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "prefill", "decode"])
def test_every_program_compiles_and_says_what_it_costs(tmp_path, program):
    file = tmp_path / "report.json"
    sizes = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.expert=2")
    saved = ("--topology=v5e:2x2", f"--program={program}", f"--json_out={file}", f"--save={tmp_path / 'executable'}")
    done = compile_tiny(*saved, *sizes)
    assert done.returncode == 0, done.stderr
    assert len(pickle.loads((tmp_path / "executable").read_bytes())[0]) > 0
    fields = json.loads(file.read_text())
    assert fields["step_seconds_bound"] == max(fields["seconds"].values()) > 0
    assert 0 < fields["mfu_bound"] <= 1
    assert fields["argument_bytes"] < fields["hbm_peak_bytes"] < fields["hbm_bytes"]
    assert fields["fits"] and not fields["problem"]
    assert {"expert", "fsdp"} <= {axis for row in fields["collectives"] for axis in row["axes"]}


@needs_libtpu
@pytest.mark.slow
def test_a_stage_of_a_migration_has_no_gradients_of_what_is_frozen(tmp_path):
    found = {}
    for stage in ("linear_warmup", "continued"):
        program = [sys.executable, "-m", "launch.compile", "--config=configs/migrate/tiny.py", f"--stage={stage}"]
        program += ["--topology=v5e:2x2", "--config.source=tiny-2.0", f"--json_out={tmp_path / stage}"]
        program += ["--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.expert=2"]
        done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        found[stage] = json.loads((tmp_path / stage).read_text())
    first, last = found["linear_warmup"], found["continued"]
    assert first["argument_bytes"] < 0.6 * last["argument_bytes"]  # two of three parts are moments
    assert first["flops_per_chip"] < 0.9 * last["flops_per_chip"] and first["model_flops"] < last["model_flops"]


@needs_libtpu
@pytest.mark.slow
def test_gradients_cross_the_network_of_slices(tmp_path):
    file = tmp_path / "report.json"
    sizes = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.expert=2")
    done = compile_tiny("--topology=v5e:2x2", "--slices=2", f"--json_out={file}", *sizes)
    assert done.returncode == 0, done.stderr
    fields = json.loads(file.read_text())
    gradients = 4 * fields["parameters"] / 4  # float32; fsdp and expert split them (not all) four ways
    assert gradients < fields["network_bytes_per_chip"] < 3 * gradients
    assert fields["seconds"]["network"] == pytest.approx(fields["network_bytes_per_chip"] / (25e9 / 8))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology=v5e:two",), "topology 'v5e:two' does not exist"),
        (("--topology=v5e:2x2", "--config.mesh.fsdp=3"), "does not fill 4 devices"),
        (("--topology=v5e:2x2", "--slices=2", "--config.mesh.data=1", "--config.mesh.fsdp=8"), "are 2 slices"),
        (("--topology=v5e:2x2", "--stage=continued"), "the config is no migration's"),
        (("--topology=v5e:2x2", "--plan", "--config.mesh.context=3"), "mesh.context is 3"),
        (("--topology=v5e:2x2", "--rows=4"), "--rows is for --program=prefill or decode"),
        (("--topology=v5e:2x2", "--json_out=a", "--save=a"), "are both a; name two files"),
        (("--topology=v5e:2x2", "--json_out=no/such/folder.json"), "its folder does not exist"),
    ],
)
def test_what_cannot_be_compiled_is_refused(arguments, message):
    done = compile_tiny(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_reported_and_refused(tmp_path):
    file = tmp_path / "report.json"
    sizes = ("--config.train.batch_size=65536", "--config.mesh.data=4", "--config.mesh.expert=1")
    done = compile_tiny("--topology=v5e:2x2", f"--json_out={file}", *sizes)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    fields = json.loads(file.read_text())
    assert not fields["fits"] and fields["mfu_bound"] is None and fields["problem"] in done.stderr
    assert "train.microbatches=" in fields["problem"]


@needs_libtpu
@pytest.mark.slow
def test_no_mesh_that_the_plan_rules_out_is_better_than_its_winner(tmp_path):
    """And the winner takes the memory that the plan says."""
    file = tmp_path / "plan.json"
    sizes = ("--topology=v5e:2x4", "--config.model.num_layers=2", "--config.model.layer_group_size=2")
    done = compile_tiny(*sizes, "--plan", f"--json_out={file}")
    assert done.returncode == 0, done.stderr
    winner = json.loads(file.read_text())
    others = [row for row in winner["plan"] if row["step_seconds_bound"] is None]
    assert len(winner["plan"]) == 19
    assert winner["step_seconds_bound"] == min(row["step_seconds_bound"] or math.inf for row in winner["plan"])
    for row in [winner["plan"][0], *others]:
        fields = {f"mesh.{axis}": size for axis, size in row["mesh"].items()}
        fields |= {"model.remat": row["remat"], "train.microbatches": row["microbatches"]}
        again = tmp_path / "again.json"
        done = compile_tiny(
            *sizes, f"--json_out={again}", *(f"--config.{name}={value}" for name, value in fields.items())
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(again.read_text())
        assert found["step_seconds_bound"] >= winner["step_seconds_bound"], row
        if row is winner["plan"][0]:
            assert found["hbm_peak_bytes"] == pytest.approx(winner["hbm_peak_bytes"], rel=0.1)
