"""Two model folders compared on the same tokens, layer by layer (`layer_errors`), as text."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ling_jax import data
from ling_jax.checkpoint.folder import check_model_folder
from ling_jax.checkpoint.index import is_workdir, weight_files
from ling_jax.checkpoint.layers import open_layers
from ling_jax.checkpoint.orbax_parts import OrbaxReader
from ling_jax.checkpoint.parts import Reader
from ling_jax.data.tokenizer import FILE_NAME as TOKENIZER_FILE
from ling_jax.evaluate.layer_errors import (
    DEPARTS,
    LogitError,
    PartError,
    check_comparable,
    compare_layers,
    config_differences,
)
from ling_jax.paths import as_path

SEED = 0  # of random tokens; our choice
WIDTHS = (18, 18, 10, 10)  # of the table's columns


def compare_folders(a: str, b: str, *, num_tokens: int, prompt: str = "") -> Iterator[str]:
    """Lines of text: what the configs say differently, an error of every layer, the first one that departs, KL.

    A folder is a workdir, a checkpoint in its checkpoints/, or a Hugging Face folder. The tokens are those of `prompt`
    by A's tokenizer (B's where A has none), at most `num_tokens`, or else so many random ones, always the same. Raises
    as `open_layers`, and ValueError where the models are not of the same sizes or cannot read the tokens.
    """
    readers = _open(a), _open(b)
    configs = [reader.config for reader in readers]
    check_comparable(*configs)
    longest = min(num_tokens, *(config.max_length for config in configs))
    tokens = (
        _prompt_tokens(prompt, (a, b), configs[0].vocab_size) if prompt else _random(longest, configs[0].vocab_size)
    )
    yield from (f"the configs differ: {text}" for text in config_differences(*configs))
    yield f"A {a}, B {b}; {min(len(tokens), longest)} tokens" + ("" if prompt else f", random ones of seed {SEED}")
    yield _row("", "", "error", "own error", "rounding")
    parts: list[PartError] = []
    for found in compare_layers(*readers, tokens[None, :longest]):
        if isinstance(found, PartError):
            parts.append(found)
            yield _row(found.name, found.kind, *(f"{x:.3g}" for x in (found.error, found.own, found.rounding)))
        else:
            yield _distance(found)
    yield _first(parts)


def _open(path: str) -> Reader:
    folder = as_path(path)
    if _is_checkpoint(folder):
        return OrbaxReader(folder.parent, int(folder.name))
    if not is_workdir(folder):
        check_model_folder(folder)
    return open_layers(folder)


def _is_checkpoint(folder: Path) -> bool:
    """Whether a path is that of a single checkpoint, WORKDIR/checkpoints/STEP, and of no Hugging Face folder."""
    is_step = folder.parent.name == "checkpoints" and folder.name.isdecimal()
    return is_step and not (folder.is_dir() and weight_files(folder))


def _random(count: int, vocab_size: int) -> np.ndarray:
    return np.random.default_rng(SEED).integers(0, vocab_size, count)


def _prompt_tokens(prompt: str, folders: tuple[str, str], vocab_size: int) -> np.ndarray:
    for folder in map(_side_folder, folders):
        if (folder / TOKENIZER_FILE).exists():
            tokens = np.array(data.load_tokenizer(folder).encode(prompt, add_special_tokens=False).ids)
            if not len(tokens):
                raise ValueError(f"--prompt is no token of {folder / TOKENIZER_FILE}; expected a text of one or more")
            if (last := tokens.max()) >= vocab_size:
                raise ValueError(
                    f"--prompt has token {last} of {folder / TOKENIZER_FILE}; the models' vocabulary is {vocab_size}"
                )
            return tokens
    raise ValueError(f"neither {folders[0]} nor {folders[1]} has a {TOKENIZER_FILE} for --prompt; leave it out")


def _side_folder(path: str) -> Path:
    folder = as_path(path)
    if _is_checkpoint(folder):
        return folder.parents[1] / "tokenizer"
    return folder / "tokenizer" if is_workdir(folder) else folder


def _row(name: str, kind: str, *numbers: str) -> str:
    return "".join(text.ljust(width) for text, width in zip((name, kind, *numbers), (*WIDTHS, 0), strict=True)).rstrip()


def _distance(found: LogitError) -> str:
    kl = f"KL(A, B) {found.mean_kl:.3g} nats a token, at most {found.max_kl:.3g}"
    return f"{found.name}: {kl}; the likeliest token is the same for {found.same_top:.2%}"


def _first(parts: list[PartError]) -> str:
    if not any(part.own for part in parts):
        return "no difference: all outputs are the same bits"
    for part in parts:
        if part.departs:
            kind = f" ({part.kind})" if part.kind else ""
            return f"the first part that departs: {part.name}{kind}, whose own error is {part.own:.3g}"
    return f"no part departs: no own error is more than {DEPARTS} times what rounding to the other's dtypes does"
