"""Generation: prompts to tokens."""

from ling_jax.rollout.generate import Generator as Generator
from ling_jax.rollout.generate import Sampled as Sampled
from ling_jax.rollout.sampler import sample as sample
from ling_jax.rollout.slots import Drawn as Drawn
from ling_jax.rollout.slots import Slots as Slots
