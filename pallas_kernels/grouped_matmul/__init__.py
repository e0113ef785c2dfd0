"""Grouped matmuls: rows sorted by group times their group's matrix, and sums of outer products by group."""

from pallas_kernels.grouped_matmul.plan import TILES as TILES
from pallas_kernels.grouped_matmul.reference import add_grouped_outer_reference as add_grouped_outer_reference
from pallas_kernels.grouped_matmul.reference import grouped_matmul_reference as grouped_matmul_reference
from pallas_kernels.grouped_matmul.tpu import add_grouped_outer_tpu as add_grouped_outer_tpu
from pallas_kernels.grouped_matmul.tpu import grouped_matmul_tpu as grouped_matmul_tpu
from pallas_kernels.grouped_matmul.tpu import suits_tpu as suits_tpu
