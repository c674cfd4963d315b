"""Files and option values that were made to hurt: each ends in one line, or is read as it should.

Every input is read in a process of its own, with 5 seconds and 1 GiB. What counts as wrong: code of
the input ran, the process crashed, hung or ended in a traceback, or it took what it must refuse.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import random
import signal
import socket
import struct
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from forks import OK, TOLD, TRACEBACK, Outcome, fork
from PIL import Image
from safetensors.torch import save as tensors_to_bytes

from leanres.cli import OUT_OF_MEMORY
from leanres.cli import main as command_line
from leanres.data.image_files import read_image
from leanres.data.sources import cifar10_formats as formats
from leanres.data.sources.cifar10_formats import CifarFiles, parse_python_batch, read_cifar10
from leanres.errors import UserError
from leanres.io import open_file, parse_json, read_file
from leanres.models.preprocess import Preprocess
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import config_to_dict
from leanres.runs.weights import KEY, _checksum, load_classifier, save_weights
from leanres.training.recipe import Recipe, from_dict, parse_setting
from leanres.training.recipes import load_recipe
from leanres.trials.campaign import read_plan

MEMORY, ROWS = 1 << 30, 10
MARK = "executed"  # the folder that code of an input would make


@dataclass(frozen=True)
class Case:
    """An input: `read` has to refuse it, or may read it where `refused` is false."""

    kind: str
    name: str
    read: Callable[[], Any]
    refused: bool = True


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def mutated(content: bytes, rng: random.Random) -> bytes:
    """With a few bytes changed, cut out, doubled or put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, length = rng.randrange(len(data)), rng.choice((1, 1, 2, 8, 64))
        how = rng.randrange(5)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at] = rng.randrange(256)
        elif how == 2 and len(data) > length + 1:
            del data[at : at + length]
        elif how == 3:
            data[at:at] = data[at : at + length]
        else:
            data[at:at] = rng.randbytes(length)
    return bytes(data)


# --- pickles ----------------------------------------------------------------------------------


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def good_batch(protocol: int) -> bytes:
    pixels = np.zeros((ROWS, 3072), np.uint8)
    return pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(ROWS)]}, protocol)


def field(value: bytes, name: bytes = b"labels") -> bytes:
    """A pickled dict of one field."""
    return b"\x80\x02}U" + bytes([len(name)]) + name + value + b"s."


def batch_with(labels: Any) -> bytes:
    return pickle.dumps({"data": np.zeros((ROWS, 3072), np.uint8), "labels": labels}, 2)


