"""Ling-2.6-1T, Evo-CoT with LPO at 32K (report §3.1.2; numbers of Ring-1T where the reports of Ling have none).

    python -m launch.compile --config=configs/rl/ling_2_6_1t_lpo.py --program=rl --topology=v5p:8x8x16

1,024 TPU v5p. Mesh: fsdp 16 x expert 8 x context 8, as for pre-training at 32K. A step learns from 480 prompts with 8
answers each, packed into rows of 32K: 30 microbatches of 128 rows at most, one a device and its seven context
neighbours. A batch has one step (report §4.2.1), and its answers are all of the weights that learn from them: LPO has
no correction for stale tokens. With `--config.train.updates_per_batch=4 --config.train.microbatches=8` a batch has four
steps on other prompts each, of which LPO clips the later ones.
"""

from configs.rl import ring_2_6_1t


def get_config():
    config = ring_2_6_1t.get_config()
    config.start_from = "ling-2.6-1t"  # name the folder of the stage before: --config.start_from=gs://…
    config.reward = "evo_cot"
    config.objective.name = "lpo"
    config.objective.options.clip = 0.03  # Ling 2.0 report §4.2.2
    config.thinking = "off"  # the answers are instant ones: Ling 2.0 report §4.2
    config.rollout.update(token_budget=0, max_staleness=0, max_retention=0)
    return config
