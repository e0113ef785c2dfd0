"""Reinforcement learning: what a rollout leaves behind, and which rollouts start, go on and are thrown away."""

from ling_jax.rl.trajectory import Segment as Segment
from ling_jax.rl.trajectory import Trajectory as Trajectory
from ling_jax.rl.trajectory import append_observation as append_observation
from ling_jax.rl.trajectory import append_segment as append_segment
from ling_jax.rl.trajectory import segments as segments
