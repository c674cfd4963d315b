"""What the framework costs: `steps()` against benchmarks/bare_loop.py, step by step in turn.

    python benchmarks/overhead.py [--steps 30] [--data cifar10]

Both run the same kernels on the same random draws in one process. Prints the median times and the
median ratio of the pairs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch

from bare_loop import losses
from leanres.data.sources import load_data
from leanres.data.split import channel_stats
from leanres.models.preprocess import Normalize
from leanres.training.device import detect
from leanres.training.loop import start, steps
from leanres.training.recipes import RECIPES
from leanres.training.setup import Setup


def timed(iterator: Iterator[torch.Tensor]) -> Iterator[tuple[float, float]]:
    """Yield (seconds, loss) of each step."""
    while True:
        start_s = time.perf_counter()
        loss = next(iterator, None)
        if loss is None:
            return
        yield time.perf_counter() - start_s, float(loss)


def main() -> None:
    """Run both for `--steps` steps and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--data", default="cifar10")
    args = parser.parse_args()
    train, recipe, device = load_data(args.data).train, RECIPES["speed"], detect("cpu")
    device.tune()
    setup = Setup(recipe, train, Normalize(*channel_stats(train)), device)
    ours = (result.loss for result in steps(start(setup), setup))
    bare = losses(
        train,
        (64, 256, 256),
        recipe.epochs,
        setup.counts.batch_size,
        recipe.seed,
        device.precision == "bfloat16",
    )
    pairs = list(zip(range(args.steps + 3), timed(ours), timed(bare), strict=False))[3:]
    assert all(a[1] == b[1] for _, a, b in pairs), "the losses differ"
    medians = [statistics.median(p[i][0] for p in pairs) for i in (1, 2)]
    ratios = sorted(a[0] / b[0] for _, a, b in pairs)
    print(
        f"{len(pairs)} steps each, losses equal to the last bit: framework"
        f" {1e3 * medians[0]:.0f} ms, bare loop {1e3 * medians[1]:.0f} ms, median of the"
        f" pairwise ratios {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
