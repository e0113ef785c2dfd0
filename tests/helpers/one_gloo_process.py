"""A program as one process whose devices use the collectives that several processes use.

python -m tests.helpers.one_gloo_process launch.rl --config=…
"""

import runpy
import socket
import sys

import jax

if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 1, 0, cluster_detection_method="deactivate")
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__")
