"""What staleness costs, and which correction helps: small runs of reinforcement learning, alike but for these two.

    python -m benchmarks.staleness --out=runs/staleness [--quick]
    python -m benchmarks.staleness --out=runs/staleness --report [--json_out=staleness.json]

The grid is {staleness 0, 8} x {no correction, TIS, IcePop, KPop} x {digit_sums, lookup} x 3 seeds: 48 runs, all from
one fine-tuned model a task. Each run ends in a line of OUT/results.jsonl; started again, the grid goes on within the
run where it was. `--report` writes OUT/report.md and OUT/staleness.svg from these lines, by the rule of
docs/staleness.md. `--quick` has two runs of two steps, which show that everything works.
"""

import sys
from pathlib import Path

from absl import flags

from benchmarks import staleness_report
from benchmarks.json_out import JSON_OUT
from benchmarks.report import check_json_out, finish
from benchmarks.staleness_runs import FULL, QUICK_GRID, formulas, note_grid, read_results, run_grid
from launch.flags import run_program, usage_errors
from ling_jax.run.workdir import lock, open_workdir, unlock

OUT = flags.DEFINE_string("out", None, "folder of the runs and of results.jsonl", required=True)
QUICK = flags.DEFINE_bool("quick", False, "two runs of two steps")
REPORT = flags.DEFINE_bool("report", False, "run nothing; write the report of the runs that have ended")


def main() -> None:
    check_json_out(JSON_OUT.value)
    grid = QUICK_GRID if QUICK.value else FULL
    with usage_errors():
        folder = Path(open_workdir(OUT.value))
        note_grid(grid, folder)
        held = lock(folder)
    try:
        if REPORT.value:
            findings = staleness_report.write(folder, read_results(folder), formulas(grid))
            command = f"python -m benchmarks.staleness --out={folder} --report"
            sys.exit(finish([], command, JSON_OUT.value, findings))
        run_grid(grid, folder)
    finally:
        unlock(folder, held)


if __name__ == "__main__":
    run_program(main)
