"""What moves between devices is what it was: the collectives of the pod configs, on a cut of each.

`collectives.json` changes when a change is meant to move something else; `python -m tests.compile.test_collectives`
writes it anew.
"""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers.faults import ROOT
from tests.helpers.programs import needs_libtpu

SNAPSHOT = Path(__file__).with_name("collectives.json")
# One group of a Lightning and an MLA layer with experts, MTP, two microbatches: what a step repeats.
SIZES = dict(
    hidden_size=512, num_layers=2, layer_group_size=2, first_dense_layers=0, num_heads=8, ffn_size=512, num_experts=16,
    expert_ffn_size=256, shared_ffn_size=256, vocab_size=2048, q_lora_rank=256, kv_lora_rank=128, num_norm_groups=8,
)  # fmt: skip
ON_EIGHT = ("data.sequence_length=1024", "train.batch_size=16", "train.microbatches=2", "mesh.fsdp=4", "mesh.expert=2")
CASES = [(config, program) for config in ("ling_2_6_1t", "ling_2_6_flash") for program in ("train", "decode")]


def collectives(config: str, program: str) -> list[dict]:
    """[{kind, axes, count, bytes}], of one device in one run."""
    changes = [f"model.{name}={size}" for name, size in SIZES.items()] + list(ON_EIGHT)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [
            sys.executable, "-m", "launch.compile", f"--config=configs/pretrain/{config}.py", f"--program={program}",
            "--topology=v5p:2x2x2", f"--json_out={file.name}", *(f"--config.{change}" for change in changes),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return json.loads(Path(file.name).read_text())["collectives"]


def libtpu_version() -> str:
    return importlib.metadata.version("libtpu")


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("config", "program"), CASES)
def test_nothing_moves_that_nobody_asked_for(config, program):
    snapshot = json.loads(SNAPSHOT.read_text())
    assert snapshot["libtpu"] == libtpu_version(), "of another compiler: write it anew, and look at what differs"
    lines = lambda rows: sorted(json.dumps(row) for row in rows)  # noqa: E731
    found, wanted = lines(collectives(config, program)), lines(snapshot[f"{config} {program}"])
    new, gone = (sorted(set(a) - set(b)) for a, b in ((found, wanted), (wanted, found)))
    assert found == wanted, "\n".join(["new:", *new, "gone:", *gone])


if __name__ == "__main__":
    rows = {f"{config} {program}": collectives(config, program) for config, program in CASES}
    SNAPSHOT.write_text(json.dumps({"libtpu": libtpu_version()} | rows, indent=1) + "\n")
