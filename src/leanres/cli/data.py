"""`leanres data`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leanres.cli import complete, options
from leanres.cli.console import console, print_table, say
from leanres.errors import shortened

if TYPE_CHECKING:
    from leanres.data.describe import Description, SplitDescription
    from leanres.data.split import Dataset


MAX_CLASSES = 40  # that are printed one a line; of more, the most frequent and the rarest
MAX_NAME = 40  # letters of a class name in the table


def data(
    name: str = typer.Argument(
        "cifar10", metavar="DATA", help=options.DATA_HELP, autocompletion=complete.DATA
    ),
    size: int | None = options.SIZE,
    channels: int | None = options.CHANNELS,
    strict: bool = options.STRICT,
    out: Path = options.output_option(
        Path("runs/data"), help="Folder for samples.png and augmented.png."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Describe a data set: sizes, balance, pixel statistics, duplicates; draw two sample grids.

    Example: leanres data digits
    """
    from dataclasses import asdict

    from leanres.data.describe import describe

    dataset = options.load_dataset(name, size, strict, channels)
    facts = describe(dataset)
    grids = _write_grids(dataset, out)
    if as_json:
        say(json.dumps(asdict(facts) | {"grids": [str(g) for g in grids]}, indent=1))
    else:
        _print_description(facts, grids)


def _write_grids(dataset: Dataset, out: Path) -> list[Path]:
    import torch

    from leanres.augment.registry import augment
    from leanres.augment.rng import Draw, generator
    from leanres.data.describe import batch_grid, sample_grid
    from leanres.io import write_bytes
    from leanres.training.recipes import RECIPES

    recipe = RECIPES["digits" if dataset.name == "digits" else "speed"]
    shown = dataset.train or next(iter(dataset.splits.values()))
    chosen = torch.randperm(len(shown), generator=generator(0, 0))[:64]
    draw = Draw(generator(0, 1), chosen)
    batch = augment(shown.images[chosen], recipe.augment, draw)
    grids = {"samples.png": sample_grid(shown), "augmented.png": batch_grid(batch)}
    out.mkdir(parents=True, exist_ok=True)
    for name, image in grids.items():
        content = io.BytesIO()
        image.save(content, "PNG")
        write_bytes(out / name, content.getvalue())
    return [out / name for name in grids]


def _print_description(facts: Description, grids: list[Path]) -> None:
    from leanres.data.arrays import CHANNELS

    splits = facts.splits
    say(f"{facts.name} from {facts.source}")
    _print_classes(facts.classes, splits)
    for name, split in splits.items():
        height, width = split.size
        mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (split.mean, split.std))
        say(
            f"{name}: {height}x{width} px, {CHANNELS[len(split.mean)]}, mean {mean}, std {std}\n"
            f"  fingerprint {split.fingerprint[:16]}"
        )
    for pair in facts.duplicates:
        where = (
            f"within {pair.first}"
            if pair.first == pair.second
            else f"of {pair.second} that are in {pair.first} too"
        )
        say(f"duplicates {where}: {pair.count:,}")
        half = (min(console().width, 200) - 5) // 2
        for names in pair.files:
            say(f"  {' = '.join(shortened(name, half) for name in names)}")
        if pair.count > len(pair.files):
            say(f"  and {pair.count - len(pair.files):,} more")
    say(f"pictures: {', '.join(map(str, grids))}")


def _print_classes(classes: tuple[str, ...], splits: dict[str, SplitDescription]) -> None:
    """Images of each class in each split. Of many classes the most frequent and the rarest."""
    shown, left_out = list(classes), len(classes) - MAX_CLASSES
    if left_out > 0:
        first = next(iter(splits.values())).per_class
        shown.sort(key=lambda label: -first[label])
        half = MAX_CLASSES // 2
        shown = shown[:half] + shown[-half:]
    rows = [
        [shortened(label, MAX_NAME), *(f"{split.per_class[label]:,}" for split in splits.values())]
        for label in shown
    ]
    rows.append(["all", *(f"{split.num_images:,}" for split in splits.values())])
    print_table(["images per class", *splits], rows)
    if left_out > 0:
        say(f"the {half} most frequent and the {half} rarest of {len(classes):,} (--json has all)")
