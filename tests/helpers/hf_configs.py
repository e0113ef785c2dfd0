"""Small config.json of all families, and what their tests share."""

import json

import pytest
from hypothesis import strategies as st

from ling_jax.checkpoint import from_hf
from tests.conftest import FIXTURES

FIXTURE = json.loads((FIXTURES / "v25_yarn_mscale" / "config.json").read_text())  # of 2.6
PLAIN = FIXTURE | {"rope_scaling": None}
GQA = PLAIN | {"architectures": ["BailingMoeV2ForCausalLM"], "num_key_value_heads": 2}
LINEAR = GQA | {"architectures": ["BailingMoeLinearV2ForCausalLM"]}
BASES = {"2.6": PLAIN, "2.0": GQA, "linear-2.0": LINEAR}
for key in ("layer_group_size", "group_norm_size"):
    GQA.pop(key)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def without(hf, *keys):
    return {key: value for key, value in hf.items() if key not in keys}


def refusal(hf):
    """The one line of a refusal."""
    with pytest.raises(ValueError, match=r"\Aconfig\.json: .*\Z") as raised:
        from_hf(hf)
    message = str(raised.value)
    assert len(message.splitlines()) == 1 and message.isprintable() and len(message) < 700
    return message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def rope_5(hf, *keys, **more):
    """In transformers 5's form: `keys` of the top level inside `rope_parameters`."""
    inside = {key: hf[key] for key in keys}
    return without(hf, *keys, "rope_scaling") | {"rope_parameters": {"rope_type": "default"} | inside | more}
