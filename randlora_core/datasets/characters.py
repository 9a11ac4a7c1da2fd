"""Distorted characters in the fonts that matplotlib ships: a 62-class data set that the repository generates.

Every image follows from (split, class, number) alone. It shows one character near its baseline, so that size tells
"o" from "O", under rotation, shear, scaling, translation and a smooth warp, in random colours over a shaded background
with a stroke behind every second one, blurred and noisy. Half of the test images are in fonts that no training image
shows.
"""

import hashlib
import math
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features

from randlora_core.streams import Stream

from .arrays import kept_array
from .images import ImageSource
from .stored import Identity

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The 62 classes in label order."""

TRAIN_FONTS = (
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-BoldOblique.ttf",
)
"""Fonts of the training images and of half of the test images."""

TEST_ONLY_FONTS = ("STIXGeneralBolIta.ttf", "cmtt10.ttf", "cmb10.ttf", "DejaVuSans-Oblique.ttf")
"""Fonts of the other half of the test images; no training image shows them."""

FONTS = TRAIN_FONTS + TEST_ONLY_FONTS
"""All font files, as named in matplotlib's font folder."""

IMAGES_PER_CLASS = {"train": 40, "test": 8}
"""Images of each class; validation takes its part of "train"."""

IMAGE_SIZE = 56
"""Width and height in pixels."""

TEMPLATES = ("a photo of the {}.",)
"""Prompts for the class names."""

VERSION = 1
"""Number of the recipe, part of the fingerprint: raise it with any change of the images."""

_CANVAS = 2 * IMAGE_SIZE
_BASELINE = 0.68
_GRID = 3


def class_names() -> tuple[str, ...]:
    """Returns the names of the 62 classes, which tell capital from lower-case letters without relying on case."""
    return tuple(_class_name(character) for character in CHARACTERS)


def _class_name(character: str) -> str:
    if character.isdigit():
        return f"digit {character}"
    return f"capital letter {character}" if character.isupper() else f"lower-case letter {character}"


class Characters:
    """The data set: it needs no files but matplotlib's fonts.

    Raises:
        ValueError: If matplotlib's font folder lacks one of `FONTS`.
    """

    names = class_names()
    templates = TEMPLATES

    def __init__(self) -> None:
        self.files = {"fonts": tuple(_font_folder() / font for font in FONTS)}
        renderer = (features.version("pil"), features.version("freetype2"))
        self.recipe = repr(("characters", VERSION, IMAGES_PER_CLASS, IMAGE_SIZE, CHARACTERS, renderer))

    def classes(self) -> tuple[str, ...]:
        """Returns the names of the 62 classes."""
        return self.names

    def open(self, identity: Identity) -> dict[str, ImageSource]:
        """Returns "train" and "test", of which nothing is drawn yet."""
        return {split: CharacterSource(split, identity.content) for split in IMAGES_PER_CLASS}


class CharacterSource:
    """The images of one split, drawn when first asked for and kept in the user's cache folder for later processes.

    Args:
        split: "train" or "test".
        content: Hash of all that decides the images.
    """

    def __init__(self, split: str, content: str) -> None:
        self.split = split
        self.per_class = IMAGES_PER_CLASS[split]
        self.labels = np.repeat(np.arange(len(CHARACTERS)), self.per_class)
        self._content = content
        self._pixels: np.ndarray | None = None

    def image(self, index: int) -> Image.Image:
        """Returns image `index` in RGB, 56 x 56 pixels."""
        if self._pixels is None:
            self._pixels = self._kept()
        return Image.fromarray(self._pixels[index])

    def where(self, index: int) -> str:
        """Says which image of the recipe this is."""
        return f"generated image {index} of class {CHARACTERS[self.labels[index]]!r}"

    def font(self, index: int) -> str:
        """Returns the font file of image `index`: in "test" every second image has one of `TEST_ONLY_FONTS`."""
        label, number = divmod(index, self.per_class)
        stream = Stream("character font", self.split, label, number)
        return stream.choice(TEST_ONLY_FONTS if self.split == "test" and number % 2 else TRAIN_FONTS)

    def _kept(self) -> np.ndarray:
        """All images as (images, height, width, 3) bytes: from the cache, where nothing that decides them changed."""
        code = hashlib.sha256(Path(__file__).read_bytes() + np.__version__.encode() + self._content.encode())
        shape = (len(self.labels), IMAGE_SIZE, IMAGE_SIZE, 3)
        file = kept_array(f"characters-{self.split}-{code.hexdigest()[:32]}", shape, self._drawn)
        # A cache that cannot be written costs seconds, not the run.
        return (
            np.stack([self._drawn(index) for index in range(len(self.labels))])
            if file is None
            else np.load(file, mmap_mode="r")
        )

    def _drawn(self, index: int) -> np.ndarray:
        return np.asarray(self._draw(index))

    def _draw(self, index: int) -> Image.Image:
        label, number = divmod(index, self.per_class)
        stream = Stream("character image", self.split, label, number)
        size = round(IMAGE_SIZE * stream.uniform(0.70, 0.86))
        glyph = _glyph(CHARACTERS[label], str(_font_folder() / self.font(index)), size)
        return _photograph(_distorted(glyph, stream), stream)


