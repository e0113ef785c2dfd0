"""Shows a run of reinforcement learning: a panel in the terminal while it goes on, and a page of it.

    python -m launch.watch --workdir=runs/kpop
    python -m launch.watch --workdir=runs/kpop --once
    python -m launch.watch --workdir=runs/kpop --out=kpop.html

It reads the files of the workdir, so that it may run beside the run, on another terminal, or after it. The page has the
curves, what the mask drops, and a row for each slot; it is one file for a browser and loads nothing.
"""

import time
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.live import Live

from launch.flags import run_program, usage_errors
from launch.watch_page import run_page
from launch.watch_panel import panel
from ling_jax.files import replacing
from ling_jax.paths import as_path
from ling_jax.preflight import check_new
from ling_jax.rl.watched import read_run

WORKDIR = flags.DEFINE_string("workdir", None, "the workdir of a run of launch.rl or launch.align", required=True)
ONCE = flags.DEFINE_bool("once", False, "print the panel once and end")
OUT = flags.DEFINE_string("out", "", "write a page there and end; one that is there is replaced")
SECONDS = 2.0  # between two looks at the files; our choice


def main() -> None:
    with usage_errors():
        workdir = as_path(WORKDIR.value)
        if OUT.value:
            check_new(as_path(OUT.value))
        found = read_run(workdir)
    if OUT.value:
        text = run_page(found).encode()
        with replacing(as_path(OUT.value)) as file:
            file.write(text)
        print(f"{OUT.value}: {len(found.metrics)} steps", flush=True)
    elif ONCE.value:
        Console().print(panel(found))
    else:
        _follow(workdir)


def _follow(workdir: Path) -> None:
    """Until Ctrl-C."""
    with Live(panel(read_run(workdir)), auto_refresh=False) as live:
        try:
            while True:
                time.sleep(SECONDS)
                live.update(panel(read_run(workdir)), refresh=True)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    run_program(main)
