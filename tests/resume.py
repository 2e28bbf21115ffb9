"""Kills trainings at random moments, resumes them, and checks that the weights and the log of steps are
those of an uninterrupted run, bit for bit.

    cargo build --release -p sam-lst-cli
    python tests/resume.py --series 50 --kills 4

Each series trains the demo anew, with its own cache, so that embeddings are computed in other groups
after each kill. `--load N` keeps N further threads busy. Exit status 1 if a series differs.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

here = Path(__file__).resolve().parent
parser = argparse.ArgumentParser()
parser.add_argument("--program", type=Path, default=here.parent / "target/release/sam-lst")
parser.add_argument("--series", type=int, default=50)
parser.add_argument("--kills", type=int, default=4)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--load", type=int, default=0)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
random.seed(arguments.seed)
folder = Path(tempfile.mkdtemp(prefix="resume-"))
files = ["steps.csv", "validation.csv", "ladder.safetensors", "best.safetensors"]


def command(name):
    return [arguments.program, "demo", "--foundation", "random", "--epochs", str(arguments.epochs),
            "--plain", "--run", folder / name, "--cache", folder / f"{name}-cache"]


def start(name):
    return subprocess.Popen(command(name), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            start_new_session=True)


def finish(name):
    process = start(name)
    _, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"{name} failed:\n{errors.decode()}")
    hashes = [hashlib.sha256((folder / name / file).read_bytes()).hexdigest() for file in files]
    for used in [folder / name, folder / f"{name}-cache"]:
        shutil.rmtree(used)
    return hashes


busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.load)]
try:
    begin = time.monotonic()
    expected = finish("whole")
    seconds = time.monotonic() - begin
    different = 0
    for series in range(arguments.series):
        name = f"series-{series}"
        kills = 0
        for _ in range(arguments.kills):
            process = start(name)
            try:
                process.wait(random.uniform(0.1, 0.4 * seconds))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
            if process.returncode == 0:
                break
        found = finish(name)
        equal = [file for file, a, b in zip(files, expected, found) if a == b]
        different += len(equal) < len(files)
        print(f"series {series}: {kills} kills, equal: {', '.join(equal)}", flush=True)
    print(f"{different} of {arguments.series} series differ from the uninterrupted run")
    sys.exit(different > 0)
finally:
    for process in busy:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
