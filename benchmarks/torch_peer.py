"""The same hybrid in eager PyTorch, written with care: the peer that the training step is timed against.

Chunked Lightning with the same chunk, `scaled_dot_product_attention`, each expert's rows by index_select, one fused
cross-entropy, fused AdamW. Parameters are the library's tree with one dict per layer, as torch tensors.

python -m benchmarks.torch_peer TIMES THREADS < pickled (config, tokens [B, T]): prints the seconds of the best step.
"""

import pickle
import sys
import timeit

import jax
import numpy as np
import torch
import torch.nn.functional as F

from ling_jax import model
from ling_jax.config import ModelConfig
from ling_jax.model.layers import LayerKind, layer_kind, layer_numbers
from ling_jax.model.lightning import log_decays
from ling_jax.model.mla import LATENT_NORM_EPS, softmax_scale
from ling_jax.model.rope import inverse_frequencies


def from_jax(params, config: ModelConfig):
    """{"embed", "layers", "final_norm", "head"}: torch leaves that want gradients (the expert bias does not)."""
    by_layer = {}
    for (segment, run), numbers in layer_numbers(config).items():
        for place, number in np.ndenumerate(numbers):
            by_layer[int(number)] = _leaves(params["segments"][segment][run], place)
    top = {name: _leaves(params[name], ...) for name in ("embed", "final_norm", "head")}
    return top | {"layers": [by_layer[number] for number in sorted(by_layer)]}


def _leaves(tree, place, name: str = ""):
    if isinstance(tree, dict):
        return {key: _leaves(value, place, key) for key, value in tree.items()}
    return torch.tensor(np.asarray(tree[place])).requires_grad_(name != "expert_bias")


def trained(params) -> list[torch.Tensor]:
    if isinstance(params, torch.Tensor):
        return [params] if params.requires_grad else []
    return [leaf for part in (params.values() if isinstance(params, dict) else params) for leaf in trained(part)]


