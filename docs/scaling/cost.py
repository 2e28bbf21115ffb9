#!/usr/bin/env python3
"""Estimates hours, disk and memory of a training run, and prints them as a Markdown table.

    python docs/scaling/cost.py                                  # a table of docs/scaling.md
    python docs/scaling/cost.py --slices 2211 --views 0,1,5,44 --devices 1
    python docs/scaling/cost.py --seconds-per-embedding 0.01 ... # with measurements of your device
    python docs/scaling/cost.py --self-test

The defaults are measured rows of docs/benchmarks.md: ViT-B at 512 x 512 on two CPU cores. Only the
precomputation of embeddings is divided among devices. The time to read files is not included.
"""

import argparse
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

# Probabilities of the 44 views, in the order in which `--cache-views N` takes them: the identity,
# 4 reflections, 39 rotations.
VIEWS = [1 / 4 + 1 / 160] + 4 * [1 / 8] + 39 * [1 / 160]
# An image of 4 bytes and a label of 1 byte for each pixel.
DECODED_BYTES_PER_PIXEL = 5
# Memory of the plan of a run, estimated from the sizes of its data structures.
PLAN_BYTES_PER_SLICE = 100
PLAN_BYTES_PER_EMBEDDING = 10


@dataclass(frozen=True)
class Run:
    slices: int = 2_000
    views: int = 5
    devices: int = 1
    seconds_per_embedding: float = 2.208 / 4  # row encoder/vit_b_512_b4
    seconds_per_step: float = 0.575  # row step/cached_b4
    seconds_per_full_step: float = 3.226  # row step/full_b4
    batch_size: int = 4
    epochs: int = 200
    embedding_bytes: int = 256 * 32 * 32 * 2 + 128  # values in f16, and the file's header
    decode_seconds_per_volume: float = 1.1  # row SliceStore
    slices_per_volume: int = 148
    slice_pixels: int = 512 * 512
    process_mb: float = 891  # row "embeddings computed and cached"

    def decode_seconds(self):
        """One process decodes every volume."""
        return math.ceil(self.slices / self.slices_per_volume) * self.decode_seconds_per_volume

    def embeddings_per_slice(self):
        """Expected number of cached views that occur in at least one epoch."""
        return sum(1 - (1 - share) ** self.epochs for share in VIEWS[: self.views])

    def largest_shard(self):
        """Expected slices of the largest shard: the mean, and how far chance exceeds it."""
        mean = self.slices / self.devices
        return min(self.slices, mean + math.sqrt(2 * mean * math.log(self.devices)))

    def embed_seconds(self):
        """The largest shard decides, one shard for each device."""
        return self.largest_shard() * self.embeddings_per_slice() * self.seconds_per_embedding

    def train_seconds(self):
        """Steps on one device, and the foundation for views that are not cached."""
        steps = self.epochs * math.ceil(self.slices / self.batch_size)
        uncached = self.slices * self.epochs * (1 - sum(VIEWS[: self.views]))
        foundation = (self.seconds_per_full_step - self.seconds_per_step) / self.batch_size
        return steps * self.seconds_per_step + uncached * foundation

    def total_seconds(self):
        return self.decode_seconds() + self.embed_seconds() + self.train_seconds()

    def decoded_bytes(self):
        return self.slices * self.slice_pixels * DECODED_BYTES_PER_PIXEL

    def cache_bytes(self):
        return self.slices * self.embeddings_per_slice() * self.embedding_bytes

    def memory_bytes(self):
        """Of each process."""
        plan = PLAN_BYTES_PER_SLICE + PLAN_BYTES_PER_EMBEDDING * self.embeddings_per_slice()
        return self.process_mb * 1e6 + self.slices * plan


COLUMNS = {
    "slices": lambda run: f"{run.slices:,}",
    "views": lambda run: f"{run.views}",
    "devices": lambda run: f"{run.devices}",
    "decode [h]": lambda run: number(run.decode_seconds() / 3600),
    "embed [h]": lambda run: number(run.embed_seconds() / 3600),
    "train [h]": lambda run: number(run.train_seconds() / 3600),
    "all [h]": lambda run: number(run.total_seconds() / 3600),
    "decoded slices [GB]": lambda run: number(run.decoded_bytes() / 1e9),
    "embeddings [GB]": lambda run: number(run.cache_bytes() / 1e9),
    "memory of a process [GB]": lambda run: number(run.memory_bytes() / 1e9),
}


def number(value):
    """Three significant digits, without an exponent.

    >>> [number(value) for value in (0, 0.0042778, 1.7, 17.66, 176.6, 1766.4, 9999.6)]
    ['0', '0.00428', '1.7', '17.7', '177', '1,770', '10,000']
    """
    if value == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    if decimals <= 0:
        return f"{rounded:,.0f}"
    return f"{rounded:.{decimals}f}".rstrip("0").rstrip(".")


