"""A damaged folder of compiled programs changes no result, is named once, and is whole again after one start."""

import concurrent.futures
import os
import random
import re
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compilation_cache

from ling_jax.run import program_cache
from ling_jax.run.program_cache import CheckedCache, use_compilation_cache
from tests.helpers.damage import DAMAGES, files_below
from tests.helpers.faults import ROOT

X = jnp.arange(8.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that JAX uses in the test."""
    monkeypatch.setattr(compilation_cache, "get_file_cache", compilation_cache.get_file_cache)
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    use_compilation_cache()
    yield tmp_path / "compiled"
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    compilation_cache.reset_cache()


def results():
    """Of two programs, as another start has them."""
    jax.clear_caches()
    return [np.asarray(jax.jit(function)(X)) for function in (lambda x: x * 2 + 1, lambda x: jnp.sin(x).sum())]


@pytest.mark.parametrize("count", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_damages_are_mended(folder, capsys, count):
    wanted, whole = results(), files_below(folder)
    assert sum(name.endswith("-cache") for name in whole) >= 2
    for seed in range(count):
        rng = random.Random(seed)
        kind = rng.choice(sorted(DAMAGES))
        changed = DAMAGES[kind](sorted(folder.iterdir()), rng)
        entries = {path.name for path in changed if path.exists() and path.name.endswith("-cache")}
        capsys.readouterr()
        np.testing.assert_equal(results(), wanted)
        told = capsys.readouterr().err
        assert all(f"{name} is damaged; it is removed" in told for name in entries), (seed, kind)
        np.testing.assert_equal(results(), wanted)
        assert "damaged" not in capsys.readouterr().err
        assert {name for name in files_below(folder) if name.endswith("-cache")} >= {n for n in whole if "-cache" in n}


def test_an_entry_of_jax_alone_is_read_and_a_damaged_one_is_mended(folder, capsys):
    wanted = results()
    for path in folder.glob("*-sum"):
        path.unlink()
    np.testing.assert_equal(results(), wanted)
    assert len(list(folder.glob("*-sum"))) >= 2 and not capsys.readouterr().err
    for path in folder.glob("*-sum"):
        path.unlink()
    entry = next(folder.glob("*-cache"))
    entry.write_bytes(entry.read_bytes()[:-3])
    np.testing.assert_equal(results(), wanted)
    assert f"{entry} is damaged" in capsys.readouterr().err


def test_two_processes_that_keep_the_same_program_leave_one_of_the_two_whole(tmp_path, capsys):
    """They begin at the same time with one folder, and no two compilations have the same bytes."""
    keys = [f"program-{i}" for i in range(100)]

    def keep(content: bytes) -> None:
        cache = CheckedCache(str(tmp_path), max_size=-1)
        for key in keys:
            cache.put(key, content)

    with concurrent.futures.ThreadPoolExecutor() as processes:
        list(processes.map(keep, [b"one", b"other"]))
    kept = {CheckedCache(str(tmp_path), max_size=-1).get(key) for key in keys}
    assert kept <= {b"one", b"other"} and not capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root may be another user")
@pytest.mark.slow
def test_a_user_without_a_home_folder_is_a_warning():
    code = "from ling_jax.run.program_cache import use_compilation_cache; use_compilation_cache()"
    command = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", sys.executable, "-c", code]
    unset = ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0
    assert done.stderr == (
        "warning: compiled programs are not kept: this user has no home folder; set HOME, or XDG_CACHE_HOME\n"
    )


def test_a_folder_that_cannot_be_one_is_a_warning(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file"))
    compilation_cache.reset_cache()
    results()
    told = capsys.readouterr().err
    assert told.count("compiled programs are not kept") == 1 and len(told.splitlines()) == 1


def compile_once(number):
    jax.clear_caches()
    jax.jit(lambda x: jnp.cos(x * number).sum())(X).block_until_ready()


def test_a_long_compilation_is_announced_with_the_seconds_of_the_last_one(folder, capsys, monkeypatch):
    monkeypatch.setattr(program_cache, "SILENT_SECONDS", 0.0)
    compile_once(3)
    assert re.search(r"compiling a program \(10 to 60 s for small models, cached afterwards\)", capsys.readouterr().out)
    compile_once(4)
    assert re.search(r"compiling a program \(about \d+ s, cached afterwards\)", capsys.readouterr().out)
    compile_once(4)
    assert "compiling" not in capsys.readouterr().out


def test_a_short_compilation_is_not_announced(folder, capsys, monkeypatch):
    monkeypatch.setattr(program_cache, "SILENT_SECONDS", 2.0)
    compile_once(5)
    time.sleep(2.2)
    assert "compiling" not in capsys.readouterr().out
