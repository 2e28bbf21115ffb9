"""Runs `cargo bench` and the same rows in PyTorch, medpy, nibabel and scipy, one after the other, and prints the ratios of
the medians.

    python benches/compare.py [encoder|side|decoder|step|metrics|datasets ...]

Needs the packages of tests/it/fixtures/requirements.txt, and no other load on the machine.
"""

import json
import subprocess
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
benches = sys.argv[1:] or ["encoder", "side", "decoder", "step", "metrics", "datasets"]

metadata = subprocess.run(
    ["cargo", "metadata", "--no-deps", "--format-version=1"], cwd=here, check=True, capture_output=True
)
target = Path(json.loads(metadata.stdout)["target_directory"])
criterion = target / "criterion"
subprocess.run(["cargo", "bench", *(a for b in benches for a in ("--bench", b))], cwd=here, check=True)


def measure(script, *rows):
    answer = subprocess.run([sys.executable, here / script, *rows], check=True, stdout=subprocess.PIPE)
    return json.loads(answer.stdout)


def report(title, theirs):
    print(f"\n{title}; medians; ratio = ours / theirs")
    print(f"{'row':<34} {'ours [s]':>10} {'theirs [s]':>11} {'ratio':>8}")
    for row, seconds in theirs["seconds"].items():
        estimates = json.loads((criterion / row / "new" / "estimates.json").read_text())
        ours = estimates["median"]["point_estimate"] * 1e-9
        print(f"{row:<34} {ours:>10.3f} {seconds:>11.3f} {ours / seconds:>8.4f}")


if networks := [f"{bench}/" for bench in benches if bench not in ("metrics", "datasets")]:
    theirs = measure("pytorch.py", *networks)
    report(f"PyTorch {theirs['torch']}, {theirs['threads']} threads", theirs)
if "metrics" in benches:
    theirs = measure("metrics_medpy.py")
    report(f"medpy {theirs['medpy']} (once, peak memory {theirs['peak_mb']} MB)", theirs)
if "datasets" in benches:
    theirs = measure("datasets_python.py", target / "tmp/phantom.nii.gz")
    report(f"nibabel {theirs['nibabel']}, scipy {theirs['scipy']}", theirs)
