"""Reinforcement learning with verifiable rewards: KPop, adaptive thinking, questions of one's own.

    python -m launch.rl --config=configs/rl/tiny_kpop.py --workdir=runs/kpop --config.start_from=runs/sft

It starts from the workdir of another stage, or from a Hugging Face folder. SIGTERM and Ctrl-C save and end it; the same
command continues. Started on several hosts, the first one decides and the others follow it (docs/clusters.md).
`--replay` runs a finished or stopped run again from its start, and compares every decision, token, batch and loss with
the log.
"""

import dataclasses
from collections.abc import Callable

from absl import flags
from etils import epath

from launch.flags import define_config, run_program, usage_errors
from launch.sandboxed import start_sandbox
from launch.training import check_one_host, join_hosts, starting_errors, training_errors
from ling_jax.align.rewards import configured_reward
from ling_jax.distributed import hosts
from ling_jax.rl.collector import Collector
from ling_jax.rl.config import RLConfig
from ling_jax.rl.failures import TooManyFailures
from ling_jax.rl.judge_config import JudgeConfig
from ling_jax.rl.loop import train
from ling_jax.rl.prepare import prepare
from ling_jax.rl.replay import check_replay, replay
from ling_jax.train.config import from_dict

CONFIG = define_config(RLConfig)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; a run that is there continues", required=True)
REPLAY = flags.DEFINE_bool("replay", False, "run the run in the workdir again, and compare")


def main() -> None:
    with usage_errors(), starting_errors():
        config = from_dict(RLConfig, CONFIG.value.to_dict())
        if REPLAY.value:
            check_one_host("a replay runs")
            check_replay(WORKDIR.value)
        start_sandbox(source.environment for source in config.tasks)
        join_hosts(config, workdir=WORKDIR.value)
        judged = config if hosts.process_index() == 0 else dataclasses.replace(config, judge=JudgeConfig())
        reward = configured_reward(judged, WORKDIR.value, replay=REPLAY.value)  # judges answer on the first host alone
        run = prepare(config, reward, WORKDIR.value, collector_of(config))
    with training_errors(TooManyFailures):
        if REPLAY.value:
            print(f"{replay(run)} steps are the same, bit for bit", flush=True)
        else:
            train(run)


def collector_of(config: RLConfig) -> Callable[..., Collector]:
    """What plays the rollouts: the environments' own turns, or an agent."""
    if not config.rollout.agent:
        return Collector
    try:
        from ling_jax.serve.agents import agent_collector
    except ImportError as error:
        raise ValueError(f"rollout.agent needs {error.name}: pip install 'ling-jax[serve]'") from None
    return agent_collector(config, epath.Path(WORKDIR.value))


if __name__ == "__main__":
    run_program(main)
