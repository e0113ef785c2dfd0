"""Linear attention with a constant decay per head."""

from pallas_kernels.lightning_attention.api import lightning_attention as lightning_attention
from pallas_kernels.lightning_attention.api import lightning_attention_flat as lightning_attention_flat
from pallas_kernels.lightning_attention.documents import document_ids as document_ids
from pallas_kernels.lightning_attention.tpu_decode import lightning_decode_tpu as lightning_decode_tpu
from pallas_kernels.lightning_attention.tpu_decode import suits_decode as suits_decode
from pallas_kernels.lightning_attention.tpu_layer import Norms as Norms
from pallas_kernels.lightning_attention.tpu_layer import lightning_layer_tpu as lightning_layer_tpu
from pallas_kernels.lightning_attention.tpu_layer import suits_layer as suits_layer
from pallas_kernels.lightning_attention.tpu_rows import rotation_lanes as rotation_lanes