@cache
def _font_folder() -> Path:
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    missing = [font for font in FONTS if not (folder / font).is_file()]
    if missing:
        raise ValueError(f"data set 'characters' needs the fonts that matplotlib ships; {folder} lacks {missing}")
    return folder


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _glyph(character: str, path: str, size: int) -> Image.Image:
    """Draws the character's mask with its baseline at a fixed height in the middle of a wide canvas."""
    mask = Image.new("L", (_CANVAS, _CANVAS))
    anchor = (_CANVAS // 2, IMAGE_SIZE // 2 + round(_BASELINE * IMAGE_SIZE))
    ImageDraw.Draw(mask).text(anchor, character, fill=255, font=_font(path, size), anchor="ms")
    return mask


def _distorted(mask: Image.Image, stream: Stream) -> Image.Image:
    """Warps the mask: an affine map plus shifted points of a coarse grid, interpolated between them."""
    angle, shear = math.radians(stream.uniform(-15, 15)), stream.uniform(-0.2, 0.2)
    widen, heighten = stream.uniform(0.9, 1.12), stream.uniform(0.9, 1.12)
    shift = (stream.uniform(-5, 5), stream.uniform(-3, 3))
    cosine, sine = math.cos(angle), math.sin(angle)
    half = IMAGE_SIZE / 2

    def origin(column: int, row: int) -> tuple[float, float]:
        across, down = column * IMAGE_SIZE / _GRID - half, row * IMAGE_SIZE / _GRID - half
        across, down = across + shear * down, down
        across, down = cosine * across - sine * down, sine * across + cosine * down
        return (
            across * widen + _CANVAS / 2 + shift[0] + stream.uniform(-2.5, 2.5),
            down * heighten + _CANVAS / 2 + shift[1] + stream.uniform(-2.5, 2.5),
        )

    points = [[origin(column, row) for column in range(_GRID + 1)] for row in range(_GRID + 1)]
    edges = [round(step * IMAGE_SIZE / _GRID) for step in range(_GRID + 1)]
    mesh = [
        (
            (edges[column], edges[row], edges[column + 1], edges[row + 1]),
            (*points[row][column], *points[row + 1][column], *points[row + 1][column + 1], *points[row][column + 1]),
        )
        for row in range(_GRID)
        for column in range(_GRID)
    ]
    return mask.transform((IMAGE_SIZE, IMAGE_SIZE), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _photograph(mask: Image.Image, stream: Stream) -> Image.Image:
    """Colours the mask over a cluttered background, then blurs it and adds noise."""
    ink, paper = _colours(stream)
    picture = _background(paper, stream)
    if stream.integer(2):
        _stroke(picture, _near(paper, stream, 40), stream, width=1 + stream.integer(4))
    picture.paste(ink, (0, 0), mask)
    picture = picture.filter(ImageFilter.GaussianBlur(stream.uniform(0.0, 0.8)))
    strength = stream.uniform(0.0, 0.06)
    bits = stream.array(IMAGE_SIZE * IMAGE_SIZE * 3)
    noise = ((bits & 255).astype(np.int64) + ((bits >> 8) & 255).astype(np.int64) - 255).reshape(IMAGE_SIZE, -1, 3)
    pixels = np.asarray(picture, dtype=np.float64) + strength * noise
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _luminance(colour: tuple[int, ...]) -> int:
    return (299 * colour[0] + 587 * colour[1] + 114 * colour[2]) // 1000


def _colours(stream: Stream) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Draws two colours whose luminances differ by at least 110 of 255."""
    while True:
        ink, paper = (tuple(stream.integer(256) for _ in range(3)) for _ in range(2))
        if abs(_luminance(ink) - _luminance(paper)) >= 110:
            return ink, paper


def _near(colour: tuple[int, ...], stream: Stream, reach: int) -> tuple[int, ...]:
    return tuple(min(255, max(0, value + stream.integer(2 * reach + 1) - reach)) for value in colour)


def _background(paper: tuple[int, ...], stream: Stream) -> Image.Image:
    """Shades the paper from one side to the other."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    shade = Image.linear_gradient("L").resize(size).rotate(90 * stream.integer(4))
    return Image.composite(Image.new("RGB", size, paper), Image.new("RGB", size, _near(paper, stream, 40)), shade)


def _stroke(picture: Image.Image, colour: tuple[int, ...], stream: Stream, width: int) -> None:
    ends = [(stream.integer(IMAGE_SIZE), stream.integer(IMAGE_SIZE)) for _ in range(2)]
    ImageDraw.Draw(picture).line(ends, fill=colour, width=width)