def make_train_step(params, config: ModelConfig, peak_lr: float):
    """`step(tokens) -> loss`: forward, backward, clipping, AdamW."""
    leaves = trained(params)
    optimizer = torch.optim.AdamW(leaves, lr=peak_lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(tokens_BT):
        optimizer.zero_grad(set_to_none=True)
        value = loss(params, tokens_BT, config)
        value.backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        return value.item()

    return step


def loss(params, tokens_BT, config: ModelConfig):
    """Mean next-token loss of rows that are one document each."""
    x_BTD, positions = params["embed"][tokens_BT], torch.arange(tokens_BT.shape[1])
    rope = rope_table(positions, config.rotary_dim, config)
    latent_rope = rope_table(positions, config.rope_dim, config)
    decays = torch.tensor(log_decays(config), dtype=torch.float32)
    for number, layer in enumerate(params["layers"]):
        kind = layer_kind(config, number)
        x_BTD = _layer(layer, x_BTD, kind, decays[number], rope, latent_rope, config)
    hidden_BTD = rms_norm(x_BTD, params["final_norm"], config.norm_eps)[:, :-1]
    return F.cross_entropy(hidden_BTD.flatten(0, 1) @ params["head"], tokens_BT[:, 1:].flatten())


def _layer(layer, x_BTD, kind: LayerKind, log_decay_H, rope, latent_rope, config: ModelConfig):
    normed = rms_norm(x_BTD, layer["mixer_norm"], config.norm_eps)
    if kind.mixer == "lightning":
        x_BTD = x_BTD + _lightning(layer["mixer"], normed, log_decay_H, rope, config)
    else:
        x_BTD = x_BTD + _mla(layer["mixer"], normed, latent_rope, config)
    normed = rms_norm(x_BTD, layer["ffn_norm"], config.norm_eps)
    return x_BTD + (swiglu(layer["ffn"], normed) if kind.ffn == "dense" else _moe(layer["ffn"], normed, config))


def rms_norm(x, weight, eps: float):
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def project(x_BTD, weight_DHK):
    return (x_BTD @ weight_DHK.flatten(1)).unflatten(-1, weight_DHK.shape[1:])


def project_out(o_BTHV, weight_HVD):
    return o_BTHV.flatten(2) @ weight_HVD.flatten(0, 1)


def rope_table(positions, dims: int, config: ModelConfig):
    frequencies, factor = inverse_frequencies(dims, config.rope_theta, config.rope_scaling)
    angles = positions[:, None].float() * torch.tensor(frequencies, dtype=torch.float32)
    return torch.cos(angles)[:, None] * factor, torch.sin(angles)[:, None] * factor  # [T, 1, dims/2]


def rotate_half(x_BTHK, table):
    cos, sin = table
    half = cos.shape[-1]
    a, b, rest = x_BTHK.split([half, half, x_BTHK.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def rotate_interleaved(x_BTHK, table):
    cos, sin = table
    a, b = x_BTHK.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def _lightning(p, x_BTD, log_decay_H, rope, config: ModelConfig):
    q, k = (rotate_half(rms_norm(project(x_BTD, p[n]), p[f"{n}_norm"], config.norm_eps), rope) for n in ("q", "k"))
    o_BTHV = _chunked_attention(q, k, project(x_BTD, p["v"]), log_decay_H, config.lightning_chunk)
    grouped = o_BTHV.unflatten(2, (config.num_norm_groups, -1)).flatten(3)
    o_BTHV = F.rms_norm(grouped, (grouped.shape[-1],), eps=config.norm_eps).reshape(o_BTHV.shape) * p["norm"]
    return project_out(o_BTHV * torch.sigmoid(project(x_BTD, p["gate"])), p["out"])


def _chunked_attention(q_BTHK, k_BTHK, v_BTHV, log_decay_H, chunk: int):
    """T is a multiple of the chunk. One batched matmul per product over all chunks, a loop over the states."""
    q, k, v = (x.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4) for x in (q_BTHK, k_BTHK, v_BTHV))  # [N, B, H, C, …]
    i = torch.arange(chunk)
    decay = lambda steps: torch.exp(log_decay_H.view(-1, *(1,) * steps.dim()) * steps)  # noqa: E731
    within_HCC = decay((i[:, None] - i).clamp(min=0)).tril()
    updates = (k * decay(chunk - 1 - i)[..., None]).transpose(-1, -2) @ v
    states, carry = [torch.zeros_like(updates[0])], torch.exp(log_decay_H * chunk)[:, None, None]
    for update in updates[:-1]:
        states.append(carry * states[-1] + update)
    out = ((q @ k.transpose(-1, -2)) * within_HCC) @ v + (q * decay(i + 1)[..., None]) @ torch.stack(states)
    return out.permute(1, 0, 3, 2, 4).flatten(1, 2) * q_BTHK.shape[-1] ** -0.5


def _mla(p, x_BTD, rope, config: ModelConfig):
    q_BTHK = project(rms_norm(x_BTD @ p["q_a"], p["q_a_norm"], LATENT_NORM_EPS), p["q_b"])
    q_nope, q_rope = q_BTHK.split([config.nope_dim, config.rope_dim], dim=-1)
    latent_BTR, k_rope = (x_BTD @ p["kv_a"]).split([config.kv_lora_rank, config.rope_dim], dim=-1)
    kv_BTHK = project(rms_norm(latent_BTR, p["kv_a_norm"], LATENT_NORM_EPS), p["kv_b"])
    k_nope, v_BTHV = kv_BTHK.split([config.nope_dim, config.v_dim], dim=-1)
    k_rope = rotate_interleaved(k_rope[:, :, None], rope).expand(-1, -1, config.num_heads, -1)
    q, k = torch.cat([q_nope, rotate_interleaved(q_rope, rope)], dim=-1), torch.cat([k_nope, k_rope], dim=-1)
    heads_first = (x.transpose(1, 2) for x in (q, k, v_BTHV))
    o_BHTV = F.scaled_dot_product_attention(*heads_first, is_causal=True, scale=softmax_scale(config))
    return project_out(o_BHTV.transpose(1, 2), p["out"])


def swiglu(p, x):
    return (F.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def _moe(p, x_BTD, config: ModelConfig):
    x_MD = x_BTD.flatten(0, 1)
    index_Mk, weight_Mk = route(torch.sigmoid(x_MD @ p["router"]), p["expert_bias"], config)
    order = index_Mk.flatten().argsort(stable=True)
    loads = torch.bincount(index_Mk.flatten(), minlength=config.num_experts).tolist()
    rows = x_MD.index_select(0, order // config.top_k).split(loads)
    experts = (p["experts"][name].unbind(0) for name in ("gate", "up", "down"))
    y_PD = torch.cat([(F.silu(x @ gate) * (x @ up)) @ down for x, gate, up, down in zip(rows, *experts, strict=True)])
    y_MkD = y_PD.index_select(0, order.argsort()).unflatten(0, (-1, config.top_k))
    y_MD = torch.einsum("MkD,Mk->MD", y_MkD, weight_Mk) + swiglu(p["shared"], x_MD)
    return y_MD.view_as(x_BTD)


def route(score_ME, expert_bias_E, config: ModelConfig):
    with torch.no_grad():
        grouped = (score_ME + expert_bias_E).unflatten(1, (config.num_expert_groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(config.top_groups, dim=-1).indices
        keep = torch.zeros(grouped.shape[:2], dtype=torch.bool).scatter_(1, best, True)
        index_Mk = grouped.masked_fill(~keep[..., None], -torch.inf).flatten(1).topk(config.top_k, dim=-1).indices
    weight_Mk = score_ME.gather(1, index_Mk)
    return index_Mk, weight_Mk / (weight_Mk.sum(-1, keepdim=True) + 1e-20) * config.routed_scale


def main(times: int, threads: int) -> None:
    config, tokens = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    params = jax.device_get(jax.jit(lambda key: model.init(key, config))(jax.random.key(0)))
    step, tokens = make_train_step(from_jax(params, config), config, peak_lr=1e-3), torch.tensor(tokens).long()
    step(tokens)
    print(min(timeit.repeat(lambda: step(tokens), number=1, repeat=times)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
