"""The configuration of a model: one frozen dataclass, and the sizes of the named models."""

import contextlib
import dataclasses
from typing import Any

import ml_dtypes  # noqa: F401  numpy knows the name bfloat16 from it
import numpy as np

from ling_jax.messages import nearest

REMAT_POLICIES = ("none", "full", "dots", "ffn")
# Name in older checkpoints, workdirs and config files -> name of the field.
RENAMED_FIELDS = {"softmax": "full_attention", "max_bad_steps": "max_nonfinite_steps"}


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN scaling of the rotary embedding (docs/architecture.md §4). None: the checkpoint gives no value."""

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How a model is computed. No stored parameter depends on these fields, and checkpoints fit any of them."""

    compute_dtype: Any = "bfloat16"  # of matmuls; norms, softmax, router, head and losses have at least float32
    remat: str = "full"  # what backward recomputes: "none", "full", "dots" or "ffn"
    scan_layers: bool = True  # False: layers are unrolled, which compiles slowly
    lightning_chunk: int | None = None  # tokens; None: the kernel chooses
    loss_chunk: int = 128  # tokens of each row whose logits are in memory at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Execution):
    """The static description of a model: its architecture, and how it is computed.

    It is hashable, so jit takes it as a static argument.

    Names follow docs/architecture.md. Defaults are the values that all released models share.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    full_attention: str  # mixer of the full-attention layers: "mla" (Ling 2.5, 2.6) or "gqa" (Ling 2.0, linear-2.0)
    layer_group_size: int  # layers of a group; its last is a full-attention layer. 1: every layer is
    num_kv_heads: int = 0  # key/value heads of GQA layers; Lightning layers have `num_heads`
    num_norm_groups: int = 1  # groups of the Lightning output norm (`group_norm_size` in HF configs)
    rotary_dim: int = 64  # rotated dims of each Lightning or GQA head
    q_lora_rank: int | None = None  # MLA; None: queries are one projection without a low rank
    kv_lora_rank: int = 0
    nope_dim: int = 0
    rope_dim: int = 0
    v_dim: int = 0
    ffn_size: int  # width of dense feed-forward layers
    first_dense_layers: int
    num_experts: int
    top_k: int
    num_expert_groups: int = 8
    top_groups: int = 4
    expert_ffn_size: int
    shared_ffn_size: int  # width of all shared experts together; 0: none
    routed_scale: float = 2.5
    rope_theta: float = 6e6
    rope_scaling: Yarn | None = None
    max_length: int = 131072
    norm_eps: float = 1e-6
    qk_norm: bool = True
    gqa_qk_norm: bool = True  # False: a migration has fused the QK-norm of GQA layers into their weights
    qkv_bias: bool = False
    out_bias: bool = False
    mtp_depth: int = 0  # number of stored MTP modules
    mtp_shared_depths: int = 0  # depths that one stored module predicts (report App. B); 0: each module predicts one
    mtp_detached: bool = False  # True: depths after the first send no gradient to trunk, embedding and head
    mtp_loss_weight: float = 0.1  # report §2.3.1; 0: training neither computes nor changes the modules
    z_loss_weight: float = 0.0  # the official Megatron patch has 3.5e-6
    slope_layer_offset: int = 0  # 0: training and serving engines; -1: the official HF file (§5)
    init_std: float = 0.006  # Ling 2.0 report §3.2.1
    # Text of the config.json that the model was loaded from; exports keep its keys (`checkpoint.to_hf`). The fields
    # above already describe the model, so equality ignores this one and experiments cannot set it.
    hf_source: str = dataclasses.field(default="", compare=False, repr=False)

    def __post_init__(self):
        with contextlib.suppress(TypeError):  # `_check` reports a value that is no dtype
            object.__setattr__(self, "compute_dtype", np.dtype(self.compute_dtype).name)
        _check(self)

    @property
    def mtp_predictions(self) -> int:
        """Number of tokens that MTP predicts at position t: t + 2, t + 3, …"""
        return (self.mtp_shared_depths or self.mtp_depth) if self.mtp_depth else 0

    def is_full_attention_layer(self, layer: int) -> bool:
        """Whether a layer ends a group or belongs to the incomplete last group (docs/architecture.md §2)."""
        g = self.layer_group_size
        return (layer + 1) % g == 0 or layer >= self.num_layers // g * g


def _check(c: ModelConfig) -> None:
    """Raises ValueError with the field, its value and the allowed values."""
    dtypes = ("float32", "bfloat16", "float16", "float64")
    _require(c.compute_dtype in dtypes, f"compute_dtype is {c.compute_dtype!r}; it is one of {', '.join(dtypes)}")
    positive = [
        "vocab_size",
        "hidden_size",
        "num_layers",
        "num_heads",
        "head_dim",
        "layer_group_size",
        "num_norm_groups",
        "ffn_size",
        "num_experts",
        "top_k",
        "num_expert_groups",
        "top_groups",
        "expert_ffn_size",
        "max_length",
        "loss_chunk",
    ]
    positive += ["num_kv_heads"] if c.full_attention == "gqa" else ["kv_lora_rank", "nope_dim", "rope_dim", "v_dim"]
    for name in positive:
        _require(getattr(c, name) >= 1, f"{name} is {getattr(c, name)}; it must be at least 1")
    for name in ("first_dense_layers", "mtp_depth", "mtp_shared_depths", "shared_ffn_size"):
        _require(getattr(c, name) >= 0, f"{name} is {getattr(c, name)}; it must not be negative")
    _require(
        c.lightning_chunk is None or c.lightning_chunk >= 1,
        f"lightning_chunk is {c.lightning_chunk}; at least 1",
    )
    _require(c.full_attention in ("mla", "gqa"), f"full_attention is {c.full_attention!r}; it is 'mla' or 'gqa'")
    _require(c.remat in REMAT_POLICIES, f"remat is {c.remat!r}; it is one of {', '.join(REMAT_POLICIES)}")
    _require(c.slope_layer_offset in (0, -1), f"slope_layer_offset is {c.slope_layer_offset}; it is 0 or -1")
    _require(
        not c.mtp_shared_depths or c.mtp_depth <= 1,
        f"mtp_shared_depths is {c.mtp_shared_depths} with mtp_depth {c.mtp_depth}; one module is shared",
    )
    _require_divides("num_norm_groups", c.num_norm_groups, "num_heads", c.num_heads)
    _require_divides("num_expert_groups", c.num_expert_groups, "num_experts", c.num_experts)
    if c.full_attention == "gqa":
        _require_divides("num_kv_heads", c.num_kv_heads, "num_heads", c.num_heads)
    _require(
        c.top_groups <= c.num_expert_groups,
        f"top_groups is {c.top_groups}; there are only num_expert_groups = {c.num_expert_groups}",
    )
    eligible = c.num_experts // c.num_expert_groups * c.top_groups
    _require(c.top_k <= eligible, f"top_k is {c.top_k}; the {c.top_groups} kept groups hold {eligible} experts")
    _require(
        c.rotary_dim % 2 == 0 and 0 <= c.rotary_dim <= c.head_dim,
        f"rotary_dim is {c.rotary_dim}; it must be even and within head_dim {c.head_dim}",
    )
    _require(c.rope_dim % 2 == 0, f"rope_dim is {c.rope_dim}; it must be even")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"model config: {message}")


def _require_divides(part: str, part_size: int, whole: str, whole_size: int) -> None:
    _require(whole_size % part_size == 0, f"{part} {part_size} does not divide {whole} {whole_size}")


_RELEASED = dict(vocab_size=157184, head_dim=128, num_experts=256, top_k=8)
_1T = _RELEASED | dict(
    hidden_size=8192, num_layers=80, num_heads=64, num_norm_groups=8, ffn_size=18432, first_dense_layers=4,
    expert_ffn_size=2048, shared_ffn_size=2048,
)  # fmt: skip
_FLASH = _RELEASED | dict(
    hidden_size=4096, num_layers=32, num_heads=32, num_norm_groups=4, ffn_size=9216, first_dense_layers=1,
    expert_ffn_size=1024, shared_ffn_size=1024,
)  # fmt: skip
_MINI = _RELEASED | dict(
    hidden_size=2048, num_layers=20, num_heads=16, num_norm_groups=4, ffn_size=5120, first_dense_layers=1,
    expert_ffn_size=512, shared_ffn_size=512,
)  # fmt: skip
# Eight layers, trainable on a laptop; the model of `make demo`.
_TINY = dict(
    vocab_size=512, hidden_size=128, num_layers=8, num_heads=4, head_dim=32, num_norm_groups=4, rotary_dim=16,
    ffn_size=256, first_dense_layers=1, num_experts=8, top_k=2, num_expert_groups=2, top_groups=1,
    expert_ffn_size=64, shared_ffn_size=64, max_length=4096, init_std=0.02, compute_dtype="float32",
    remat="none", rope_theta=10000.0, loss_chunk=64, lightning_chunk=64,
)  # fmt: skip
# Mixers of each family (report Table 1). Ling 2.0 was trained with one MTP layer and released without it.
_V2 = dict(full_attention="gqa", layer_group_size=1, num_norm_groups=1, rope_theta=600000.0, max_length=32768)
_LINEAR = dict(full_attention="gqa", num_kv_heads=4, max_length=131072)
_V25 = dict(
    full_attention="mla", layer_group_size=8, q_lora_rank=1536, kv_lora_rank=512, nope_dim=128, rope_dim=64, v_dim=128
)
_TINY_V25 = dict(
    full_attention="mla", layer_group_size=8, q_lora_rank=64, kv_lora_rank=48, nope_dim=32, rope_dim=16, v_dim=32
)

# Sizes of every named model. docs/architecture.md §13 tabulates them and lists the sizes without a source.
MODELS: dict[str, dict[str, Any]] = {
    "ling-mini-2.0": _MINI | _V2 | dict(num_kv_heads=4),
    "ring-mini-2.0": _MINI | _V2 | dict(num_kv_heads=4),
    "ling-flash-2.0": _FLASH | _V2 | dict(num_kv_heads=4),
    "ring-flash-2.0": _FLASH | _V2 | dict(num_kv_heads=4),
    "ling-1t": _1T | _V2 | dict(num_kv_heads=8),
    "ring-1t": _1T | _V2 | dict(num_kv_heads=8, max_length=65536),
    "ring-mini-linear-2.0": _MINI | _LINEAR | dict(layer_group_size=5, rope_theta=1e6),
    "ring-flash-linear-2.0": _FLASH | _LINEAR | dict(layer_group_size=8, rope_theta=600000.0),
    "ling-2.5-1t": _1T | _V25 | dict(max_length=131072),
    "ring-2.5-1t": _1T | _V25 | dict(max_length=131072),
    "ling-2.6-1t": _1T | _V25 | dict(mtp_depth=1, max_length=262144),
    "ring-2.6-1t": _1T | _V25 | dict(mtp_depth=1, max_length=262144),
    # As released: 128K without YaRN. 256K is YaRN x 2 when serving; mid-training at 256K sets max_length.
    "ling-2.6-flash": _FLASH | _V25 | dict(mtp_depth=1, max_length=131072),
    "tiny-2.0": _TINY | dict(full_attention="gqa", layer_group_size=1, num_kv_heads=2, num_norm_groups=1, mtp_depth=1),
    "tiny-linear-2.0": _TINY | dict(full_attention="gqa", layer_group_size=8, num_kv_heads=2, mtp_depth=1),
    "tiny-2.6": _TINY | _TINY_V25 | dict(mtp_depth=1),
}


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """The config of a named model, with `overrides` of its fields.

    Raises ValueError for an unknown name or field; the message suggests the nearest known one.
    """
    if name not in MODELS:
        raise ValueError(f"no model is named {name!r}{nearest(name, MODELS)}; known: {', '.join(MODELS)}")
    known = {field.name for field in dataclasses.fields(ModelConfig) if field.compare}
    for field in overrides.keys() - known:
        raise ValueError(f"ModelConfig has no field {field!r}{nearest(field, known)}")
    return ModelConfig(**(MODELS[name] | overrides))
