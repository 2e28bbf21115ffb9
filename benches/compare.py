"""Runs `cargo bench` and the same rows in PyTorch, one after the other, and prints the ratios of the medians.

    python benches/compare.py [encoder|side|decoder|step ...]

Needs the packages of tests/it/fixtures/requirements.txt, and no other load on the machine.
"""

import json
import subprocess
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
benches = sys.argv[1:] or ["encoder", "side", "decoder", "step"]

metadata = subprocess.run(
    ["cargo", "metadata", "--no-deps", "--format-version=1"], cwd=here, check=True, capture_output=True
)
criterion = Path(json.loads(metadata.stdout)["target_directory"]) / "criterion"
subprocess.run(["cargo", "bench", *(a for b in benches for a in ("--bench", b))], cwd=here, check=True)
theirs = subprocess.run(
    [sys.executable, here / "pytorch.py", *(f"{bench}/" for bench in benches)], check=True, capture_output=True
)
theirs = json.loads(theirs.stdout)

print(f"\nPyTorch {theirs['torch']}, {theirs['threads']} threads; medians; ratio = ours / PyTorch")
print(f"{'row':<30} {'ours [s]':>10} {'PyTorch [s]':>12} {'ratio':>7}")
for row, seconds in theirs["seconds"].items():
    estimates = json.loads((criterion / row / "new" / "estimates.json").read_text())
    ours = estimates["median"]["point_estimate"] * 1e-9
    print(f"{row:<30} {ours:>10.3f} {seconds:>12.3f} {ours / seconds:>7.2f}")