def crafted_pickles(folder: Path) -> Iterator[tuple[str, bytes]]:
    mark = str(folder / MARK)
    for protocol in range(6):
        for call in (Call(os.mkdir, mark), Call(eval, f"__import__('os').mkdir({mark!r})")):
            yield f"call at protocol {protocol}", pickle.dumps({"labels": call}, protocol)
    deep = b")" + b"\x85" * 100_000
    yield "deep tuple as key", b"\x80\x02}" + deep + b"Ns."
    yield "deep tuple", field(deep)
    yield "deep tuple, kept", field(b")" + b"q\x01\x85" * 40_000)
    yield "deep list", field(b"]" * 60_000 + b"a" * 59_999)
    yield "deep dict", field(b"}U\x01a" * 40_000 + b"N" + b"s" * 40_000)
    shared = b")q\x00" + b"".join(b"0" * (i > 0) + b"h\x00h\x00\x86q\x00" for i in range(60))
    yield "2^60 tuples as key", b"\x80\x02}" + shared.replace(b"0", b"") + b"Ns."
    yield "2^60 tuples", field(b")q\x00h\x00" + b"\x86q\x00h\x00" * 60)
    yield "huge integer", field(b"\x8b" + struct.pack("<i", 4_000_000) + b"\x7f" * 4_000_000)
    yield "long integer", field(b"\x8a\xff" + b"\x7f" * 255)
    yield "integer as text", field(b"L" + b"9" * 1_000_000 + b"L\n")
    yield "marks", b"\x80\x02" + b"(" * 140_000 + b"t" * 140_000 + b"."
    yield "nested arrays", field(b"cnumpy\nndarray\nq\x01" + b")R" + b"\x85h\x01\x86R" * 20_000)
    yield "wide", field(b"](" + b"K\x01" * 2_000_000 + b"e")
    yield "claims 2 GB", field(b"T" + struct.pack("<i", 2**31 - 1) + b"x")
    yield "claims 2^63", field(b"\x8e" + struct.pack("<Q", 2**63) + b"x")
    yield "negative length", field(b"T" + struct.pack("<i", -5) + b"x")
    text = b"X" + struct.pack("<I", 1_000_000) + b"a" * 1_000_000
    again = b"c_codecs\nencode\nq\x01" + text + b"q\x02U\x06latin1q\x03"
    yield "encoded again and again", field(again + b"h\x01h\x02h\x03\x86R" * 20_000)
    yield "odd encoding", field(b"c_codecs\nencode\n" + text + b"U\x08punycode\x86R")
    yield "persistent id", field(b"Pname\n")
    yield "extension", field(b"\x82\x01")
    yield "new object", field(b"cnumpy\nndarray\n)\x81")
    yield "instance", field(b"(ios\nsystem\n")
    yield "buffer", field(b"\x97")
    yield "state of a name", field(b"c_codecs\nencode\n(N}U\x07__new__K\x01stb")
    yield "memo that is not", field(b"h\x09")
    yield "empty stack", b"\x80\x02\x85\x85."
    yield "no end", b"\x80\x02}"
    yield "nothing", b""
    for labels in ([3.7] * ROWS, ["a"] * ROWS, ["3"] * ROWS, [True] * ROWS, [None] * ROWS):
        yield f"labels {labels[0]!r}", batch_with(labels)
    for labels in ([10**30] * ROWS, [-1] * ROWS, [10] * ROWS, [1], [[1]] * ROWS, 3, b"1" * ROWS):
        yield f"labels {str(labels)[:20]}", batch_with(labels)
    for shape in ((1 << 40, 1), (-1, 3072), (ROWS, 3071), (), ("a",), (10**30, 2)):
        array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + pickle.dumps(shape, 2)[2:-1]
        state = b"cnumpy\ndtype\nU\x02u1\x85R\x89T" + struct.pack("<i", ROWS * 3072)
        yield f"shape {shape}", field(array + state + bytes(ROWS * 3072) + b"tb", b"data")


def random_program(rng: random.Random) -> bytes:
    """Instructions of a pickle in any order."""
    steps = [bytes([i]) for i in b"()]}tale0123.usRbNqhQjKMJU\x85\x86\x87\x88\x89\x93\x94\x8c\x81"]
    steps += [b"cnumpy\ndtype\n", b"cos\nsystem\n", b"U\x04data", b"K\x01", b"h\x00", b"q\x00"]
    return b"\x80\x02" + b"".join(rng.choices(steps, k=rng.randrange(2, 80))) + b"."


