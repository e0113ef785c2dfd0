import os
import subprocess
import sys
from pathlib import Path

from ling_jax.checkpoint import orbax, save_hf
from ling_jax.train.state import TrainState
from tests.helpers.tiny import random_params, tiny_config

ROOT = Path(__file__).parents[1]
USE = """
import sys
from pathlib import Path
import jax, numpy as np
import ling_jax, pallas_kernels
from ling_jax import model
from ling_jax.checkpoint import load_hf, orbax

for package in (ling_jax, pallas_kernels):
    assert package.__path__[0].startswith(sys.argv[1]), package
    assert Path(package.__path__[0], "py.typed").exists()  # type checkers read the annotations
assert Path(ling_jax.__path__[0], "serve", "page", "index.html").exists()
tokens = np.arange(8)[None]
logits = [model.forward(*load(sys.argv[2] + name)[:1], tokens, load(sys.argv[2] + name)[1]).logits
          for name, load in (("/hf", load_hf), ("/orbax", orbax.load_params))]
np.testing.assert_array_equal(*logits)
print("loaded", logits[0].shape)
"""


def test_a_built_wheel_loads_a_checkpoint_outside_the_checkout(tmp_path):
    config = tiny_config()
    params = random_params(config, dtype="float32")
    save_hf(params, config, tmp_path / "hf")
    with orbax.open_manager(tmp_path / "orbax", keep=1) as manager:
        orbax.save(manager, 3, TrainState(step=3, skipped_steps=0, params=params, opt_state=None), config)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(installed), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(installed)}  # before the checkout, which the .venv has as editable
    program = [sys.executable, "-c", USE, str(installed), str(tmp_path)]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "loaded (1, 8, 40)" in done.stdout
