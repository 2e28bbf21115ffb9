"""Runs `cargo bench` and the same rows in PyTorch, medpy, nibabel and scipy, one after the other, and prints the ratios of
the medians.

    python benches/compare.py [encoder|side|decoder|step|metrics|datasets|memory ...]

`memory` compares the peak resident memory of training from kept embeddings with that of the published method in PyTorch, which
runs the encoder in each step.

Needs the packages of tests/it/fixtures/requirements.txt, and no other load on the machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
benches = sys.argv[1:] or ["encoder", "side", "decoder", "step", "metrics", "datasets", "memory"]

metadata = subprocess.run(
    ["cargo", "metadata", "--no-deps", "--format-version=1"], cwd=here, check=True, capture_output=True
)
target = Path(json.loads(metadata.stdout)["target_directory"])
criterion = target / "criterion"
if timed := [bench for bench in benches if bench != "memory"]:
    subprocess.run(["cargo", "bench", *(a for b in timed for a in ("--bench", b))], cwd=here, check=True)


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


def executable(bench):
    """The bench's own program, so that cargo's memory is not measured."""
    built = subprocess.run(
        ["cargo", "bench", "--bench", bench, "--no-run", "--message-format=json"],
        cwd=here, check=True, stdout=subprocess.PIPE, text=True,
    )
    messages = map(json.loads, built.stdout.splitlines())
    return next(m["executable"] for m in messages if m.get("target", {}).get("name") == bench and m.get("executable"))


def peak_mb(*command):
    process = subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return usage.ru_maxrss * 1024 / 1e6


if networks := [f"{bench}/" for bench in timed if bench not in ("metrics", "datasets")]:
    theirs = measure("pytorch.py", *networks)
    report(f"PyTorch {theirs['torch']}, {theirs['threads']} threads", theirs)
if "metrics" in benches:
    theirs = measure("metrics_medpy.py")
    report(f"medpy {theirs['medpy']} (once, peak memory {theirs['peak_mb']} MB)", theirs)
if "datasets" in benches:
    theirs = measure("datasets_python.py", target / "tmp/phantom.nii.gz")
    report(f"nibabel {theirs['nibabel']}, scipy {theirs['scipy']}", theirs)
if "memory" in benches:
    program = executable("step")
    cached = peak_mb(program, "--bench", "cached_b4", "--profile-time", "5")
    step, full = (peak_mb(sys.executable, here / "pytorch.py", row) for row in ("step/cached_b4", "step/full_b4"))
    print("\npeak memory of some steps, ViT-B at 512, four images; ratio = ours / theirs")
    print(f"{'row':<50} {'ours [MB]':>10} {'PyTorch [MB]':>13} {'ratio':>8}")
    print(f"{'from kept embeddings, both':<50} {cached:>10.0f} {step:>13.0f} {cached / step:>8.2f}")
    print(f"{'from kept embeddings, PyTorch with the encoder':<50} {cached:>10.0f} {full:>13.0f} {cached / full:>8.2f}")