def read_batch(content: bytes) -> None:
    """Parse it; what is taken has to be a batch."""
    formats._ROWS = ROWS
    images, labels = parse_python_batch(content, "batch")
    assert images.shape == (ROWS, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels.shape == (ROWS,)
    assert 0 <= labels.min() <= labels.max() <= 9


def pickles(folder: Path, count: int, rng: random.Random) -> Iterator[Case]:
    for name, content in crafted_pickles(folder):
        yield Case("pickle", name, lambda content=content: read_batch(content))
    good = [good_batch(protocol) for protocol in (2, 3, 4)]
    for i in range(count):
        whole = rng.choice(good)
        start = whole.index(bytes(1000))  # the pixels' bytes are all alike
        content = mutated(whole[: start + 9], rng) + whole[start + 9 :]
        if i % 3 == 0:
            content = random_program(rng)
        elif i % 3 == 1:
            content = whole[: start + 30_700] + mutated(whole[start + 30_700 :], rng)
        yield Case("pickle", f"{i}", lambda content=content: read_batch(content), refused=False)


# --- archives ---------------------------------------------------------------------------------


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **more: Any) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    for key, value in more.items():
        setattr(member, key, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def crafted_archives() -> Iterator[tuple[str, bytes]]:
    long, pax = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE
    zeros = bytes(1 << 20)
    yield "name of 3 GB", header("x", 3 << 30, long) + zeros
    yield "name of 300 MB", header("x", 300 << 20, long) + zeros * 300
    for kind in (long, pax, tarfile.GNUTYPE_LONGLINK, tarfile.SOLARIS_XHDTYPE):
        yield f"20,000 headers {kind!r}", header("x", 0, kind) * 20_000
    for text in (
        b"30 GNU.sparse.major=1\n",
        b"9999999999 path=x\n",
        b"0 a=b\n",
        b"-5 a=b\n",
        b"\xff",
    ):
        yield f"extended {text!r}", header("x", len(text), pax) + text.ljust(512, b"\0")
    sparse = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n28 GNU.sparse.realsize=9999\n"
    map_ = header("data_batch_1", 512) + b"99999999999\n".ljust(512, b"\0")
    yield "sparse map", header("x", len(sparse), pax) + sparse.ljust(512, b"\0") + map_
    old = bytearray(header("data_batch_1", 512, tarfile.GNUTYPE_SPARSE))
    old[386:482] = b"7" * 96
    yield "old sparse map", bytes(old)
    yield "extended sparse map", header("data_batch_1", 0, b"S") + b"\1" * (512 * 2000)
    yield "negative size", header("data_batch_1", -512)
    yield "size of 2^60", header("data_batch_1", 1 << 60)
    yield "batch of 10 GB", header("data_batch_1", 10 << 30) + zeros
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"Z"):
        yield f"member of kind {kind!r}", header("data_batch_1", 0, kind, linkname="/etc/passwd")
    yield "traversal", header("../../../data_batch_1", 1) + b"x".ljust(512, b"\0")
    yield "50,000 files", header("x") * 50_000
    yield "bomb", zeros * 600
    yield "noise", random.Random(0).randbytes(10_000)


def archives(folder: Path, count: int, rng: random.Random) -> Iterator[Case]:
    def case(name: str, content: bytes) -> Case:
        path = folder / "cifar-10-python.tar.gz"
        files = CifarFiles("archive", folder, (path,))

        def read() -> None:
            written(path, content)
            read_cifar10(files)

        return Case("archive", name, read)

    for name, content in crafted_archives():
        yield case(name, gzip.compress(content, 1))
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name in ("readme", "data_batch_1", "batches.meta"):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = 700
            tar.addfile(member, io.BytesIO(bytes(700)))
    plain, packed = whole.getvalue(), gzip.compress(whole.getvalue())
    for i in range(count):
        damaged = mutated(packed, rng) if i % 2 else gzip.compress(mutated(plain, rng))
        yield case(f"{i}", damaged)


# --- images -----------------------------------------------------------------------------------


