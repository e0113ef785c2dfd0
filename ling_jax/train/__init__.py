"""Training: a pure step, and the loop that reads data, logs, evaluates and saves around it."""

from ling_jax.train.config import PretrainConfig as PretrainConfig
from ling_jax.train.state import TrainState as TrainState
from ling_jax.train.state import create_state as create_state
from ling_jax.train.step import make_train_step as make_train_step
