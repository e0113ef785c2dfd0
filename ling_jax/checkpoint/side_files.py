"""Side files of a model, neither weights nor config.json: tokenizer, template, licence, model card, code.

In a Hugging Face folder they are beside the weights, in a run's workdir in tokenizer/. Ports copy them unchanged. A
model that was trained from scratch gets the side files that readers of its export need.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from etils import epath
from tokenizers import Tokenizer

from ling_jax import spec as specs
from ling_jax.chat.default_source import default_source
from ling_jax.chat.end_tokens import GENERATION_CONFIG, KEY
from ling_jax.chat.folder_template import CONFIG_NAME, FILE_NAME, read_object
from ling_jax.chat.template import END
from ling_jax.checkpoint.hf_config import to_hf
from ling_jax.checkpoint.index import OTHER_WEIGHTS
from ling_jax.config import ModelConfig
from ling_jax.data.tokenizer import EOS
from ling_jax.files import replacing
from ling_jax.model import model_spec
from ling_jax.paths import as_path, files_below, resolved

BOS = "<|startoftext|>"
MODEL_CARD = "README.md"
# Files that describe the weights: copies would describe the old weights.
OF_WEIGHTS = ("config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json")
WEIGHTS = (".index.json", ".onnx_data", ".onnx.data", ".tflite", ".npy", ".distcp", ".ot", *OTHER_WEIGHTS)
# Folders with weights in another format or of another step.
SKIPPED_FOLDERS = re.compile(r"original|onnx|gguf|checkpoints|(checkpoint-|global_step)\d+")


def side_files(folder: epath.PathLike) -> Iterator[PurePosixPath]:
    """The relative paths of the side files in a model's folder; hidden files are none."""
    for path in map(PurePosixPath, files_below(folder)):
        skipped = any(name.startswith(".") or SKIPPED_FOLDERS.fullmatch(name) for name in path.parts[:-1])
        # Backups and broken downloads have a suffix after ".safetensors".
        left_out = path.name.startswith(".") or ".safetensors" in path.name or path.name.endswith(WEIGHTS)
        if not skipped and not left_out and str(path) not in OF_WEIGHTS:
            yield path


def copy_side_files(source: epath.PathLike, target: epath.PathLike) -> None:
    """Copies the side files of a model's folder, following links; existing files are replaced.

    It does nothing where both are the same folder, or where the source does not exist. Raises OSError.
    """
    source, target = as_path(source), as_path(target)
    if resolved(source) == resolved(target):
        return
    for path in side_files(source):
        with (source / path).open("rb") as original, replacing(target / path) as copy:
            shutil.copyfileobj(original, copy)


def fill_in(folder: Path, config: ModelConfig, tokenizer: Tokenizer | None, *, chat: bool) -> None:
    """Adds missing files to an export: token ids in config.json, generation_config.json, tokenizer_config.json with the
    default chat template, and a model card. Existing entries are not changed.

    `chat`: the model is tuned for conversations. Then the end of a turn ends its texts, and a tokenizer_config.json
    without a template gets the default one. Without a tokenizer it adds the card only.
    """
    if tokenizer is not None:
        ids = _ids(tokenizer, {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS})
        known = read_object(folder / "config.json")
        _write(known | ids | known, folder / "config.json")  # the file's own keys come first, unchanged
        ends = list(_ids(tokenizer, {EOS: EOS} | ({END: END} if chat else {})).values())
        noted = read_object(folder / GENERATION_CONFIG)
        if ends and noted.keys() <= {KEY}:  # empty, or only the end tokens that a run wrote
            _write(ids | {KEY: ends} | noted, folder / GENERATION_CONFIG)
        known, template = read_object(folder / CONFIG_NAME), _template(folder, tokenizer)
        if not (folder / CONFIG_NAME).exists():
            _write(_tokenizer_config(config, tokenizer) | template, folder / CONFIG_NAME)
        elif chat and template and not known.get("chat_template"):
            _write(known | template, folder / CONFIG_NAME)
    if not (folder / MODEL_CARD).exists():
        (folder / MODEL_CARD).write_text(model_card(config), encoding="utf-8")


def _ids(tokenizer: Tokenizer, tokens: dict[str, str]) -> dict[str, int]:
    """{key: id} of the tokens that the tokenizer has."""
    return {key: id for key, token in tokens.items() if (id := tokenizer.token_to_id(token)) is not None}


def _tokenizer_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    tokens = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    found = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_length}
    found |= {key: tokens[key] for key in _ids(tokenizer, tokens)}
    return found | {"clean_up_tokenization_spaces": False}


def _template(folder: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """The default template as a key of tokenizer_config.json, for a tokenizer with turns and no template of its own."""
    needed = tokenizer.token_to_id(END) is not None and not (folder / FILE_NAME).exists()
    return {"chat_template": default_source()} if needed else {}


def model_card(config: ModelConfig) -> str:
    """The text of a short README.md about a model."""
    hf, size = to_hf(config), specs.count(model_spec(config))
    rows = {
        "parameters": f"{size / 1e9:.3f} B" if size >= 1e8 else f"{size / 1e6:.3f} M",
        "layers": f"{config.num_layers}, and {config.mtp_depth} for multi-token prediction",
        "hidden size": config.hidden_size,
        "heads": config.num_heads,
        "experts": f"{config.num_experts}, {config.top_k} of a token",
        "vocabulary": config.vocab_size,
        "context": f"{config.max_length} tokens",
        "dtype": config.compute_dtype,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""# Model card

A model of the architecture `{hf["architectures"][0]}` (Ling / Ring), written by ling_jax.

| | |
|---|---|
{table}

```python
from ling_jax.checkpoint import load_hf

params, config = load_hf("this folder")
```

`transformers` needs the official modeling files beside the weights, named by `auto_map` in config.json, and
`trust_remote_code=True`.

License: not set. Whoever publishes these weights sets it here.
"""


def _write(value: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
