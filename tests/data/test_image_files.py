"""Image files of any mode and size become RGB squares; oversized ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from leanres.data.image_files import decode_or_reason, image_files, natural_key, read_image


def noise(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A random RGB picture of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_natural_order_is_total_and_knows_mixed_names():
    names = ["b", "10", "9", "a10b", "a9c", "a", "A2", "²", "a09"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "A2", "a09", "a9c", "a10b", "b", "²"]


def test_the_images_of_one_folder_are_listed_and_read_in_natural_order(tmp_path):
    for i in range(10):
        noise(i).save(tmp_path / f"{i}.png")
    (tmp_path / "10.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    files = image_files(tmp_path)
    assert [path.name for path in files] == [f"{i}.png" for i in range(11)]
    *images, reason = decode_or_reason(files, 32)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image.pixels, np.asarray(noise(i)))
    assert isinstance(reason, str)
    assert reason.startswith("no image: give PNG")


@pytest.mark.parametrize(
    "size", [(5001, 5000), (10_000, 10_000), (20_000, 20_000), (30_000_000, 1)]
)
def test_more_than_25_megapixels_are_refused_by_the_header_alone(tmp_path, size, header_only_png):
    header_only_png(tmp_path / "huge.png", *size)  # decoding it would fail with another message
    with pytest.raises(ValueError, match="megapixels"):
        read_image(tmp_path / "huge.png", 32)


def test_exactly_25_megapixels_are_decoded(tmp_path):
    Image.new("L", (25_000_000 // 2, 2), 90).save(tmp_path / "long.png")
    assert (read_image(tmp_path / "long.png", 8) == 90).all()


WHITE, GREY = [255, 255, 255], [128, 128, 128]


@pytest.mark.parametrize(
    ("mode", "colour", "name", "expected"),
    [
        ("1", 1, "x.png", WHITE),
        ("L", 128, "x.png", GREY),
        ("L", 128, "x.JPEG", GREY),
        ("LA", (0, 0), "x.png", WHITE),
        ("RGBA", (255, 0, 0, 0), "x.png", WHITE),
        ("RGBA", (0, 0, 0, 127), "x.webp", GREY),
        ("RGB", (10, 20, 30), "x.bmp", [10, 20, 30]),
        ("CMYK", (0, 0, 0, 127), "x.tiff", GREY),
        ("I;16", 128 * 257, "x.png", GREY),
        ("I;16", 65535, "x.tif", WHITE),
        ("I", 128 * 257, "x.tif", GREY),
        ("F", 0.5, "x.tif", GREY),
        ("F", 128.0, "x.tif", GREY),
        ("P", 0, "x.gif", [0, 0, 0]),
        ("YCbCr", (128, 128, 128), "x.tif", GREY),
    ],
)
def test_any_mode_becomes_rgb_over_white(tmp_path, mode, colour, name, expected):
    Image.new(mode, (40, 40), colour).save(tmp_path / name)
    found = read_image(tmp_path / name, 32)
    assert found.shape == (32, 32, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_transparent_palette_colour_is_white(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.save(tmp_path / "x.png", transparency=1)
    assert (read_image(tmp_path / "x.png", 32) == 255).all()


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "x.gif", 32) == [255, 0, 0]).all()


def test_the_exif_orientation_is_applied(tmp_path):
    image = noise(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown 90 degrees clockwise
    image.save(tmp_path / "x.png", exif=exif)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", 32), np.asarray(upright))


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (61, 60), (400, 3), (7, 20)])
def test_the_centre_square_is_kept_and_nothing_is_distorted(tmp_path, size):
    noise(1, size).save(tmp_path / "x.png")
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = noise(1, size).crop((left, top, left + side, top + side))
    expected = square.resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", 32), np.asarray(expected))


def test_downsizing_is_antialiased(tmp_path):
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255  # finer than the result can show: it must come out grey
    Image.fromarray(stripes).save(tmp_path / "x.png")
    inner = read_image(tmp_path / "x.png", 32)[:, 4:-4]
    assert np.abs(inner.astype(int) - 128).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_any_mode_becomes_grey_or_rgba_as_pillow_converts_it(tmp_path, mode):
    name = "x.tif" if mode == "CMYK" else "x.png"
    grey = mode in ("1", "I;16")
    image = noise(1).convert("L" if grey else "RGB").convert("I" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray((257 * np.asarray(image)).astype(np.uint16))
    if mode in ("LA", "RGBA"):
        image.putalpha(noise(2).getchannel("R"))
    image.save(tmp_path / name)
    plain = noise(1).convert("L") if mode == "I;16" else image
    rgba = read_image(tmp_path / name, 32, channels=4)
    np.testing.assert_array_equal(rgba, np.asarray(plain.convert("RGBA")))
    seen = Image.alpha_composite(Image.new("RGBA", (32, 32), "white"), plain.convert("RGBA"))
    found = read_image(tmp_path / name, 32, channels=1)
    expected = seen if mode in ("LA", "RGBA") else plain
    np.testing.assert_array_equal(found[..., 0], np.asarray(expected.convert("L")))
