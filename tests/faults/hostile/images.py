"""Images that unpack to far more than their file, and damaged ones."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from hostile.cases import Case, mutated, written
from leanres.data.image_files import read_image
from leanres.errors import UserError


def picture(form: str, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    stream = io.BytesIO()
    colour = (200, 20, 40) if mode == "RGB" else 1
    Image.new(mode, size, colour).save(stream, form)
    return stream.getvalue()


def crafted_images() -> Iterator[tuple[str, bytes]]:
    """Icons of large images, and headers that claim more than 25 megapixels."""
    png = picture("PNG", "1", (15_000, 15_000))
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
            except Exception as error:  # as `decode_or_reason` names it
                raise UserError(str(error)) from None

        return Case("image", name, read, refused)

    for name, content in crafted_images():
        yield case(name, content, refused=True)
    whole = [picture(form) for form in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")]
    whole += [picture("PNG", "I;16"), picture("TIFF", "L")]
    for i in range(count):
        yield case(f"{i}.png", mutated(rng.choice(whole), rng), refused=False)
