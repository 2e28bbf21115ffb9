"""Runs the examples for the scripts beside it."""

import subprocess
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def run_example(name, *arguments, features="", built=None):
    """With cargo, or as built in a folder."""
    cargo = ["cargo", "run", "--quiet", "--release", "--features", features, "--example", name, "--"]
    program = [Path(built).resolve() / name] if built else cargo
    subprocess.run([*program, *map(str, arguments)], cwd=root, check=True, stdout=subprocess.DEVNULL)


def seeded_config(folder, seed):
    """A file for `--config`."""
    config = folder / f"{seed}.toml"
    config.write_text(f"seed = {seed}\n[model]\nseed = {seed}\n")
    return config


def mean_dsc(report):
    """In percent."""
    return 100 * report["mean_of_organs"]["dsc"]["mean"]
