"""Linear attention with a constant decay per head."""

from pallas_kernels.lightning_attention.api import lightning_attention as lightning_attention
from pallas_kernels.lightning_attention.api import lightning_attention_flat as lightning_attention_flat
from pallas_kernels.lightning_attention.documents import document_ids as document_ids
