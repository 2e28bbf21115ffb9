"""Runs `cargo bench`, then the same rows in PyTorch, ONNX Runtime, medpy, nibabel and scipy, and
prints the ratios of the medians. On a CPU it also prints a lower bound: the time of the networks'
products alone at the machine's rate.

    python benches/compare.py [encoder|side|decoder|step|metrics|datasets|memory ...]
    python benches/compare.py --device cuda:0 --features cuda [encoder|side|decoder|step ...]

On a GPU, PyTorch is measured with and without torch.compile. `memory` compares the peak resident
memory of whole runs of `sam-lst train` with cached embeddings (ViT-B with random weights at 512,
batches of four, synthetic phantoms) with that of training steps in PyTorch, with the encoder in each
step, as published, and without.

Needs the packages of tests/it/fixtures/requirements.txt, and an otherwise idle machine.
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
parser.add_argument("benches", nargs="*", help="the benches to run [default: all]")
parser.add_argument("--device", default="cpu", help="as `sam-lst devices` names it")
parser.add_argument("--features", default="", help="features of the benches, such as cuda")
parser.add_argument("--bench", help="the program that `cargo bench --bench models --no-run` built, on a machine without cargo")
options = parser.parse_args()
benches = options.benches or [*networks, *(("metrics", "datasets", "memory") if options.device == "cpu" else ())]


def target_directory():
    metadata = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version=1"], cwd=here, check=True, capture_output=True
    )
    return Path(json.loads(metadata.stdout)["target_directory"])


def measure(script, *arguments):
    """The JSON that a script prints, or None if it fails."""
    process = subprocess.run([sys.executable, here / script, *arguments], stdout=subprocess.PIPE)
    return json.loads(process.stdout) if process.returncode == 0 else None


def network_rows():
    """Runs all rows of sam-lst at once, and each row of the others in a process of its own, so that
    its peak memory is that of the row.
    """
    parts = [PRODUCT, *(f"{bench}/" for bench in benches if bench in networks)]
    with tempfile.TemporaryDirectory() as folder:
        program = [options.bench] if options.bench else ["cargo", "bench", "--features", options.features, "--bench", "models", "--"]
        saved = Path(folder) / "models"
        arguments = ["--device", options.device, "--rows", ",".join(parts), "--save", saved]
        subprocess.run([*program, *arguments], cwd=here, check=True)
        cells = json.loads(saved.with_suffix(".json").read_text())
    gpu = options.device != "cpu"
    others = {"PyTorch": [], "torch.compile": ["--compile"]} if gpu else {"PyTorch": [], "ONNX Runtime": ["--onnx"]}
    device = ["--device", "cuda", "--tf32"] if gpu else []
    print(f"\n{options.device}; medians; ratio = sam-lst / other")
    print(
        f"{'row':<30} {'other':<14} {'sam-lst [s]':>11} {'other [s]':>10} {'ratio':>6}"
        f" {'sam-lst [MB]':>12} {'other [MB]':>10} {'ratio':>6}"
    )
    rate, bounds = None, []
    for cell in cells:
        seconds = sorted(cell["seconds"])
        median = (seconds[(len(seconds) - 1) // 2] + seconds[len(seconds) // 2]) / 2
        for other, switch in others.items():
            result = measure("models_pytorch.py", *device, *switch, cell["row"])
            row = result and result["rows"].get(cell["row"])
            if not row:
                continue
            if cell["row"] == PRODUCT and "operations" in row:
                rate = row["operations"] / min(median, row["seconds"])
            elif "operations" in row:
                bounds.append((cell["row"], row["operations"], median))
            mb, other_mb = (bytes / 1e6 for bytes in (cell["peak_memory_bytes"], row["peak_memory_bytes"]))
            print(
                f"{cell['row']:<30} {other:<14} {median:>11.4f} {row['seconds']:>10.4f} {median / row['seconds']:>6.2f}"
                f" {mb:>12.0f} {other_mb:>10.0f} {mb / other_mb:>6.2f}",
                flush=True,
            )
    if rate and not gpu:  # on a GPU the rate depends on a row's precision
        print_bounds(bounds, rate)


def print_bounds(bounds, rate):
    """Prints each row's time and the time of its products alone, at the rate of a large product."""
    print(f"\nbound = operations of PyTorch's products and convolutions at {rate / 1e9:.0f} GFLOP/s, the rate of the faster {PRODUCT}")
    print(f"{'row':<30} {'GFLOP':>8} {'bound [s]':>9} {'sam-lst [s]':>11} {'bound / sam-lst':>15}")
    for name, operations, seconds in bounds:
        bound = operations / rate
        print(f"{name:<30} {operations / 1e9:>8.1f} {bound:>9.4f} {seconds:>11.4f} {bound / seconds:>15.2f}")


