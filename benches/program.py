"""Runs the program `sam-lst` for the scripts in this folder."""

import json
import subprocess
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def run_sam_lst(*arguments, features="", program=None):
    """Runs the program with cargo, or the built program at a path."""
    cargo = ["cargo", "run", "--quiet", "--release", "-p", "sam-lst-cli", "--features", features, "--"]
    command = [Path(program).resolve()] if program else cargo
    subprocess.run([*command, *map(str, arguments)], cwd=root, check=True, stdout=subprocess.DEVNULL)


def write_config(folder, seed, precision):
    """Writes a file for `--config`: a seed, and the foundation's precision."""
    config = folder / f"{seed}-{precision}.toml"
    config.write_text(f'seed = {seed}\nfoundation_precision = "{precision}"\n[model]\nseed = {seed}\n')
    return config


def run_summary(run):
    """The summary of the run in a folder."""
    return json.loads((run / "run_summary.json").read_text())


def mean_dsc(report):
    """Mean DSC over organs in percent."""
    return 100 * report["mean_of_organs"]["dsc"]["mean"]
