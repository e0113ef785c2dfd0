"""The steps of the report (§2.1.3, §2.3) as stages for models of any size."""

from ling_jax.config import ModelConfig
from ling_jax.migrate.config import ALL_QKV, EVERYTHING, LIGHTNING_GATE, LIGHTNING_QKV, Stage, mla_patterns


def migration(
    target: ModelConfig, *, linear: int, partial: int, mla: int, continued: int, gate: bool = False
) -> tuple[Stage, ...]:
    """The stages from Ling 2.0 to the hybrid at the source's context; the numbers are token budgets.

    `gate` trains the new gates and group norms in the first stage too; the report names only QKV and QK-norm there.
    """
    return (
        Stage(
            name="linear_warmup",
            form="linear",
            trains=LIGHTNING_QKV + (LIGHTNING_GATE if gate else ()),
            tokens=linear,
            recovers=True,
        ),
        Stage(name="partial", form="fused", trains=ALL_QKV + LIGHTNING_GATE, tokens=partial, recovers=True),
        Stage(name="mla_warmup", form="mla", trains=mla_patterns(target), tokens=mla, recovers=True),
        Stage(name="continued", form="mla", trains=EVERYTHING, tokens=continued),
    )


def mid_training(
    target: ModelConfig,
    lengths_and_tokens: tuple[tuple[int, int], ...],
    *,
    first_long_share: float,
    merges: int,
    contexts: tuple[int, ...] = (),
) -> tuple[Stage, ...]:
    """Stages with longer rows, (sequence length, tokens) each, then the mean of the last `merges` checkpoints.

    `contexts` is the number of devices that split a row in each stage; (): one. The first stage sets rope to the
    target's theta in Lightning and MLA layers (our choice; the report does not say when) and has `first_long_share` of
    its sequences at the long length (report §2.3.2).
    """
    contexts = contexts or (1,) * len(lengths_and_tokens)
    stages = [
        Stage(
            name=f"mid_{number}",
            form="mla",
            trains=EVERYTHING,
            tokens=tokens,
            sequence_length=length,
            context=context,
            long_share=first_long_share if number == 1 else 1.0,
            rope_theta=target.rope_theta,
            router_bias_rate=1e-4,  # report §2.3.1
        )
        for number, ((length, tokens), context) in enumerate(zip(lengths_and_tokens, contexts, strict=True), start=1)
    ]
    last = stages[-1]
    merge = Stage(name="merge", form="mla", merges=merges, sequence_length=last.sequence_length, context=last.context)
    return (*stages, merge)


# Report §2.3: 400 B tokens of migration (the split is our choice), 8 T of continued pre-training, then 20 % of
# sequences at 32K, all at 32K, all at 256K; 32 checkpoints are merged (Ling 2.0 report §3.2.3).
BILLION = 10**9


def report_stages(target: ModelConfig, *, contexts: tuple[int, int, int]) -> tuple[Stage, ...]:
    """All stages with the token budgets of the report; `contexts` as in `mid_training`."""
    tokens = dict(linear=100 * BILLION, partial=50 * BILLION, mla=50 * BILLION, continued=8200 * BILLION)
    middle = ((32768, 250 * BILLION), (32768, 425 * BILLION), (262144, 525 * BILLION))
    return migration(target, **tokens) + mid_training(
        target, middle, first_long_share=0.2, merges=32, contexts=contexts
    )
