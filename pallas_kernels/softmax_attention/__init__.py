"""Softmax attention whose scores stay on chip, over whole rows and over parts of them."""

from pallas_kernels.softmax_attention.api import attend, attend_gradients, merge, uses_kernels
from pallas_kernels.softmax_attention.reference import softmax_attention_reference
from pallas_kernels.softmax_attention.tpu import softmax_attention_tpu, suits_tpu
from pallas_kernels.softmax_attention.window import LOG_ZERO, Window, document_window

__all__ = [
    "LOG_ZERO",
    "Window",
    "attend",
    "attend_gradients",
    "document_window",
    "merge",
    "softmax_attention_reference",
    "softmax_attention_tpu",
    "suits_tpu",
    "uses_kernels",
]
