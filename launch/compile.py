"""Compiles a run's programs for TPUs that are not here, and says what a step costs at the least.

    python -m launch.compile --config=configs/pretrain/ling_2_6_1t.py --topology=v5p:8x8x16 --json_out=1t.json

No TPU is needed, only libtpu (`pip install 'ling-jax[tpu]'`) and some minutes of one core. The train step is the one
that `launch.pretrain` runs: optimiser, MTP, experts and kernels included. Fields of the config are overridden by
`--config.mesh.expert=16`. Exit code 2: the config, the topology or the mesh is no good, or the program does not fit
(the report is written all the same).
"""

import json
import os

# Before JAX starts; what is set already stays.
ENVIRONMENT = dict(
    JAX_PLATFORMS="cpu", TPU_ACCELERATOR_TYPE="v5p-8", TPU_WORKER_HOSTNAMES="localhost", TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)  # fmt: skip
os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})

from absl import flags  # noqa: E402
from etils import epath  # noqa: E402

from launch.flags import check_output, define_config, run_program, usage_errors  # noqa: E402
from ling_jax.compile.programs import compile_and_report  # noqa: E402
from ling_jax.compile.report import as_text  # noqa: E402
from ling_jax.train.config import PretrainConfig, from_dict  # noqa: E402

CONFIG = define_config()
TOPOLOGY = flags.DEFINE_string("topology", None, "the devices, such as v5p:8x8x16", required=True)
PROGRAM = flags.DEFINE_enum("program", "train", ["train", "prefill", "decode"], "what to compile")
ROWS = flags.DEFINE_integer("rows", 0, "rows of prefill or decode; 0: one for each device that splits the batch")
JSON_OUT = flags.DEFINE_string("json_out", "", "where the report goes as JSON")
SAVE = flags.DEFINE_string("save", "", "where the executable goes, for jax.experimental.serialize_executable")


def main() -> None:
    with usage_errors():
        for flag in (JSON_OUT, SAVE):
            check_output(flag.name, flag.value)
        config = from_dict(PretrainConfig, CONFIG.value.to_dict())
        fields = compile_and_report(config, TOPOLOGY.value, PROGRAM.value, rows=ROWS.value, save=SAVE.value)
        print(as_text(PROGRAM.value, fields), flush=True)
        if JSON_OUT.value:
            epath.Path(JSON_OUT.value).write_text(json.dumps(fields, indent=1) + "\n")
        if fields["problem"]:
            raise ValueError(f"it does not fit: {fields['problem']}")


if __name__ == "__main__":
    run_program(main)
