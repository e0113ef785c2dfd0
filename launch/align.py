"""Alignment by reinforcement learning: Evo-CoT with LPO, agentic tasks with GSPO, preference with the focal reward.

    python -m launch.align --config=configs/align/tiny_evo_cot.py --workdir=runs/evo_cot --config.start_from=runs/sft

Flags and files are those of `launch.rl`: every stage is the same loop with another objective, reward and tasks.
"""

from launch.flags import run_program
from launch.rl import main

if __name__ == "__main__":
    run_program(main)
