"""A model to generate from: weights, tokenizer and chat template of one folder."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from tokenizers import Tokenizer

from ling_jax import data
from ling_jax.chat.folder_template import FolderTemplate, load_template
from ling_jax.chat.template import END, ChatTemplate
from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.hf import load_hf, load_hf_config
from ling_jax.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Loaded:
    params: Any
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | FolderTemplate

    @property
    def end_ids(self) -> set[int]:
        return end_ids(self.tokenizer)


def end_ids(tokenizer: Tokenizer) -> set[int]:
    """Tokens that close a text: the end of a document, and of a turn where the tokenizer knows turns."""
    end_of_turn = tokenizer.token_to_id(END)
    return {data.eos_id(tokenizer)} | ({end_of_turn} if end_of_turn is not None else set())


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model on disk: all but its weights is read."""

    path: Path
    step: int | None  # of a workdir's checkpoints; None: a Hugging Face folder
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | FolderTemplate

    def params(self, mesh: jax.sharding.Mesh | None = None):
        """The weights as they are stored: a workdir's on the mesh (None: on the first device), others on the host."""
        if self.step is None:
            return load_hf(self.path)[0]
        return orbax.load_params(self.path / "checkpoints", self.step, mesh=mesh)[0]

    def load(self) -> Loaded:
        return Loaded(self.params(), self.config, self.tokenizer, self.template)


def open_model(path, *, step: int | None = None) -> ModelFolder:
    """A run's workdir (checkpoints/ and tokenizer/) or a Hugging Face folder with its tokenizer.json.

    A chat template stands beside the tokenizer. `step` picks a checkpoint of a workdir; None takes the newest.
    Raises FileNotFoundError where the folder is neither, and ValueError where tokenizer and model do not fit.
    """
    folder = Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        beside = folder / "tokenizer"
        config, step = orbax.load_config(folder / "checkpoints", step)
    elif any(folder.glob("*.safetensors")):
        beside = folder
        config, step = load_hf_config(folder), None
    else:
        raise FileNotFoundError(f"{folder} holds neither checkpoints/ (a run's workdir) nor *.safetensors")
    tokenizer = data.load_tokenizer(beside)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise ValueError(
            f"the tokenizer of {folder} has {tokenizer.get_vocab_size()} tokens, the model {config.vocab_size}"
        )
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    return ModelFolder(folder, step, config, tokenizer, load_template(beside, special) or ChatTemplate())


def load_model(path, *, step: int | None = None) -> Loaded:
    """`open_model` with its weights."""
    return open_model(path, step=step).load()
