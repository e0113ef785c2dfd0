"""Shows trajectories: a page of turns, tool results, tokens with their log-probs, and rewards.

    python -m launch.view --trajectories=runs/kpop --out=trajectories.html
    python -m launch.view --trajectories=results/lookup/trajectories.jsonl --out=lookup.html

`--trajectories` is a file or a folder of ATIF trajectories: a run of launch.rl or launch.align leaves the samples of
each step in its workdir, launch.evaluate --task=environment all of them in --out, and other tools have them too. The
page is one file for a browser; it needs no server and loads nothing.
"""

import itertools
import os

from absl import flags

from launch.flags import run_program, usage_errors
from ling_jax.evaluate.viewer import read_trajectories, viewer_page
from ling_jax.files import replacing
from ling_jax.messages import size_text
from ling_jax.paths import as_path
from ling_jax.preflight import check_new

TRAJECTORIES = flags.DEFINE_string("trajectories", None, "a file or a folder of trajectories", required=True)
OUT = flags.DEFINE_string("out", "trajectories.html", "the page; one that is there is replaced")
MOST = flags.DEFINE_integer("most", 500, "the first so many trajectories", lower_bound=1)


def main() -> None:
    with usage_errors():
        out = as_path(OUT.value)
        check_new(out)
        found = list(itertools.islice(read_trajectories(as_path(TRAJECTORIES.value)), MOST.value + 1))
        shown = found[: MOST.value]
        text = viewer_page(shown, os.fspath(TRAJECTORIES.value)).encode()
        with replacing(out) as file:
            file.write(text)
    more = f"; there are more: raise --most={MOST.value}" if len(found) > len(shown) else ""
    print(f"{out}: {len(shown)} trajectories, {size_text(len(text))}{more}", flush=True)


if __name__ == "__main__":
    run_program(main)
