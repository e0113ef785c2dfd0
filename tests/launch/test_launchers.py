"""The scripts for pods and SLURM start a run again where a step hung, and only there; commands of clusters are stood in
for by scripts that run here what they are given."""

import os
import subprocess
import time

import pytest

from tests.helpers.faults import ROOT

# Ends with the codes of a file, one a run; without one it waits for SIGTERM as a training does.
PROGRAM = """#!/bin/bash
echo run "$@" >> runs
code=$(head -n 1 codes)
sed -i 1d codes
[ -n "$code" ] && exit "$code"
trap 'echo saved; exit 143' TERM
while :; do sleep 0.05; done
"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    """The home folder of a host: a checkout with a program in place of its Python, and the cluster's commands."""
    scripts = {
        "ling_jax/.venv/bin/python": PROGRAM,
        "bin/gcloud": '#!/bin/bash\ncd "$HOME"\nlast=${@: -1}\nexec bash -c "${last#--command=}"\n',
        "bin/srun": '#!/bin/bash\nshift 2\nexec "$@"\n',
    }
    for name, text in scripts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(tmp_path / "ling_jax"))
    return tmp_path / "ling_jax"


@pytest.mark.parametrize("codes", [[75, 75, 0], [75, 1], [143]])
def test_a_run_is_started_again_on_code_75_alone(host, codes):
    for command in (["slurm.sbatch", "--config=a b"], ["pod.sh", "run", "pod", "zone", "-m", "x", "--config=a b"]):
        (host / "codes").write_text("".join(f"{code}\n" for code in codes))
        (host / "runs").unlink(missing_ok=True)
        done = subprocess.run(["bash", ROOT / "launch" / command[0], *command[1:]], timeout=60, capture_output=True)
        runs = (host / "runs").read_text().splitlines()
        assert len(runs) == len(codes) and all(run.endswith("--config=a b") for run in runs)
        assert done.returncode == (codes[-1] if command[0] == "slurm.sbatch" else 0), done


def test_a_run_on_a_pod_is_stopped_and_not_started_again(host):
    (host / "codes").touch()
    pod = ["bash", ROOT / "launch" / "pod.sh"]
    with subprocess.Popen([*pod, "run", "pod", "zone", "-m", "x"]) as running:
        while not (host / "runs").exists():
            time.sleep(0.02)
        time.sleep(0.2)  # until it handles signals
        assert subprocess.run([*pod, "stop", "pod", "zone"], timeout=60).returncode == 0
        assert running.wait(timeout=60) == 0
    assert (host / "run.log").read_text().endswith("saved\n") and (host / "runs").read_text() == "run -m x\n"
