"""Checks whether this machine runs ling_jax, and prints what to do where it does not.

    python -m launch.doctor

It prints a line for each check: `ok` and the result, or `FAIL`, the reason and what to do. Exit code 0: all are ok.
"""

import importlib
import importlib.metadata
import os
import platform
import re
import sys
import time
import tomllib
import uuid
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from launch.flags import run_program

# Each check imports what it needs, so that a broken install is a line and no traceback.

PACKAGES = {"jax": "jax", "jaxlib": "jaxlib", "flax": "flax", "optax": "optax", "orbax-checkpoint": "orbax.checkpoint",
            "grain": "grain", "tokenizers": "tokenizers"}  # fmt: skip
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
MIN_SHARE = 0.3  # of the data sheet's FLOP/s; our choice: a sound device reaches more than half
TOLERANCE = 1e-4  # the error of float32 at the highest precision is about 1e-6


class Problem(Exception):
    """The problem that a check found."""


class Check(NamedTuple):
    name: str
    run: Callable[[], str]  # the result; raises Problem or another error
    advice: str


def main() -> None:
    """Runs all checks."""
    failed = [check.name for check in checks() if not report(check)]
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "all ok", flush=True)
    sys.exit(1 if failed else 0)


def checks() -> list[Check]:
    """All checks, in order."""
    install = "make install, or pip install -r requirements.lock"
    return [
        Check("python", python_version, "name a newer one: make install PYTHON=python3.12"),
        *(Check(name, partial(package_version, name), install) for name in PACKAGES),
        Check("gs:// paths", object_store, "pip install gcsfs, or name local paths only"),
        Check("devices", devices, "set JAX_PLATFORMS to what is there (cpu, cuda, tpu) and install its jaxlib"),
        Check("room for make demo", room, "as it says, or PRESET=quick make demo"),
        Check("sandbox", sandbox, "report this with the line above"),
        Check("compiled programs", compilation_cache, "set JAX_COMPILATION_CACHE_DIR to a folder that can be written"),
        Check("training step", training_step, "run make test; the versions of requirements.lock are the tested ones"),
        Check("decoding", decoding, "run make test; the versions of requirements.lock are the tested ones"),
        Check("kernels", kernels, "choose another backend, and report this with the lines above"),
        Check("matmul", matmul, "look for other programs on the device, and for a power or temperature limit"),
    ]


def report(check: Check) -> bool:
    """Runs a check and prints its line; returns whether it is ok."""
    try:
        print(f"ok    {check.name:<18} {check.run()}", flush=True)
        return True
    except Exception as error:  # any error is a problem of this machine
        why = str(error) if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
        first_line = (why.splitlines() or [""])[0]
        print(f"FAIL  {check.name:<18} {first_line}. What to do: {check.advice}", flush=True)
        return False


def python_version() -> str:
    """The version of Python and the system. Raises Problem where it is too old."""
    wanted = requirement("requires-python")
    if not satisfies(platform.python_version(), wanted):
        raise Problem(f"{platform.python_version()}; ling_jax needs {wanted}")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def package_version(name: str) -> str:
    """The version of an installed package. Raises Problem where pyproject.toml needs another."""
    importlib.import_module(PACKAGES[name])
    version = importlib.metadata.version(name)
    wanted = next((line for line in requirement("dependencies") if re.match(rf"{name}[^\w-]", line)), "")
    if not satisfies(version, wanted):
        raise Problem(f"{version}; ling_jax needs {wanted}")
    return version


def object_store() -> str:
    """The client of gs:// paths; it is no problem if it is missing, since local paths do not need it."""
    from ling_jax.paths import store

    try:
        store()
    except ValueError as error:
        return f"not read here: {error}"
    return f"read by gcsfs {importlib.metadata.version('gcsfs')}"


def requirement(field: str) -> Any:
    """A field of the project in pyproject.toml."""
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"][field]


