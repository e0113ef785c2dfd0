"""Kernels are compared with the recurrence where they run, and a wrong one stops a run unless it is told not to."""

import re

import jax.numpy as jnp
import pytest

from pallas_kernels.lightning_attention import self_check
from tests.helpers.programs import needs_libtpu, output_of


@pytest.mark.slow
def test_kernels_agree_here():
    found = self_check.check_kernels("tpu_interpret")
    assert re.findall(r"[a-z]+ (?=\d)", found) == [
        "attention ",
        "gradients ",
        "decoding ",
        "layers ",
        "experts ",
        "softmax ",
    ]


def test_a_cpu_has_no_kernels_to_compare():
    assert self_check.chosen_backend() == "xla"
    assert self_check.check_kernels() == "xla"


@pytest.mark.parametrize("error", [1.0, float(jnp.nan)])
def test_a_wrong_kernel_is_an_error_with_an_override(monkeypatch, error):
    monkeypatch.setattr(self_check, "kernel_errors", lambda backend: {"attention": error})
    monkeypatch.delenv(self_check.OVERRIDE, raising=False)
    with pytest.raises(
        self_check.KernelError, match=r"off their reference by attention .*LING_JAX_IGNORE_KERNEL_ERRORS=1"
    ):
        self_check.check_kernels("tpu")
    monkeypatch.setenv(self_check.OVERRIDE, "1")
    assert "OFF THEIR REFERENCE" in self_check.check_kernels("tpu")


@pytest.mark.slow
@needs_libtpu
def test_the_check_compiles_for_tpus():
    """Attention and layer, forward and backward; decoding; both grouped matmuls; softmax, both ways."""
    lines = output_of("tests.helpers.self_check_on_tpus").splitlines()
    assert lines == ["v5e:2x2 9", "v5p:2x2x1 9", "v6e:2x2 9", "tpu7x:2x2x1 9"]