def report(title, other):
    """Prints rows that criterion measured."""
    print(f"\n{title}; medians; ratio = sam-lst / other")
    print(f"{'row':<34} {'sam-lst [s]':>11} {'other [s]':>11} {'ratio':>8}")
    for row, other_seconds in other["seconds"].items():
        estimates = json.loads((target_directory() / "criterion" / row / "new" / "estimates.json").read_text())
        seconds = estimates["median"]["point_estimate"] * 1e-9
        print(f"{row:<34} {seconds:>11.3f} {other_seconds:>11.3f} {seconds / other_seconds:>8.4f}")


def sam_lst_mb(*arguments):
    """Peak memory of the program `sam-lst`."""
    return peak_mb(target_directory() / "release/sam-lst", *map(str, arguments))


def training_mb():
    """Peak memory of two runs: the first computes and caches embeddings, the second reads them."""
    subprocess.run(["cargo", "build", "--release", "-p", "sam-lst-cli"], cwd=here, check=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        sam = folder / "sam_vit_b.pth"
        save = "import sys, torch; from segment_anything import sam_model_registry as models; "
        save += "torch.save(models['vit_b']().state_dict(), sys.argv[1])"
        # Not in this process: Linux counts its memory at the start of a child as the child's.
        subprocess.run([sys.executable, "-c", save, sam], check=True)
        # Writes the phantoms.
        sam_lst_mb("demo", "--plain", "--run", folder / "demo", "--cache", folder / "demo-cache", "--epochs", "1")
        for kind, name in (("img", "img{}.nii.gz"), ("label", "label{}.nii.gz")):
            for case in ("0001", "0005"):  # a test case and a training case
                source = folder / "demo-cache/phantoms/RawData/Training" / kind / name.format(case)
                copied = folder / "data/RawData/Training" / kind / source.name
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copied)
        config = folder / "config.toml"
        config.write_text("epochs = 4\nbatch_size = 4\naugmentation = false\n")
        common = ("--data", folder / "data", "--sam", sam, "--config", config, "--cache", folder / "cache", "--plain")
        return [sam_lst_mb("train", *common, "--run", folder / run) for run in ("first", "second")]


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
    medpy = measure("metrics_medpy.py")
    report(f"medpy {medpy['medpy']} (one run, peak memory {medpy['peak_mb']} MB)", medpy)
if "datasets" in benches:
    folder = target_directory() / "tmp"
    python = measure("datasets_python.py", folder / "phantom.nii.gz", folder / "phantom")
    report(f"nibabel {python['nibabel']}, SimpleITK {python['SimpleITK']}, scipy {python['scipy']}", python)
if "memory" in benches:
    first, second = training_mb()
    cached, full = (peak_mb(sys.executable, here / "models_pytorch.py", row) for row in ("step/cached_b4", "step/full_b4"))
    print("\npeak memory, ViT-B at 512, batches of four; ratio = sam-lst / PyTorch")
    print(f"{'row':<60} {'sam-lst [MB]':>12} {'PyTorch [MB]':>13} {'ratio':>6}")
    for row, mb, pytorch_mb in (
        ("embeddings cached before; PyTorch with the encoder", second, full),
        ("embeddings cached before; PyTorch with embeddings in memory", second, cached),
        ("embeddings computed and cached; PyTorch with the encoder", first, full),
    ):
        print(f"{row:<60} {mb:>12.0f} {pytorch_mb:>13.0f} {mb / pytorch_mb:>6.2f}")
