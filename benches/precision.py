"""Trains the demo's model with the foundation in 32 and 16 bits, from several seeds, and prints the
DSC of the test phantoms.

    python benches/precision.py [--seeds N]

A seed determines initial weights, order and views, but not rounding. Needs only the standard
library.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from program import mean_dsc, run_sam_lst, run_summary, write_config

precisions = ["f32", "f16", "bf16"]


def dsc(folder, seed, precision):
    run = folder / f"{seed}-{precision}"
    config = write_config(folder, seed, precision)
    arguments = ["demo", "--plain", "--config", config, "--run", run, "--cache", folder / "cache"]
    run_sam_lst(*arguments, program=options.program)
    [strict] = (report for report in run_summary(run)["scores"] if report["unit"] == "mm")
    return mean_dsc(strict)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--program", help="the built program sam-lst, on a machine without cargo")
options = parser.parse_args()


def main():
    seeds = range(options.seeds)
    if len(seeds) < 2:
        sys.exit("--seeds must be at least 2 for a standard deviation")
    print("mean DSC of the test phantoms [%] by seed | mean | mean and standard deviation of the difference from f32")
    with tempfile.TemporaryDirectory() as folder:
        scores = {precision: [] for precision in precisions}
        for precision in precisions:
            for seed in seeds:
                scores[precision].append(dsc(Path(folder), seed, precision))
            differences = [score - single for score, single in zip(scores[precision], scores["f32"])]
            print(
                f"{precision:<5}", " ".join(f"{value:6.2f}" for value in scores[precision]),
                f"| {statistics.mean(scores[precision]):6.2f}",
                f"| {statistics.mean(differences):+.2f} +- {statistics.stdev(differences):.2f}",
                flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