def picture(form: str, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    stream = io.BytesIO()
    colour = (200, 20, 40) if mode == "RGB" else 1
    Image.new(mode, size, colour).save(stream, form)
    return stream.getvalue()


def crafted_images() -> Iterator[tuple[str, bytes]]:
    """Icons of large images, and headers that claim more than 25 megapixels."""
    png = picture("PNG", "L", (15_000, 15_000))
    yield "x.ico", struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(png), 22) + png
    icon = b"ic10" + struct.pack(">I", len(png) + 8) + png
    yield "x.icns", b"icns" + struct.pack(">I", len(icon) + 8) + icon
    yield "large.png", png
    bmp = bytearray(picture("BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield "x.bmp", bytes(bmp)
    gif = bytearray(picture("GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield "x.gif", bytes(gif)
    yield "x.ppm", b"P6 99999 99999 255\n"
    yield "y.ppm", b"P6 " + b"9" * 100_000 + b" 1 255\n"
    yield "x.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    jpeg = bytearray(picture("JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    yield "x.jpg", bytes(jpeg)
    yield "empty.png", b""


def images(folder: Path, count: int, rng: random.Random) -> Iterator[Case]:
    def case(name: str, content: bytes, refused: bool) -> Case:
        def read() -> None:
            try:
                assert read_image(written(folder / name, content), 32).shape == (32, 32, 3)
            except AssertionError:
                raise
            except Exception as error:  # as `read_image_or_reason` names it
                raise UserError(str(error)) from None

        return Case("image", name, read, refused)

    for name, content in crafted_images():
        yield case(name, content, refused=True)
    whole = [picture(form) for form in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")]
    whole += [picture("PNG", "I;16"), picture("TIFF", "L")]
    for i in range(count):
        yield case(f"{i}.png", mutated(rng.choice(whole), rng), refused=False)


# --- weights ----------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
ODD: tuple[Any, ...] = (
    *(None, True, "", "a", "\x1b[2J", -1, 0, 3, 0.5, 2, 10**9, 10**30, 1e308, NAN, INF, -INF),
    *([], {}, [[]], [1] * 1000, [NAN] * 3, [2.0] * 3, [-0.1] * 3, ["a"] * 3, [None] * 3, [0] * 3),
    *(["a", "b\n"], ["<b>"] * 11, ["a" * 10_000], ["x", "x"], {"a": {"b": []}}, [10**30] * 3),
)


def metadata(about: dict[str, Any]) -> bytes:
    """A weights file with this metadata, whose checksum is right."""
    state = ResNetConfig((4,), (1,)).build().state_dict()
    whole = about | {"sha256": _checksum(state, about)}
    return tensors_to_bytes(state, {KEY: json.dumps(whole)})


def use_weights(path: Path) -> None:
    """Load a network and use it; it has to answer with probabilities of its classes."""
    classifier, config = load_classifier(path)
    size = classifier.preprocess.size
    with torch.no_grad():
        answer = classifier(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert answer.shape == (1, config.num_classes) == (1, len(classifier.preprocess.classes))
    assert all(name.isprintable() for name in classifier.preprocess.classes)


def weights(folder: Path, count: int, rng: random.Random) -> Iterator[Case]:
    path, classes = folder / "model.safetensors", tuple("abcdefghij")
    config = ResNetConfig((4,), (1,))
    preprocess = Preprocess(32, (0.5,) * 3, (0.2,) * 3, classes)
    save_weights(path, config.build(), config, preprocess)
    whole = path.read_bytes()
    good = {"model": config_to_dict(config), "preprocess": asdict(preprocess), "version": "1"}

    def case(name: str, content: bytes) -> Case:
        return Case("weights", name, lambda: use_weights(written(path, content)), refused=False)

    for key in (*good["model"], "widths", "depths", "stem_width", "more"):
        for value in ODD:
            about = good | {"model": good["model"] | {key: value}}
            yield case(f"model.{key} = {str(value)[:30]}", metadata(about))
    for key in good["preprocess"]:
        for value in ODD:
            about = good | {"preprocess": good["preprocess"] | {key: value}}
            yield case(f"preprocess.{key} = {str(value)[:30]}", metadata(about))
    for family, settings in (
        ("resnet", {"widths": [4] * 1000, "depths": [1000] * 1000}),
        ("resnet", {"widths": [65_536] * 9, "depths": [60] * 9}),
        ("speednet", {"widths": [65_536] * 16, "depth": 1000}),
        ("speednet", {"widths": [8], "whiten_px": 64}),
        ("davidnet", {"widths": [65_536] * 4}),
        ("branchnet", {"widths": [65_536] * 4, "num_classes": 1_000_000}),
    ):
        yield case(f"large {family}", metadata(good | {"model": {"family": family} | settings}))
    for text in ("[" * 100_000, '{"model":' * 100_000, "null", "3", '"a"', "", "{", "9" * 10_000):
        state = config.build().state_dict()
        yield case(f"metadata {text[:20]}", tensors_to_bytes(state, {KEY: text}))
    yield case("header of 2^63", struct.pack("<Q", 2**63) + b"{}")
    yield case("header of 90 MB", struct.pack("<Q", 90_000_000) + b" " * 90_000_000)
    yield case("deep header", struct.pack("<Q", 200_000) + b"[" * 200_000)
    length = 8 + int.from_bytes(whole[:8], "little")
    for i in range(count):
        yield case(f"{i}", mutated(whole[:length], rng) + whole[length:])


# --- text -------------------------------------------------------------------------------------


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


# --- odd files and options --------------------------------------------------------------------


def odd_files(folder: Path) -> Iterator[Case]:
    """What is no regular file, or far too large, in the place of each kind of file."""
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nothing")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "random").symlink_to("/dev/urandom")
    (folder / "terminal").symlink_to("/dev/ptmx")
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    kinds = ["fifo", "folder", "loop", "dangling", "zero", "random", "terminal", "sparse", "socket"]
    runs = folder / "runs" / "one"
    runs.mkdir(parents=True)
    batches = folder / "batches"
    batches.mkdir()

    def as_file(kind: str, place: Path) -> Path:
        place.unlink(missing_ok=True)
        place.symlink_to(folder / kind)
        return place

    def commands(kind: str) -> Iterator[tuple[str, Callable[[], Any]]]:
        command = run_command
        recipe, data = folder / "r.toml", folder / "data"
        yield "recipe", lambda: command("recipes", str(as_file(kind, recipe)))
        yield "recipe file", lambda: load_recipe(str(as_file(kind, recipe)))
        yield "plan", lambda: command("campaign", str(as_file(kind, recipe)))
        yield "weights", lambda: load_classifier(folder / kind)
        yield "predict", lambda: command("predict", str(folder / kind), str(folder / kind))
        yield "image", lambda: read_image(folder / kind, 32)
        yield "run.json", lambda: command("report", str(as_file(kind, runs / "run.json").parent))
        yield "resume", lambda: command("resume", str(as_file(kind, runs / "run.json").parent))
        yield "diff", lambda: command("runs", "diff", str(folder / kind), str(folder / kind))
        yield "batch", lambda: batch(kind, "data_batch_1", "python")
        yield "archive", lambda: batch(kind, "cifar-10-python.tar.gz", "archive")
        yield "shard", lambda: batch(kind, "train-00000-of-00001.parquet", "parquet")
        yield "data", lambda: command("data", "--data", str(data / kind))
        yield "any file", lambda: open_file(folder / kind, 1000)
        yield "any JSON", lambda: parse_json(read_file(folder / kind))

    def batch(kind: str, name: str, form: str) -> Any:
        return read_cifar10(CifarFiles(form, batches, (as_file(kind, batches / name),)))

    for kind in kinds:
        for name, read in commands(kind):
            yield Case("odd file", f"{kind} as {name}", told(read))


def told(read: Callable[[], Any]) -> Callable[[], Any]:
    """`read`, whose OSError and ValueError are what the command line tells as one line."""

    def run() -> Any:
        try:
            return read()
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from None

    return run


def run_command(*words: str) -> None:
    """A command in this process, without output."""
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    try:
        command_line(words)
    except SystemExit as end:
        said = f"{sys.stdout.getvalue()}{sys.stderr.getvalue()}"
        code = end.code
    if not said.replace("\n", "").isprintable() or code not in (0, 2):
        raise RuntimeError(f"exit code {code}, prints {said!r}")
    if code:
        raise UserError(said)


def options(count: int, rng: random.Random) -> Iterator[Case]:
    """Settings of a recipe, as values and as words of the command line; options of commands."""
    words = [
        "",
        "nan",
        "inf",
        "-1",
        "1e999",
        "9" * 5000,
        "[",
        "[" * 5000,
        "{a=1}",
        "[[]]",
        "\x1b[2J",
    ]
    words += [
        "[nan]",
        "0x",
        "'a'",
        '"',
        "[1, 2",
        "true",
        "a\nb",
        "a.b",
        "1979-05-27",
        "é",
        "-0.0",
        "[{}]",
    ]
    cases = [(name.name, word) for name in fields(Recipe) for word in words]
    for name, word in cases[:count] if count < len(cases) else cases:

        def setting(name: str = name, word: str = word) -> Any:
            return from_dict(dict([parse_setting(f"{name}={word}")]))

        yield Case("setting", f"{name}={word[:20]}", setting, refused=False)
    values = [(name.name, value) for name in fields(Recipe) for value in ODD]
    for name, value in rng.sample(values, min(count, len(values))):

        def given(name: str = name, value: Any = value) -> Any:
            return from_dict({name: value})

        yield Case("setting", f"{name} = {str(value)[:30]}", given, refused=False)
    commands = (["summary", "{}"], ["models", "{}"], ["recipes", "{}"], ["runs", "--where", "{}"])
    commands += (["runs", "--sort", "{}"], ["runs", "diff", "{}", "{}"], ["report", "{}"], ["{}"])
    commands += (["predict", "{}", "{}"], ["summary", "resnet20", "--size", "{}"], ["resume", "{}"])
    commands += (["evaluate", "{}", "--data", "{}"], ["data", "--data", "{}"], ["export", "{}"])
    for command in commands:
        for word in [
            *words,
            "\ud800",
            "-",
            "--",
            "=cmd|x",
            "%s%n",
            "../" * 2000,
            "a" * 100_000,
            "\0",
        ]:
            typed = [part.format(word) for part in command]
            yield Case(
                "command",
                f"{command} with {word[:20]!r}",
                lambda typed=typed: run_command(*typed),
                refused=False,
            )


# --- all of them ------------------------------------------------------------------------------


def judge(case: Case, end: Outcome, folder: Path) -> str:
    """What went wrong; "" where nothing did."""
    if (folder / MARK).exists():
        return "executed"
    if end.code == -signal.SIGALRM:
        return "hung"
    if end.code < 0:
        return f"crashed by signal {-end.code}"
    last = (end.message.strip().splitlines() or [""])[-1]
    if end.code == TRACEBACK and not any(words in last for words in OUT_OF_MEMORY):
        return f"traceback: {last[:300]}"
    return "taken" if end.code == OK and case.refused else ""


def main(share: float = 1.0, seconds: float = 5, seed: int = 0) -> dict[str, Any]:
    """Inputs by kind, how they ended, and what went wrong; `share` of about 8,000 inputs."""
    rng, ends, inputs, wrong = random.Random(seed), Counter[str](), Counter[str](), []
    own = patch.dict(os.environ)
    with TemporaryDirectory() as name, contextlib.chdir(name), own:
        folder = Path(name).resolve()
        os.environ["LEANRES_DATA"] = os.environ["LEANRES_CACHE"] = str(folder / "cache")
        (folder / "odd").mkdir()
        cases = [
            *pickles(folder, round(3000 * share), rng),
            *archives(folder, round(300 * share), rng),
            *images(folder, round(700 * share), rng),
            *some(weights(folder, round(500 * share), rng), share, rng),
            *texts(folder, round(250 * share), rng),
            *jsons(folder, round(300 * share), rng),
            *odd_files(folder / "odd"),
            *some(options(round(1000 * share), rng), share, rng),
        ]
        for case in cases:
            end = fork(case.read, seconds, MEMORY)
            inputs[case.kind] += 1
            ends[{OK: "read", TOLD: "one line"}.get(end.code, "other")] += 1
            if reason := judge(case, end, folder):
                wrong.append(f"{case.kind} {case.name}: {reason}")
    figures = {"inputs": inputs.total(), "by_kind": dict(inputs), "ends": dict(ends)}
    return figures | {"wrong": wrong}


def some(cases: Iterator[Case], share: float, rng: random.Random) -> list[Case]:
    """A share of them, drawn."""
    found = list(cases)
    return found if share >= 1 else rng.sample(found, max(1, round(share * len(found))))


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
