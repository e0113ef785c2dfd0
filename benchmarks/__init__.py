"""Every claim of speed, with the command that reproduces it: `python -m benchmarks.NAME --json_out=FILE`."""

import os

# XLA's own lines, such as of a slow compilation; its errors are exceptions all the same. JAX reads it as it loads.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
