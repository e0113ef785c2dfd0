"""Models that several benchmarks run."""

from configs.demo import migrate
from ling_jax.config import ModelConfig
from ling_jax.migrate.config import MigrateConfig
from ling_jax.train.config import from_dict

# About 110M parameters, 29M of them multiply a token.
HYBRID = dict(
    vocab_size=8192, hidden_size=512, num_heads=8, head_dim=64, num_norm_groups=8, rotary_dim=32, q_lora_rank=256,
    kv_lora_rank=128, nope_dim=64, rope_dim=32, v_dim=64, ffn_size=1024, num_experts=64, top_k=8,
    num_expert_groups=8, top_groups=4, expert_ffn_size=128, shared_ffn_size=128, mtp_depth=0, lightning_chunk=128,
    loss_chunk=256, max_length=65536,
)  # fmt: skip


def demo_config() -> ModelConfig:
    """The hybrid that `make demo` aligns and trains by reinforcement learning: two Lightning and two MLA layers."""
    return from_dict(MigrateConfig, migrate.get_config().to_dict()).target
