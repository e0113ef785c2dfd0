"""Decoding of the same hybrid in eager PyTorch, written with care: the peer that the engine is timed against.

One-step Lightning on a state, absorbed MLA on latents in one array, and only the experts that some row chose. Tokens
are drawn at temperature 1, and their log-probs come to the host with them.

python -m benchmarks.torch_decode < pickled (config, batch, pieces), then the number of threads, a line for each turn:
prints the seconds of each piece of eight tokens as a JSON list.
"""

import json
import pickle
import sys
import time

import jax
import torch
import torch.nn.functional as F

from benchmarks.torch_peer import (
    from_jax,
    project,
    project_out,
    rms_norm,
    rope_table,
    rotate_half,
    rotate_interleaved,
    route,
    swiglu,
)
from ling_jax import model
from ling_jax.config import ModelConfig
from ling_jax.engine.schedule import PIECE
from ling_jax.model.layers import LayerKind, layer_kind
from ling_jax.model.lightning import log_decays
from ling_jax.model.mla import LATENT_NORM_EPS, latent_width, softmax_scale


class Decoder:
    """A model with the caches of `batch` rows of at most `length` tokens."""

    def __init__(self, params, config: ModelConfig, batch: int, length: int):
        self.params, self.config, self.kinds = params, config, [layer_kind(config, n) for n in range(config.num_layers)]
        self.decays = torch.exp(torch.tensor(log_decays(config), dtype=torch.float32))[:, :, None, None]
        positions = torch.arange(length)
        self.rope, self.latent_rope = (rope_table(positions, d, config) for d in (config.rotary_dim, config.rope_dim))
        self.caches = [self._cache(kind, batch, length) for kind in self.kinds]

    def _cache(self, kind: LayerKind, batch: int, length: int) -> torch.Tensor:
        c = self.config
        if kind.mixer == "lightning":
            return torch.zeros(batch, c.num_heads, c.head_dim, c.head_dim)
        return torch.zeros(batch, length, latent_width(c))

    def logits(self, token_B: torch.Tensor, position: int) -> torch.Tensor:
        """[B, W] behind one more token of every row."""
        params, c = self.params, self.config
        rope, latent_rope = ([x[position] for x in table] for table in (self.rope, self.latent_rope))
        x_BD = params["embed"][token_B]
        for number, (layer, kind) in enumerate(zip(params["layers"], self.kinds, strict=True)):
            normed = rms_norm(x_BD, layer["mixer_norm"], c.norm_eps)
            if kind.mixer == "lightning":
                x_BD = x_BD + self._lightning(layer["mixer"], normed, number, rope)
            else:
                x_BD = x_BD + self._mla(layer["mixer"], normed, number, position, latent_rope)
            normed = rms_norm(x_BD, layer["ffn_norm"], c.norm_eps)
            x_BD = x_BD + (swiglu(layer["ffn"], normed) if kind.ffn == "dense" else _moe(layer["ffn"], normed, c))
        return rms_norm(x_BD, params["final_norm"], c.norm_eps) @ params["head"]

    def _lightning(self, p, x_BD, number: int, rope):
        c, state_BHKV = self.config, self.caches[number]
        q, k = (rotate_half(rms_norm(project(x_BD, p[n]), p[f"{n}_norm"], c.norm_eps), rope) for n in ("q", "k"))
        state_BHKV.mul_(self.decays[number]).add_(k[..., None] * project(x_BD, p["v"])[..., None, :])
        o_BHV = (q[:, :, None] @ state_BHKV)[:, :, 0] * c.head_dim**-0.5
        grouped = o_BHV.unflatten(1, (c.num_norm_groups, -1)).flatten(2)
        o_BHV = F.rms_norm(grouped, (grouped.shape[-1],), eps=c.norm_eps).reshape(o_BHV.shape) * p["norm"]
        return _out(o_BHV * torch.sigmoid(project(x_BD, p["gate"])), p)

    def _mla(self, p, x_BD, number: int, position: int, rope):
        c, latents_BSR = self.config, self.caches[number][:, : position + 1]
        q_BHK = project(rms_norm(x_BD @ p["q_a"], p["q_a_norm"], LATENT_NORM_EPS), p["q_b"])
        q_nope, q_rope = q_BHK.split([c.nope_dim, c.rope_dim], dim=-1)
        latent_BR, k_rope = (x_BD @ p["kv_a"]).split([c.kv_lora_rank, c.rope_dim], dim=-1)
        latents_BSR[:, position, : c.kv_lora_rank] = rms_norm(latent_BR, p["kv_a_norm"], LATENT_NORM_EPS)
        latents_BSR[:, position, c.kv_lora_rank :] = rotate_interleaved(k_rope[:, None], rope)[:, 0]
        k_RHK, v_RHV = p["kv_b"].split([c.nope_dim, c.v_dim], dim=-1)
        q_BHR = torch.cat([_per_head(q_nope, k_RHK.permute(1, 2, 0)), rotate_interleaved(q_rope, rope)], dim=-1)
        weight_BHS = ((q_BHR @ latents_BSR.transpose(1, 2)) * softmax_scale(c)).softmax(-1)
        return _out(_per_head(weight_BHS @ latents_BSR[..., : c.kv_lora_rank], v_RHV.transpose(0, 1)), p)


def _out(o_BHV, p):
    return project_out(o_BHV[:, None], p["out"])[:, 0]


def _per_head(x_BHK, weight_HKV):
    return (x_BHK.transpose(0, 1) @ weight_HKV).transpose(0, 1)


def _moe(p, x_BD, config: ModelConfig):
    index_Bk, weight_Bk = route(torch.sigmoid(x_BD @ p["router"]), p["expert_bias"], config)
    y_BD = swiglu(p["shared"], x_BD)
    experts = p["experts"]
    for expert in index_Bk.unique().tolist():
        row, choice = (index_Bk == expert).nonzero(as_tuple=True)
        rows = swiglu({name: experts[name][expert] for name in ("gate", "up", "down")}, x_BD[row])
        y_BD.index_add_(0, row, rows * weight_Bk[row, choice, None])
    return y_BD


def piece_seconds(params, config: ModelConfig, batch: int, pieces: int) -> list[float]:
    """Seconds of each of `pieces` times eight tokens behind a first eight, from contexts of one token."""
    decoder, seconds = Decoder(params, config, batch, PIECE * (pieces + 1)), []
    token_B = torch.zeros(batch, dtype=torch.long)
    for piece in range(pieces + 1):
        start, drawn = time.perf_counter(), []
        for position in range(PIECE * piece, PIECE * (piece + 1)):
            logps_BW = torch.log_softmax(decoder.logits(token_B, position), dim=-1)
            token_B = (logps_BW - torch.empty_like(logps_BW).exponential_().log_()).argmax(-1)  # Gumbel noise
            drawn += [token_B, logps_BW.gather(1, token_B[:, None])[:, 0]]
        for values in drawn:
            values.tolist()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


@torch.inference_mode()
def main() -> None:
    config, batch, pieces = pickle.load(sys.stdin.buffer)
    params = from_jax(jax.device_get(jax.jit(lambda key: model.init(key, config))(jax.random.key(0))), config)
    while line := sys.stdin.buffer.readline():
        torch.set_num_threads(int(line))
        print(json.dumps(piece_seconds(params, config, batch, pieces)), flush=True)


if __name__ == "__main__":
    main()
