"""Trains the demo's model with the foundation in 32 and 16 bits, from several seeds, and prints the DSC of the held-out patients.

    python benches/precision.py [SEEDS]

Only what a seed decides is the same: initial weights, order, views. Needs the standard library alone.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
precisions = ["f32", "f16", "bf16"]


def dsc(folder, seed, precision):
    config = folder / f"{seed}.toml"
    config.write_text(f"seed = {seed}\n[model]\nseed = {seed}\n")
    run = folder / f"{seed}-{precision}"
    subprocess.run(
        ["cargo", "run", "--quiet", "--release", "--example", "train_synapse", "--", "--config", config, "--precision", precision,
         "--run", run, "--cache", folder / "cache"],
        cwd=root, check=True, stdout=subprocess.DEVNULL,
    )
    [strict] = (r for r in json.loads((run / "receipt.json").read_text())["scores"] if r["unit"] == "mm")
    return 100 * strict["mean_of_organs"]["dsc"]["mean"]


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
