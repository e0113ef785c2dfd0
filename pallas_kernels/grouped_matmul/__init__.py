"""Rows sorted by group, each multiplied by the matrix of its group."""

from pallas_kernels.grouped_matmul.reference import grouped_matmul_reference as grouped_matmul_reference
from pallas_kernels.grouped_matmul.tpu import grouped_matmul_tpu as grouped_matmul_tpu
from pallas_kernels.grouped_matmul.tpu import rows_product as rows_product
from pallas_kernels.grouped_matmul.tpu import suits_tpu as suits_tpu
from pallas_kernels.grouped_matmul.tpu import weights_product as weights_product
