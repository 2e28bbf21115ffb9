"""Runs `cargo bench` and the same rows in PyTorch, ONNX Runtime, medpy, nibabel and scipy, one after the other, and prints the
ratios of the medians. On a CPU also the floor: what the networks' products alone would take at the machine's rate.

    python benches/compare.py [encoder|side|decoder|step|metrics|datasets|memory ...]
    python benches/compare.py --device cuda:0 --features cuda [encoder|side|decoder|step ...]

On a GPU, PyTorch is measured as it is and with torch.compile. `memory` compares the peak resident memory of whole runs of
train_synapse from kept embeddings (ViT-B with random weights at 512, batches of four, made-up patients) with that of steps in
PyTorch, with the encoder in each as published and without.

Needs the packages of tests/it/fixtures/requirements.txt, and no other load on the machine.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

here = Path(__file__).resolve().parent
networks = ["encoder", "side", "decoder", "step"]
PRODUCT = "product/4096"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("benches", nargs="*", help="all without")
parser.add_argument("--device", default="cpu", help="as --list-devices of the examples names it")
parser.add_argument("--features", default="", help="the backend's")
parser.add_argument("--bench", help="the program that `cargo bench --bench models --no-run` made, on a machine without cargo")
options = parser.parse_args()
benches = options.benches or [*networks, *(("metrics", "datasets", "memory") if options.device == "cpu" else ())]


def target_directory():
    metadata = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version=1"], cwd=here, check=True, capture_output=True
    )
    return Path(json.loads(metadata.stdout)["target_directory"])


def measure(script, *arguments):
    answer = subprocess.run([sys.executable, here / script, *arguments], stdout=subprocess.PIPE)
    return json.loads(answer.stdout) if answer.returncode == 0 else None


def network_rows():
    """Ours in one run, then each of theirs in a process of its own, which its peak memory takes."""
    parts = [PRODUCT, *(f"{bench}/" for bench in benches if bench in networks)]
    with tempfile.TemporaryDirectory() as folder:
        program = [options.bench] if options.bench else ["cargo", "bench", "--features", options.features, "--bench", "models", "--"]
        saved = Path(folder) / "models"
        arguments = ["--device", options.device, "--rows", ",".join(parts), "--save", saved]
        subprocess.run([*program, *arguments], cwd=here, check=True)
        ours = json.loads(saved.with_suffix(".json").read_text())
    gpu = options.device != "cpu"
    others = {"PyTorch": [], "torch.compile": ["--compile"]} if gpu else {"PyTorch": [], "ONNX Runtime": ["--onnx"]}
    device = ["--device", "cuda", "--tf32"] if gpu else []
    print(f"\n{options.device}; medians; ratio = ours / theirs")
    print(f"{'row':<30} {'other':<14} {'ours [s]':>9} {'theirs [s]':>10} {'ratio':>6} {'ours [MB]':>10} {'theirs [MB]':>11} {'ratio':>6}")
    rate, floors = None, []
    for cell in ours:
        seconds = sorted(cell["seconds"])
        median = (seconds[(len(seconds) - 1) // 2] + seconds[len(seconds) // 2]) / 2
        for other, switch in others.items():
            found = measure("models_pytorch.py", *device, *switch, cell["row"])
            row = found and found["rows"].get(cell["row"])
            if not row:
                continue
            if cell["row"] == PRODUCT and "operations" in row:
                rate = row["operations"] / min(median, row["seconds"])
            elif "operations" in row:
                floors.append((cell["row"], row["operations"], median))
            ours_mb, theirs_mb = (bytes / 1e6 for bytes in (cell["peak_memory_bytes"], row["peak_memory_bytes"]))
            print(
                f"{cell['row']:<30} {other:<14} {median:>9.4f} {row['seconds']:>10.4f} {median / row['seconds']:>6.2f}"
                f" {ours_mb:>10.0f} {theirs_mb:>11.0f} {ours_mb / theirs_mb:>6.2f}",
                flush=True,
            )
    if rate and not gpu:  # on a GPU the rate depends on a row's precision
        floor_rows(floors, rate)


def floor_rows(floors, rate):
    """Each row beside the time that its products alone would take, at the rate of a large one."""
    print(f"\nfloor = operations of PyTorch's products and convolutions, at the {rate / 1e9:.0f} GFLOP/s of the faster {PRODUCT}")
    print(f"{'row':<30} {'GFLOP':>8} {'floor [s]':>9} {'ours [s]':>9} {'floor / ours':>12}")
    for name, operations, seconds in floors:
        floor = operations / rate
        print(f"{name:<30} {operations / 1e9:>8.1f} {floor:>9.4f} {seconds:>9.4f} {floor / seconds:>12.2f}")


def report(title, theirs):
    """Rows that criterion measured."""
    print(f"\n{title}; medians; ratio = ours / theirs")
    print(f"{'row':<34} {'ours [s]':>10} {'theirs [s]':>11} {'ratio':>8}")
    for row, seconds in theirs["seconds"].items():
        estimates = json.loads((target_directory() / "criterion" / row / "new" / "estimates.json").read_text())
        ours = estimates["median"]["point_estimate"] * 1e-9
        print(f"{row:<34} {ours:>10.3f} {seconds:>11.3f} {ours / seconds:>8.4f}")


def train_synapse(*arguments):
    program = target_directory() / "release/examples/train_synapse"
    return peak_mb(program, *map(str, arguments))


def training_mb():
    """Peak memory of two runs: the first embeds every image and keeps it, the second finds them."""
    subprocess.run(["cargo", "build", "--release", "--example", "train_synapse"], cwd=here, check=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        sam = folder / "sam_vit_b.pth"
        save = "import sys, torch; from segment_anything import sam_model_registry as models; "
        save += "torch.save(models['vit_b']().state_dict(), sys.argv[1])"
        # Not here: Linux counts what a process had when it started another as the other's.
        subprocess.run([sys.executable, "-c", save, sam], check=True)
        train_synapse("--run", folder / "demo", "--cache", folder / "demo-cache", "--epochs", "1")
        for kind, name in (("img", "img{}.nii.gz"), ("label", "label{}.nii.gz")):
            for case in ("0001", "0005"):  # one that tests, one that trains
                source = folder / "demo-cache/phantoms/RawData/Training" / kind / name.format(case)
                copied = folder / "data/RawData/Training" / kind / source.name
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copied)
        config = folder / "config.toml"
        config.write_text("epochs = 4\nbatch_size = 4\naugmentation = false\n")
        common = ("--data", folder / "data", "--sam", sam, "--config", config, "--cache", folder / "cache")
        return [train_synapse(*common, "--run", folder / run) for run in ("first", "second")]


def peak_mb(*command):
    process = subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return usage.ru_maxrss * 1024 / 1e6


if set(networks) & set(benches):
    network_rows()
if timed := [bench for bench in ("metrics", "datasets") if bench in benches]:
    subprocess.run(["cargo", "bench", *(a for b in timed for a in ("--bench", b))], cwd=here, check=True)
if "metrics" in benches:
    theirs = measure("metrics_medpy.py")
    report(f"medpy {theirs['medpy']} (once, peak memory {theirs['peak_mb']} MB)", theirs)
if "datasets" in benches:
    theirs = measure("datasets_python.py", target_directory() / "tmp/phantom.nii.gz")
    report(f"nibabel {theirs['nibabel']}, scipy {theirs['scipy']}", theirs)
if "memory" in benches:
    first, second = training_mb()
    cached, full = (peak_mb(sys.executable, here / "models_pytorch.py", row) for row in ("step/cached_b4", "step/full_b4"))
    print("\npeak memory, ViT-B at 512, batches of four; ratio = ours / theirs")
    print(f"{'row':<60} {'ours [MB]':>10} {'PyTorch [MB]':>13} {'ratio':>6}")
    for row, ours, theirs in (
        ("embeddings kept before; PyTorch with the encoder", second, full),
        ("embeddings kept before; PyTorch with embeddings in memory", second, cached),
        ("embeddings computed and kept; PyTorch with the encoder", first, full),
    ):
        print(f"{row:<60} {ours:>10.0f} {theirs:>13.0f} {ours / theirs:>6.2f}")
