"""Programs, run from a checkout: `python -m launch.NAME --help`."""
