"""Hints for a path that is no model: what was probably meant."""

import re
from pathlib import Path

from ling_jax.checkpoint.index import is_workdir, other_weights, weight_files

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
RUNS = "runs"  # where the configs and the documentation have their workdirs
NAMED = 8  # folders that a hint lists


def near_models(path: Path) -> str:
    """ "; …" with a model nearby: the workdir around checkpoints, the stages of a run, the folder of a file."""
    if path.is_file():
        inside = path.suffix == ".safetensors"
        return f"; it is a file{f': name its folder, {path.parent}' if inside else ', and a model is a folder'}"
    if not path.exists():
        return _hub(path)
    for workdir in list(path.parents)[:2]:
        if "checkpoints" in path.relative_to(workdir).parts and is_workdir(workdir):
            return f"; it is inside of a workdir: name {workdir}, and a checkpoint by --step"
    models = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _is_model(folder)]
    if models:
        more = f" and {len(models) - NAMED} more" if len(models) > NAMED else ""
        return f"; it holds several models: name one of {', '.join(map(str, models[:NAMED]))}{more}"
    return other_weights(path)


def _is_model(folder: Path) -> bool:
    return is_workdir(folder) or bool(weight_files(folder))


def _hub(path: Path) -> str:
    """Of a path where nothing is: a name on a hub, unless its folder is here or called as the folder of runs is."""
    if HUB_NAME.fullmatch(str(path)) and not path.parent.exists() and path.parts[0] != RUNS:
        return (
            f"; no such folder is here: fetch it by `hf download {path} --local-dir {path.name}`, and name {path.name}"
        )
    if path.parts[0] == RUNS:
        return "; it does not exist: run the program that makes it first (a config's first lines give the commands)"
    return "; it does not exist; name the workdir of a run, or the folder of a model that was fetched"
