"""Trains the demo's model with the foundation in 32 and 16 bits, from several seeds, and prints the DSC of the held-out patients.

    python benches/precision.py [SEEDS]

Only what a seed decides is the same: initial weights, order, views. Needs the standard library alone.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from examples import mean_dsc, run_example, seeded_config

precisions = ["f32", "f16", "bf16"]


def dsc(folder, seed, precision):
    run = folder / f"{seed}-{precision}"
    folders = ["--run", run, "--cache", folder / "cache"]
    run_example("train_synapse", "--config", seeded_config(folder, seed), "--precision", precision, *folders)
    [strict] = (r for r in json.loads((run / "receipt.json").read_text())["scores"] if r["unit"] == "mm")
    return mean_dsc(strict)


def main():
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    if len(seeds) < 2:
        sys.exit("SEEDS: at least 2, for a standard deviation")
    print("mean DSC of the held-out patients [%], by seed; mean; mean difference from f32 and its standard deviation")
    with tempfile.TemporaryDirectory() as folder:
        found = {precision: [] for precision in precisions}
        for precision in precisions:
            for seed in seeds:
                found[precision].append(dsc(Path(folder), seed, precision))
            differences = [ours - single for ours, single in zip(found[precision], found["f32"])]
            print(
                f"{precision:<5}", " ".join(f"{value:6.2f}" for value in found[precision]),
                f"| {statistics.mean(found[precision]):6.2f} | {statistics.mean(differences):+.2f} +- {statistics.stdev(differences):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