def table(runs):
    rows = [list(COLUMNS), ["---:"] * len(COLUMNS)]
    rows += [[cell(run) for cell in COLUMNS.values()] for run in runs]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def grid(base, slices, views, devices):
    return [
        replace(base, slices=s, views=v, devices=d) for s in slices for v in views for d in devices
    ]


def whole_numbers(minimum, maximum=None):
    """A parser of whole numbers that are separated by commas."""

    def parse(text):
        numbers = [int(part) for part in text.split(",")]
        if min(numbers) < minimum or (maximum is not None and max(numbers) > maximum):
            limit = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"invalid number in `{text}`; expected {limit}")
        return numbers

    return parse


def positive(kind):
    def parse(text):
        value = kind(text)
        if not (0 < value < math.inf):
            raise argparse.ArgumentTypeError(f"invalid value `{text}`; expected more than 0")
        return value

    return parse


HELP = {
    "seconds_per_embedding": "of the foundation for one image",
    "seconds_per_step": "of a training step with cached embeddings",
    "seconds_per_full_step": "of a training step with the foundation in it",
    "batch_size": "slices in these steps",
    "epochs": "passes over all slices",
    "embedding_bytes": "size of an embedding's file",
    "decode_seconds_per_volume": "to decode one volume",
    "slices_per_volume": "mean number of slices of a volume",
    "slice_pixels": "pixels of a slice",
    "process_mb": "peak memory of a process with few slices, in 10^6 bytes",
}


def parse_arguments():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    lists = {
        "slices": (whole_numbers(1), [2_000, 200_000, 20_000_000], "training slices"),
        "views": (whole_numbers(0, len(VIEWS)), [5, 44], "cached views, as --cache-views"),
        "devices": (whole_numbers(1), [1, 8, 256], "devices, one process each"),
    }
    for name, (kind, default, text) in lists.items():
        text += f"; several are separated by commas [default: {','.join(map(str, default))}]"
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="LIST", help=text)
    defaults = Run()
    for name, text in HELP.items():
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=positive(type(default)),
            default=default,
            metavar="N",
            help=f"{text} [default: %(default)s]",
        )
    parser.add_argument("--self-test", action="store_true", help="check this program")
    return parser.parse_args()


def self_test():
    import doctest

    assert doctest.testmod().failed == 0
    assert len(VIEWS) == 44 and math.isclose(sum(VIEWS), 1)

    # One volume, one epoch, nothing cached.
    run = Run(slices=148, views=0, epochs=1)
    assert run.decode_seconds() == 1.1
    assert run.embed_seconds() == run.cache_bytes() == 0
    assert math.isclose(run.train_seconds(), 37 * 3.226)
    # One epoch needs one view of each slice; all of them are cached.
    run = replace(run, views=44)
    assert math.isclose(run.embeddings_per_slice(), 1)
    assert math.isclose(run.embed_seconds(), 148 * 0.552)
    assert math.isclose(run.train_seconds(), 37 * 0.575)
    assert run.decoded_bytes() == 148 * 512 * 512 * 5

    # Views as a run samples them.
    generator = random.Random(0)
    slices, epochs, views = 400, 100, 44
    sampled = sum(len(set(generator.choices(range(views), VIEWS, k=epochs))) for _ in range(slices))
    expected = Run(epochs=epochs, views=views).embeddings_per_slice()
    assert math.isclose(sampled / slices, expected, rel_tol=0.02), (sampled / slices, expected)
    # Shards as a hash assigns them.
    for slices, devices in [(2_000, 1), (2_000, 8), (2_000, 256), (200_000, 256)]:
        shards = [0] * devices
        for _ in range(slices):
            shards[generator.randrange(devices)] += 1
        expected = Run(slices=slices, devices=devices).largest_shard()
        assert math.isclose(max(shards), expected, rel_tol=0.2), (max(shards), expected)

    text = (Path(__file__).parent.parent / "scaling.md").read_text()
    for runs in (
        grid(Run(), [2_000, 200_000, 20_000_000], [5, 44], [1, 8, 256]),
        grid(Run(), [2_211], [0, 1, 5, 44], [1]),
    ):
        assert table(runs) in text, "docs/scaling.md does not contain:\n" + table(runs)
    print("ok")


def main():
    options = vars(parse_arguments())
    if options.pop("self_test"):
        return self_test()
    lists = [options.pop(name) for name in ("slices", "views", "devices")]
    print(table(grid(Run(**options), *lists)))


if __name__ == "__main__":
    main()
