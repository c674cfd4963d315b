"""Recipes, plans and JSON that are deep, long, damaged or full of numbers that are none."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from hostile.cases import Case, mutated, run_command, written
from leanres.training.recipe import Recipe
from leanres.training.recipes import load_recipe
from leanres.trials.campaign import read_plan


def texts(folder: Path, count: int, rng: random.Random) -> Iterator[Case]:
    recipe = b'base = "speed"\nepochs = 3\nlr = 0.1\naugment = [["crop", {padding = 2}]]\n'
    plan = b'[speed]\nrecipe = "speed"\nseeds = [0, 1]\nset = ["epochs=1"]\n'
    n = 200_000
    crafted = [b"a" + b".a" * n + b"=1", b"a=" + b"[" * n, b"a=" + b"{a=" * n, b"\xff\xfe", b"\0"]
    crafted += [b"[" + b"a." * n + b"a]", b"a=" + b"9" * n, b"\n".join([b"[[a]]"] * n), b"a=1" * n]
    crafted += [
        b'a="' + b"\\u0041" * n + b'"',
        b"[a]\n" * n,
        b'"\\u2028".' * n + b"a=1",
        b"=",
        b"[",
    ]
    crafted += [b"[speed]\nseeds = [1e400]", b"[speed]\nseeds = [nan]", b"speed = 1", b"[a.b]"]
    crafted += [b"[speed]\nset = 3", b'["../x"]', b'["\\u001b"]', b"epochs = inf", b"lr = []"]
    inputs = [(f"crafted {i}", content) for i, content in enumerate(crafted)]
    inputs += [(f"{i}", mutated(rng.choice((recipe, plan)), rng)) for i in range(count)]
    for name, content in inputs:
        path = folder / "given.toml"
        for read in (lambda path: load_recipe(str(path)), read_plan):
            yield Case(
                "TOML",
                name,
                lambda read=read, path=path, content=content: read(written(path, content)),
                refused=False,
            )


def jsons(folder: Path, count: int, rng: random.Random) -> Iterator[Case]:
    """As run.json of a folder and as a result, for `leanres runs`."""
    whole = json.dumps({"recipe": Recipe().to_dict(), "seed": 0, "runs": [{"seed": 1}]}).encode()
    crafted = [b"[" * 500_000, b'{"a":' * 500_000, b"9" * 50_000, b"\xff", b"", b"[]", b"1e999"]
    crafted += [b"NaN", b"null", b'"' + b"a" * 5_000_000 + b'"', b'{"runs": 3}', b'{"runs": [[]]}']
    for i, content in enumerate([*crafted, *(mutated(whole, rng) for _ in range(count))]):

        def read(content: bytes = content) -> None:
            (folder / "runs" / "one").mkdir(parents=True, exist_ok=True)
            written(folder / "runs" / "one" / "run.json", content)
            written(folder / "result.json", content)
            run_command("runs", "--runs", str(folder / "runs"), "--results", str(folder))

        yield Case("JSON", f"{i}", read, refused=False)
