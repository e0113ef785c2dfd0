"""Checkpoints: Hugging Face folders, Orbax checkpoints of runs, and ports between them."""

from ling_jax.checkpoint.hf import hf_tensors as hf_tensors
from ling_jax.checkpoint.hf import load_hf as load_hf
from ling_jax.checkpoint.hf import load_hf_config as load_hf_config
from ling_jax.checkpoint.hf import save_hf as save_hf
from ling_jax.checkpoint.hf_config import from_hf as from_hf
from ling_jax.checkpoint.hf_config import to_hf as to_hf