def satisfies(version: str, requirement: str) -> bool:
    """Whether a version fulfils a requirement of `>=` and `<` bounds."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", text.split("+")[0])[:3]))

    bounds = re.findall(r"(>=|<)([\d.]+)", requirement)
    return all((numbers(version) >= numbers(bound)) == (sign == ">=") for sign, bound in bounds)


def devices() -> str:
    """The devices and their memory. Raises Problem where a GPU is not used."""
    import jax

    found = jax.local_devices()
    unused = Path("/proc/driver/nvidia/version").exists() and "JAX_PLATFORMS" not in os.environ
    if found[0].platform == "cpu" and unused:
        raise Problem("jax sees the CPU only, and there is an NVIDIA driver: pip install -e '.[cuda]'")
    memory = (found[0].memory_stats() or {}).get("bytes_limit")
    where = "each" if memory else "of RAM"
    memory = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{len(found)} x {found[0].device_kind} ({found[0].platform}), {memory / 2**30:.1f} GiB {where}"


def room() -> str:
    """The disk and the memory that the longer preset of the demo takes."""
    from launch.room import DEMO, check_demo
    from ling_jax.messages import size_text

    check_demo("full", Path("runs/demo"))
    return f"{size_text(DEMO['full'].disk)} of disk and {size_text(DEMO['full'].memory)} of memory are there"


def sandbox() -> str:
    """The tier that foreign code runs in here, and what it lacks; only environments that run code need one."""
    from ling_jax.sandbox import Sandbox, SandboxError

    try:
        with Sandbox(warm=0) as started:
            return "; ".join((f"foreign code runs in {started.tier}", *started.lacks))
    except SandboxError as error:
        return f"foreign code does not run here: {error}"


def compilation_cache() -> str:
    """The folder of compiled programs, which must be writable."""
    import jax

    from ling_jax.paths import as_path
    from ling_jax.run.program_cache import use_compilation_cache

    use_compilation_cache()
    if not jax.config.jax_compilation_cache_dir:
        raise Problem("they are not kept: there is no folder for them")
    folder = as_path(jax.config.jax_compilation_cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".doctor.{uuid.uuid4().hex}"
    probe.write_text("")
    probe.unlink()
    jax.config.update("jax_enable_compilation_cache", False)  # the next checks measure the time of compiling
    return f"are kept in {folder}"


@cache
def tiny_model() -> tuple[Any, Any]:
    """(params, config) of one layer of each kind, with weights so large that errors show in the logits."""
    import jax.numpy as jnp
    import numpy as np

    from ling_jax import model, spec
    from ling_jax.config import model_config

    config, rng = model_config("tiny-2.6", num_layers=2, layer_group_size=2, mtp_depth=0), np.random.default_rng(0)

    def leaf(declared: spec.Leaf) -> jnp.ndarray:
        # By numpy, because compiling the random init of every shape takes as long as the training step.
        return jnp.float32(rng.normal(declared.init is spec.ones, 0.1, declared.shape))

    return spec.tree_map(leaf, model.model_spec(config)), config


def training_step() -> str:
    """The time of compiling a training step, and two losses, of which the second must be lower."""
    import jax
    import jax.numpy as jnp

    from ling_jax import model, spec
    from ling_jax.train.config import OptimizerConfig
    from ling_jax.train.optimizer import make_optimizer
    from ling_jax.train.state import create_state
    from ling_jax.train.step import make_train_step

    params, config = tiny_model()
    leaves = model.model_spec(config)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=0), 2, leaves)
    state = create_state(params, optimizer, spec.trainable(leaves))
    tokens = jax.random.randint(jax.random.key(1), (2, 64), 0, config.vocab_size)
    ones, positions = jnp.ones_like(tokens), jnp.tile(jnp.arange(64), (2, 1))
    batch = {"tokens": tokens, "labels": tokens, "segment_ids": ones, "positions": positions}
    start = time.perf_counter()
    step = jax.jit(make_train_step(config, optimizer, router_bias_rate=1e-3)).lower(state, batch).compile()
    seconds, losses = time.perf_counter() - start, []
    for _ in range(2):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    if not all(map(jnp.isfinite, losses)) or losses[1] >= losses[0]:
        raise Problem(f"the loss went from {losses[0]:.4g} to {losses[1]:.4g} on the same batch; it must fall")
    return f"compiled in {seconds:.1f} s; loss {losses[0]:.4g} -> {losses[1]:.4g}"


def decoding() -> str:
    """Logits of one forward pass against those of a prefill and single tokens through the cache."""
    import jax
    import jax.numpy as jnp

    from ling_jax import model

    params, config = tiny_model()
    with jax.default_matmul_precision("highest"):
        tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, config.vocab_size)
        forward = jax.jit(model.forward, static_argnums=2)
        whole, so_far, parts = forward(params, tokens, config).logits, model.init_cache(config, 2, 12), []
        for part in (tokens[:, :8], *(tokens[:, t : t + 1] for t in range(8, 12))):
            output = forward(params, part, config, cache=so_far)
            so_far = output.cache
            parts.append(output.logits)
    error = float(jnp.max(jnp.abs(jnp.concatenate(parts, axis=1) - whole)))
    if not error <= TOLERANCE:
        raise Problem(f"logits through the cache differ by {error:.1e} from the forward pass; at most {TOLERANCE:.0e}")
    return f"logits through the cache differ by {error:.1e} (at most {TOLERANCE:.0e})"


def kernels() -> str:
    """The chunked form and the kernels of this platform against their references."""
    from pallas_kernels.lightning_attention.self_check import chosen_backend, kernel_errors

    backends = sorted({"xla", chosen_backend()})
    errors = {f"{name} {what}": error for name in backends for what, error in kernel_errors(name).items()}
    shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    if any(not error <= TOLERANCE for error in errors.values()):
        raise Problem(f"kernels are off their references by {shown}; at most {TOLERANCE:.0e}")
    return f"off their references by {shown} (at most {TOLERANCE:.0e})"


def matmul() -> str:
    """The speed of a large matmul. Raises Problem below `MIN_SHARE` of the data sheet."""
    import jax

    from ling_jax.run.speed import matmul_flops
    from pallas_kernels.chips import data_sheet_flops

    size, dtype = (2048, "float32") if jax.default_backend() == "cpu" else (8192, "bfloat16")
    speed, peak = matmul_flops(size, dtype), data_sheet_flops(jax.devices()[0])
    found = f"{speed / 1e12:.3g} TFLOP/s ({dtype}, {size} x {size})"
    if peak and speed < MIN_SHARE * peak:
        raise Problem(f"{found}, {speed / peak:.0%} of the data sheet")
    return found + (f", {speed / peak:.0%} of the data sheet" if peak else "")


if __name__ == "__main__":
    run_program(main)
