"""A model to generate from: weights, tokenizer and chat template of one folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from etils import epath
from tokenizers import Tokenizer

from ling_jax import data
from ling_jax.chat.end_tokens import declared_end_ids, end_ids, save_end_ids, token_texts
from ling_jax.chat.folder_template import FolderTemplate, load_template
from ling_jax.chat.template import END, ChatTemplate
from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.hf import load_hf, load_hf_config, read_config
from ling_jax.checkpoint.index import INDEX_FILE, is_workdir, weight_files
from ling_jax.checkpoint.manifest import DamagedCheckpoint
from ling_jax.checkpoint.near_models import near_models
from ling_jax.checkpoint.side_files import copy_side_files
from ling_jax.checkpoint.steps import ATTEMPTS, steps_in
from ling_jax.checkpoint.workdir_sums import check_texts
from ling_jax.config import MODELS, ModelConfig, model_config
from ling_jax.data.tokenizer import FILE_NAME as TOKENIZER_FILE
from ling_jax.data.tokenizer import largest_id
from ling_jax.distributed.peers import ALONE, Peers
from ling_jax.paths import as_path
from ling_jax.spec import Params


class _Texts:
    """The properties of a model's texts that follow from its tokenizer, template and files."""

    tokenizer: Tokenizer
    template: ChatTemplate | FolderTemplate
    declared_ends: frozenset[int]

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids of tokens that end a text. Raises ValueError where there is none."""
        return end_ids(self.tokenizer, self.declared_ends)

    @property
    def is_chat(self) -> bool:
        """Whether the model is tuned for conversations: it has a chat template, or declares the end of a turn."""
        return isinstance(self.template, FolderTemplate) or self.tokenizer.token_to_id(END) in self.declared_ends


@dataclasses.dataclass(frozen=True)
class Loaded(_Texts):
    params: Any
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | FolderTemplate
    declared_ends: frozenset[int] = frozenset()  # of `declared_end_ids`
    step: int | None = None  # as in `ModelFolder`


@dataclasses.dataclass(frozen=True)
class ModelFolder(_Texts):
    """A model on disk, of which everything but the weights has been read."""

    path: Path
    step: int | None  # checkpoint of a workdir; None: a Hugging Face folder
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | FolderTemplate
    declared_ends: frozenset[int] = frozenset()  # of `declared_end_ids`

    @property
    def side_folder(self) -> Path:
        """The folder of the tokenizer and of all files but the weights and their config."""
        return self.path if self.step is None else self.path / "tokenizer"

    def params(self, mesh: jax.sharding.Mesh | None = None) -> Params:
        """The stored parameters on the mesh; without one a workdir's on the first device, others on the host."""
        if self.step is None:
            return load_hf(self.path, mesh=mesh)[0]
        return orbax.load_params(self.path / "checkpoints", self.step, mesh=mesh, verify=False)[0]

    def load(self) -> Loaded:
        """The model with its parameters."""
        return Loaded(self.params(), self.config, self.tokenizer, self.template, self.declared_ends, self.step)


def model_sizes(path: str, *, tokenizer: str = "", **named: Any) -> ModelConfig:
    """The config of the model in a folder, or where there is none of the model of this name, with the fields `named`.

    Raises as `open_model`.
    """
    if path in MODELS and not as_path(path).exists():
        return model_config(path, **named)
    return open_model(path, tokenizer=tokenizer).config


def open_model(
    path: epath.PathLike, *, step: int | None = None, tokenizer: str = "", peers: Peers = ALONE
) -> ModelFolder:
    """The model of a run's workdir (checkpoints/ and tokenizer/) or of a Hugging Face folder with tokenizer.json.

    A chat template and the files that declare end tokens are beside the tokenizer. `step` picks a checkpoint of a
    workdir; None takes the newest. `tokenizer` is a folder or file, which is read where the model's folder has no
    tokenizer.json. `peers` are processes that all call it for a shared folder; each verifies a part of the checkpoint.
    Raises FileNotFoundError where the folder is neither, DamagedCheckpoint, and ValueError where a file cannot be read
    or the tokenizer has more ids than the model.
    """
    folder = as_path(path)
    if is_workdir(folder):
        beside = folder / "tokenizer"
        config, step = orbax.load_config(folder / "checkpoints", step, peers=peers)
        check_texts(folder, step)
        keys = json.loads(config.hf_source or "{}")  # of the config.json of the model's source; {} without one
    else:
        check_model_folder(folder)
        beside, keys = folder, read_config(folder)
        config, step = load_hf_config(folder), None
    where = tokenizer if tokenizer and not (beside / TOKENIZER_FILE).exists() else beside
    tokenizer = data.load_tokenizer(where)
    if (last := largest_id(tokenizer)) >= config.vocab_size:
        raise ValueError(
            f"the tokenizer of {where} has ids up to {last} ({tokenizer.id_to_token(last)!r}); the model's vocabulary "
            f"is {config.vocab_size} tokens, ids up to {config.vocab_size - 1}"
        )
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    declared = declared_end_ids(keys, beside, tokenizer, config.vocab_size)
    template = load_template(beside, special, token_texts(tokenizer, declared)) or ChatTemplate()
    return ModelFolder(folder, step, config, tokenizer, template, declared)


def check_model_folder(folder: Path) -> None:
    """Raises FileNotFoundError where the folder holds no *.safetensors file; it names what was probably meant."""
    if folder.is_dir() and (weight_files(folder) or (folder / INDEX_FILE).is_file()):
        return
    raise FileNotFoundError(
        f"{folder} holds neither checkpoints/ (a run's workdir) nor *.safetensors{near_models(folder)}"
    )


def load_model(path: epath.PathLike, *, step: int | None = None) -> Loaded:
    """`open_model` with the parameters.

    If a run deletes the newest checkpoint meanwhile, the newest one of then is loaded. Raises as `open_model`.
    """
    checkpoints = Path(path).expanduser() / "checkpoints"
    for _ in range(ATTEMPTS - 1):
        before = steps_in(checkpoints)
        try:
            return open_model(path, step=step).load()
        except (DamagedCheckpoint, FileNotFoundError):
            if step is not None or steps_in(checkpoints) == before:
                raise
    return open_model(path, step=step).load()


def save_texts(model: ModelFolder, folder: epath.PathLike, *, chat: bool) -> None:
    """Copies the side files of a model, with tokenizer and template, and writes its end tokens.

    `chat`: the model is for conversations, or training will make it so.
    """
    copy_side_files(model.side_folder, folder)
    ends = model.end_ids if chat else model.declared_ends
    if ends:
        save_end_ids(ends, folder)
