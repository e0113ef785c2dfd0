"""Every claim of speed, with the command that reproduces it: `python -m benchmarks.NAME --json_out=FILE`."""
