"""Reinforcement learning: what a rollout leaves behind, and which rollouts start, go on and are thrown away."""

from ling_jax.rl.trajectory import FAILED as FAILED
from ling_jax.rl.trajectory import Trajectory as Trajectory
from ling_jax.rl.trajectory import VersionRun as VersionRun
