"""Fonts: one that has the letters of a name, for pictures; what no font has is escaped."""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import ImageFont, features

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def drawable(text: str, size: int) -> tuple[str, Font]:
    """The text and a font of `size` px that has all of its letters, of those installed here.

    Where no font has them, and where right-to-left text cannot be laid out, it is the text with
    escapes, as "\\u732b", in Pillow's own font.
    """
    own = ImageFont.load_default(size)
    if text.isascii():
        return text, own
    path = _font_with(frozenset(text))
    if path and (features.check("raqm") or not _runs_left(text)):
        return text, ImageFont.truetype(path, size)
    return text.encode("ascii", "backslashreplace").decode(), own


def _runs_left(text: str) -> bool:
    """Whether a text has letters that are written from right to left, as Arabic and Hebrew."""
    return any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text)


@cache
def _font_with(letters: frozenset[str]) -> str | None:
    """The file of an upright font with these letters, DejaVu Sans first; None if there is none."""
    from matplotlib.font_manager import fontManager, get_font  # takes most of a second to import

    upright = [
        entry
        for entry in fontManager.ttflist
        if entry.style == "normal" and not entry.name.startswith("Last Resort")  # a box per letter
    ]
    upright.sort(key=lambda e: (e.name != "DejaVu Sans", str(e.weight) not in ("400", "normal")))
    codes = set(map(ord, letters))
    for entry in upright:
        try:
            if codes <= get_font(entry.fname).get_charmap().keys():
                return entry.fname
        except (OSError, RuntimeError):  # a font that was deleted, or is damaged
            continue
    return None
