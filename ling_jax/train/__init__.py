"""Training: a pure step, and the loop around it that touches the world."""

from ling_jax.train.config import PretrainConfig as PretrainConfig
from ling_jax.train.state import TrainState as TrainState
from ling_jax.train.state import create_state as create_state
from ling_jax.train.step import make_train_step as make_train_step
