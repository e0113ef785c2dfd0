"""Compiles a run's programs for TPUs that are not here, and prints a lower bound of a step's time.

    python -m launch.compile --config=configs/pretrain/ling_2_6_1t.py --topology=v5p:8x8x16 --json_out=1t.json
    python -m launch.compile --config=configs/migrate/1t.py --stage=mla_warmup --topology=v5p:8x8x16
    python -m launch.compile --config=configs/rl/ring_2_6_1t.py --program=rl --topology=v5p:8x8x16

`--topology` is a shape such as v5p:4x4x8, or a slice as Google Cloud names it: v5p-256 (TensorCores, two a chip),
v5litepod-256 and v6e-256 (chips).
No TPU is needed, only libtpu (`pip install -e '.[tpu]'`) and some minutes of one core. The train step is the one
that `launch.pretrain` runs, or `launch.migrate` in a `--stage`: optimiser, MTP, experts and kernels included. (A
migration's `--config.source` and a pre-training's `--config.start_from` may be the name of a model here; no weights are
read.) `--config.mesh.expert=16` overrides a field of the config; `--plan` looks for the best mesh. Exit code 2 means
that the config, the topology or the mesh is wrong, or that the program does not fit (the report is still written).
"""

import dataclasses
import os
from typing import Any

# Set before JAX starts; existing values stay.
ENVIRONMENT = dict(
    JAX_PLATFORMS="cpu", TPU_ACCELERATOR_TYPE="v5p-8", TPU_WORKER_HOSTNAMES="localhost", TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)  # fmt: skip
os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})

from absl import flags  # noqa: E402

from launch.compile_config import STAGES, Wanted, read_wanted  # noqa: E402
from launch.flags import check_output, define_config, run_program, usage_errors  # noqa: E402
from ling_jax.compile import plan  # noqa: E402
from ling_jax.compile.programs import compile_and_report, compile_on  # noqa: E402
from ling_jax.compile.report import as_text  # noqa: E402
from ling_jax.compile.topology import describe, slice_topology  # noqa: E402
from ling_jax.files import write_json  # noqa: E402
from ling_jax.parallel.sharding import make_mesh  # noqa: E402
from ling_jax.rl.config import RLConfig  # noqa: E402
from ling_jax.rl.pods import PROGRAMS, rl_program  # noqa: E402
from ling_jax.train.config import PretrainConfig  # noqa: E402

CONFIG = define_config(*STAGES)
TOPOLOGY = flags.DEFINE_string("topology", None, "the devices, such as v5p:8x8x16, or v5p-2048", required=True)
SLICES = flags.DEFINE_integer("slices", 1, "slices of the topology, joined by their hosts' network", lower_bound=1)
STAGE = flags.DEFINE_string("stage", "", "which stage of a migration's config")
OF_TRAINING = ("train", "prefill", "decode")
PROGRAM = flags.DEFINE_enum(
    "program", "train", list(dict.fromkeys((*OF_TRAINING, *PROGRAMS))), "what to compile (docs/pods.md)"
)
ROWS = flags.DEFINE_integer(
    "rows", 0, "rows of prefill or decode; 0: one for each device that splits the batch", lower_bound=0
)
JSON_OUT = flags.DEFINE_string("json_out", "", "file for the report as JSON")
PLAN = flags.DEFINE_bool("plan", False, "search mesh, remat and microbatches for the best step that fits")
SAVE = flags.DEFINE_string("save", "", "file for the executable, by jax.experimental.serialize_executable")


def main() -> None:
    with usage_errors():
        for flag in (JSON_OUT, SAVE):
            check_output(flag.name, flag.value)
        if JSON_OUT.value and JSON_OUT.value == SAVE.value:
            raise ValueError(f"--json_out and --save are both {SAVE.value}; name two files")
        if ROWS.value and (PROGRAM.value not in ("prefill", "decode") or "rollout" in CONFIG.value):
            raise ValueError(
                "--rows is for prefill and decode of a pre-training's config; other programs have the rows of their "
                "config, such as rollout.slots"
            )
        if PLAN.value and (SAVE.value or PROGRAM.value != "train"):
            raise ValueError("--plan compiles train steps and keeps none: leave --save and --program out")
        topology = slice_topology(TOPOLOGY.value)
        if topology != TOPOLOGY.value:
            print(f"{TOPOLOGY.value} is {topology}", flush=True)
        wanted = read_wanted(CONFIG.value.to_dict(), STAGE.value)
        if PLAN.value and wanted.trainable is not None:
            raise ValueError(
                "--plan searches for a pre-training's mesh; a migration's stage has the mesh of its config"
            )
        allowed = PROGRAMS if isinstance(wanted.config, RLConfig) else OF_TRAINING
        if PROGRAM.value not in allowed:
            raise ValueError(f"--program is {PROGRAM.value}; of this config it is one of {', '.join(allowed)}")
        fields = _planned(wanted.config, topology) if PLAN.value else _compiled(wanted, topology)
        if JSON_OUT.value:
            write_json(fields, JSON_OUT.value)
        if fields["problem"]:
            raise ValueError(fields["problem"])


def _compiled(wanted: Wanted, topology: str) -> dict[str, Any]:
    if isinstance(wanted.config, RLConfig):
        fields = _compiled_rl(wanted, topology)
    else:
        fields = compile_and_report(
            wanted.config,
            topology,
            PROGRAM.value,
            trainable=wanted.trainable,
            slices=SLICES.value,
            rows=ROWS.value,
            save=SAVE.value,
        )
    print(as_text(PROGRAM.value, fields), flush=True)
    return fields


def _compiled_rl(wanted: Wanted, topology: str) -> dict[str, Any]:
    devices, chip = describe(topology, SLICES.value)
    mesh = make_mesh(dataclasses.asdict(wanted.config.mesh), devices)
    program = rl_program(wanted.config, wanted.model, mesh, PROGRAM.value)
    fields = compile_on(mesh, chip, program, wanted.model, save=SAVE.value)
    return fields | {"topology": topology, "slices": SLICES.value, "program": PROGRAM.value}


def _planned(config: PretrainConfig, topology: str) -> dict[str, Any]:
    """The report of the best mesh, with all candidates as its `plan`."""

    def measure(config: PretrainConfig) -> dict[str, Any]:
        fields = compile_and_report(config, topology, slices=SLICES.value)
        bound = f"{fields['step_seconds_bound']:.4g} s" if fields["fits"] else "does not fit"
        how = f"{fields['mesh']} remat {config.model.remat}, {config.train.microbatches} microbatches"
        print(f"{how}: {bound}, compiled in {fields['compile_seconds']:.0f} s", flush=True)
        return fields

    devices, chip = describe(topology, SLICES.value)
    tried = plan.plan(config, len(devices), chip, measure, slices=SLICES.value)
    print(plan.as_text(tried), flush=True)
    rows = [
        {"mesh": t.config.mesh, "remat": t.config.model.remat, "microbatches": t.config.train.microbatches}
        | {"at_least": t.lower_bound, "reason": t.reason}
        | {name: (t.fields or {}).get(name) for name in ("step_seconds_bound", "limiting_term", "hbm_peak_bytes")}
        for t in tried
    ]
    rows = [row | {"mesh": dataclasses.asdict(row["mesh"])} for row in rows]
    return (tried[0].fields or {"problem": plan.reason_of(tried)}) | {"plan": rows}


if __name__ == "__main__":
    run_program(main)
