"""Images drawn from a seed, with captions: symbols, shapes, signs, counts and textures, without end.

`draw(seed, index)` is a function of its arguments alone. No Latin letter, no digit and no character that looks like one
is drawn, and only in DejaVu Serif and DejaVu Sans Mono: the generated evaluation set `characters` keeps the others.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.pretrain_mini_clip.captions import COLOURS, COUNTS, DIRECTIONS, POSITIONS, SHAPES, TEXTURES
from tools.pretrain_mini_clip.data import STORED_SIZE

CANVAS = 2 * STORED_SIZE
FONTS = (
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
)
# Chosen by hand; a test holds them to a correlation below 0.8 with every Latin letter and digit in the same font.
SYMBOLS = (
    "ΞΦΨζλξφψϗϙϞϠϡ"
    "ДЖЙЛФЦШЩЪЮЯжйлфцщъыюяђљњЉЊЋѢѣҖҗ"
    "ԴԵԸԹԻԽԾԿՀՁՂՃՄՆՇՉՊՋՌՎՓՔՖիխկծձճնչպջվփֆ"
    "აბგდთოპჟრტუფღყშჩცწჭჯჰ"
    "∂∈∋∏∑√∛∜∞∠∫∬≃≈≑≒≓≔≠≡≤≥⊆⊇⊏⊐⊓⊔⊕⊖⊗⊘⊙⊞⊟⊠⊡⊢⊣"
    "←→↔↕↖↗↘↙↚↝↞↠↩↪↫↬↯↰↱↲↳↴↵↶↷↺↻⇄⇅⇆⇈⇉⇐⇒⇔⇕⇖⇗⇘⇙⇛⇝⇢⇦⇧⇨⇩⇪"
    "#%&*+=<>?@~‡‼‽₹₴"
    "▤▥▦▧▨▩◉◎●◐◑◒◓◔◕◖◗■□▣▲△▶▷▼▽◀◁◆◇◈"
    "☀☹☺☻♀♂♄♅♆♠♡♢♣♤♥♦♪♫♭♮♯╋╬╠╣╦╩╪╫"
)


@dataclass(frozen=True)
class Drawing:
    """One generated image.

    Attributes:
        image: (64, 64, 3) uint8 RGB.
        caption: What it shows, in words.
        name: Its class: the symbol, shape or texture.
    """

    image: np.ndarray
    caption: str
    name: str


def draw(seed: int, index: int) -> Drawing:
    """Draw image number `index` of the stream `seed`."""
    random = np.random.default_rng([seed, index])
    scene = _SCENES[int(random.choice(len(_SCENES), p=_SHARES))]
    image, caption, name = scene(random)
    image = _degrade(image.resize((STORED_SIZE, STORED_SIZE), Image.Resampling.BOX), random)
    return Drawing(np.asarray(image), re.sub(r"\ba (?=[aeiou])", "an ", caption), name)


def names() -> tuple[str, ...]:
    """Every class name that `draw` gives, in a fixed order."""
    return tuple(dict.fromkeys((*(symbol_name(symbol) for symbol in SYMBOLS), *SHAPES, *TEXTURES)))


def symbol_name(symbol: str) -> str:
    """The Unicode name of a character in lower case, without the colour that some names begin with."""
    return re.sub("^(black|white) ", "", unicodedata.name(symbol).lower())


@cache
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib's folder at `size` pixels."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _two_colours(random: np.random.Generator) -> tuple[str, str]:
    """Names of a foreground and a background of different brightness."""
    table = list(COLOURS)
    while True:
        front, back = random.choice(table, 2, replace=False)
        if abs(_brightness(front) - _brightness(back)) > 50:
            return str(front), str(back)


def _brightness(colour: str) -> float:
    """Luma of a named colour, 0 to 255."""
    red, green, blue = COLOURS[colour]
    return 0.3 * red + 0.59 * green + 0.11 * blue


def _shade(colour: str, random: np.random.Generator) -> tuple[int, int, int]:
    """A named colour, varied a little."""
    return tuple(np.clip(np.array(COLOURS[colour]) + random.integers(-18, 19, 3), 0, 255).tolist())


def _background(colour: str, random: np.random.Generator) -> Image.Image:
    """A canvas of one colour, now and then with a gradient."""
    image = Image.new("RGB", (CANVAS, CANVAS), _shade(colour, random))
    if random.random() < 0.3:
        ramp = Image.linear_gradient("L").resize((CANVAS, CANVAS)).rotate(float(random.choice((0, 90, 180, 270))))
        image = Image.composite(image, Image.new("RGB", image.size, _shade(colour, random)), ramp)
    return image


def _symbol(random: np.random.Generator) -> tuple[Image.Image, str, str]:
    """One symbol, rotated, sheared and of any stroke width."""
    symbol = SYMBOLS[int(random.integers(len(SYMBOLS)))]
    plain = random.random() < 0.5
    front, back = random.permutation(("white", "black")).tolist() if plain else _two_colours(random)
    image = _background(back, random)
    mask = _symbol_mask(symbol, int(random.integers(56, 112)), random)
    offset = random.integers(-14, 15, 2).tolist()
    image.paste(_shade(front, random), offset, mask)
    name = symbol_name(symbol)
    caption = name if random.random() < 0.5 else f"a {front} {name} on a {back} background"
    return image, caption, name


def _symbol_mask(symbol: str, size: int, random: np.random.Generator) -> Image.Image:
    """A symbol in the middle of a canvas, as a mask."""
    font = load_font(str(random.choice(FONTS)), size)
    mask = Image.new("L", (CANVAS, CANVAS))
    middle = CANVAS // 2
    stroke = int(random.integers(0, 4))
    ImageDraw.Draw(mask).text((middle, middle), symbol, fill=255, font=font, anchor="mm", stroke_width=stroke)
    angle, shear = math.radians(random.normal(0, 8)), random.normal(0, 0.15)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]])
    shift = middle - matrix @ (middle, middle)
    data = (*matrix[0], shift[0], *matrix[1], shift[1])
    return mask.transform(mask.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def _shape(random: np.random.Generator) -> tuple[Image.Image, str, str]:
    """One shape of a colour, of a size, somewhere."""
    front, back = _two_colours(random)
    shape, turn = str(random.choice(SHAPES)), int(random.integers(4))
    image = _background(back, random)
    words = [front, shape]
    radius = float(random.uniform(30, 50))
    where = ""
    centre = (CANVAS / 2, CANVAS / 2)
    if random.random() < 0.5:
        position = int(random.integers(len(POSITIONS)))
        centre = ((position % 3 + 0.5) * CANVAS / 3, (position // 3 + 0.5) * CANVAS / 3)
        radius, where = float(random.uniform(16, 22)), " " + POSITIONS[position]
    elif random.random() < 0.4:
        small = random.random() < 0.5
        radius = float(random.uniform(14, 22) if small else random.uniform(52, 60))
        words.insert(0, "small" if small else "large")
    _draw_shape(image, shape, centre, radius, _shade(front, random), turn)
    direction = f" pointing {DIRECTIONS[turn]}" if shape == "arrow" else ""
    return image, f"a {' '.join(words)}{direction}{where} on a {back} background", shape


def _sign(random: np.random.Generator) -> tuple[Image.Image, str, str]:
    """A shape with a border in another colour and something on it, before any background."""
    front, back = _two_colours(random)
    inner = str(random.choice([colour for colour in COLOURS if colour not in (front, back)]))
    shape = str(random.choice(("circle", "triangle", "upside down triangle", "square", "diamond", "octagon")))
    content = str(random.choice(("bar", "arrow", "cross", "star", "triangle", "curve", "symbol", "nothing")))
    image, turn = _background(str(random.choice(list(COLOURS))), random), int(random.integers(4))
    centre = tuple((CANVAS / 2 + random.normal(0, 4, 2)).tolist())
    radius = float(random.uniform(42, 60))
    _draw_shape(image, shape, centre, radius, _shade(front, random), 0)
    _draw_shape(image, shape, centre, radius * float(random.uniform(0.7, 0.88)), _shade(back, random), 0)
    caption = f"a {front} and {back} {shape}"
    if content == "symbol":
        symbol = SYMBOLS[int(random.integers(len(SYMBOLS)))]
        image.paste(_shade(inner, random), (0, 0), _symbol_mask(symbol, int(random.integers(34, 58)), random))
        caption += f" with a {inner} {symbol_name(symbol)}"
    elif content != "nothing":
        _draw_shape(image, content, centre, radius * 0.45, _shade(inner, random), turn)
        direction = f" pointing {DIRECTIONS[turn]}" if content == "arrow" else ""
        caption += f" with a {inner} {content}{direction}"
    return image, caption + (" sign" if random.random() < 0.5 else ""), shape


def _count(random: np.random.Generator) -> tuple[Image.Image, str, str]:
    """Some equal shapes beside each other."""
    front, back = _two_colours(random)
    shape = str(random.choice(("circle", "ring", "triangle", "square", "diamond", "star", "cross", "heart", "bar")))
    count = int(random.integers(2, len(COUNTS) + 1))
    image = _background(back, random)
    for cell in random.permutation(9)[:count].tolist():
        centre = ((cell % 3 + 0.5) * CANVAS / 3, (cell // 3 + 0.5) * CANVAS / 3)
        jittered = tuple((np.array(centre) + random.normal(0, 3, 2)).tolist())
        _draw_shape(image, shape, jittered, float(random.uniform(13, 18)), _shade(front, random), 0)
    plural = shape + ("es" if shape == "cross" else "s")
    return image, f"{COUNTS[count - 1]} {front} {plural} on a {back} background", shape


def _texture(random: np.random.Generator) -> tuple[Image.Image, str, str]:
    """A pattern of two colours over the whole image."""
    front, back = _two_colours(random)
    texture = str(random.choice(TEXTURES))
    y, x = np.mgrid[0:CANVAS, 0:CANVAS] / CANVAS
    amount = np.clip(_TEXTURE_FIELDS[texture](x, y, random), 0, 1)[..., None]
    pixels = amount * np.array(_shade(front, random)) + (1 - amount) * np.array(_shade(back, random))
    caption = f"{front} and {back} {texture}" if random.random() < 0.7 else f"a pattern of {texture}"
    return Image.fromarray(pixels.astype(np.uint8)), caption, texture


def _draw_shape(
    image: Image.Image, shape: str, centre: tuple[float, float], radius: float, colour: tuple[int, ...], turn: int
) -> None:
    """Draw a filled shape of `SHAPES` about `centre`; `turn` counts right angles clockwise for arrows and bars."""
    canvas = ImageDraw.Draw(image)
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        canvas.ellipse(box, fill=colour)
    elif shape == "ring":
        canvas.ellipse(box, outline=colour, width=max(3, int(radius * 0.25)))
    elif shape == "half circle":
        canvas.pieslice(box, 90 * turn, 90 * turn + 180, fill=colour)
    elif shape == "curve":
        canvas.arc(box, 90 * turn, 90 * turn + 200, fill=colour, width=max(4, int(radius * 0.3)))
    elif shape in _OUTLINES:
        points = np.array(_OUTLINES[shape]) @ np.linalg.matrix_power(_QUARTER, turn if shape in ("arrow", "bar") else 0)
        canvas.polygon([tuple(point) for point in (points * radius + centre).tolist()], fill=colour)
    else:
        line = [tuple(point) for point in (np.array(_LINES[shape]) * radius + centre).tolist()]
        canvas.line(line, fill=colour, width=max(4, int(radius * 0.22)), joint="curve")


def _degrade(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Now and then a low resolution, a blur or noise."""
    if random.random() < 0.25:
        size = int(random.integers(10, 28))
        image = image.resize((size, size), Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR)
    elif random.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.4, 1.4))))
    if random.random() < 0.3:
        noisy = np.asarray(image) + random.normal(0, random.uniform(3, 20), (STORED_SIZE, STORED_SIZE, 1))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    return image


def _polygon(corners: int, start: float) -> list[tuple[float, float]]:
    """A regular polygon on the unit circle, its first corner at `start` degrees (0 is right, 90 is down)."""
    angles = [math.radians(start + 360 * corner / corners) for corner in range(corners)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _star() -> list[tuple[float, float]]:
    """A star of five points."""
    outer, inner = _polygon(5, -90), _polygon(5, -54)
    return [point for a, (u, v) in zip(outer, inner, strict=True) for point in (a, (0.45 * u, 0.45 * v))]


def _heart() -> list[tuple[float, float]]:
    """A heart, point down."""
    t = np.linspace(0, 2 * np.pi, 40)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return list(zip((x / 17).tolist(), (-y / 17).tolist(), strict=True))


_QUARTER = np.array([[0, 1], [-1, 0]])
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "triangle": _polygon(3, -90),
    "upside down triangle": _polygon(3, 90),
    "square": _polygon(4, 45),
    "diamond": _polygon(4, 0),
    "pentagon": _polygon(5, -90),
    "hexagon": _polygon(6, 0),
    "octagon": _polygon(8, 22.5),
    "star": _star(),
    "heart": _heart(),
    "bar": [(-1, -0.25), (1, -0.25), (1, 0.25), (-1, 0.25)],
    "arrow": [(-1, -0.22), (0.1, -0.22), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.22), (-1, 0.22)],
    "cross": [
        *[(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)],
        *[(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
    ],
}
_LINES: dict[str, list[tuple[float, float]]] = {
    "zigzag": [(-1, 0.5), (-0.5, -0.5), (0, 0.5), (0.5, -0.5), (1, 0.5)],
    "spiral": [(t / 18 * math.cos(t), t / 18 * math.sin(t)) for t in np.linspace(0, 18, 60).tolist()],
}

Field = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def _wave(position: np.ndarray, random: np.random.Generator, hard: bool = True) -> np.ndarray:
    """A periodic function of `position` between 0 and 1 with 3 to 9 periods."""
    value = np.sin(2 * np.pi * (position * random.uniform(3, 9) + random.random()))
    return (value > 0).astype(float) if hard else 0.5 + 0.5 * value


def _smooth_noise(x: np.ndarray, random: np.random.Generator, size: int) -> np.ndarray:
    """Random values on a coarse grid, enlarged."""
    coarse = Image.fromarray((random.random((size, size)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize(x.shape[::-1], Image.Resampling.BICUBIC)) / 255


def _cells(x: np.ndarray, y: np.ndarray, random: np.random.Generator, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in -0.5 to 0.5 within the cells of a grid whose odd rows are shifted by `offset` cells."""
    count = random.uniform(4, 9)
    row = np.floor(y * count)
    return (x * count + offset * (row % 2)) % 1 - 0.5, (y * count) % 1 - 0.5


def _dots(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    u, v = _cells(x, y, random, float(random.choice((0, 0.5))))
    return (np.hypot(u, v) < random.uniform(0.2, 0.4)).astype(float)


def _bricks(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    u, v = _cells(x * 0.6, y, random, 0.5)
    return ((np.abs(u) < 0.45) & (np.abs(v) < 0.4)).astype(float)


def _scales(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    u, v = _cells(x, y, random, 0.5)
    return np.clip(1.6 * np.hypot(u, v - 0.5), 0, 1)


def _grid(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    u, v = _cells(x, y, random, 0)
    width = random.uniform(0.05, 0.15)
    return ((np.abs(u) < width) | (np.abs(v) < width)).astype(float)


def _gradient(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    angle = random.uniform(0, 2 * np.pi)
    return 0.5 + 0.7 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))


_TEXTURE_FIELDS: dict[str, Field] = {
    "stripes": lambda x, y, random: _wave(y, random),
    "vertical stripes": lambda x, y, random: _wave(x, random),
    "diagonal stripes": lambda x, y, random: _wave((x + random.choice((-1, 1)) * y) / 1.4, random),
    "checkerboard": lambda x, y, random: np.abs(_wave(x, random) - _wave(y, random)),
    "dots": _dots,
    "grid": _grid,
    "waves": lambda x, y, random: _wave(y + 0.05 * np.sin(2 * np.pi * x * random.uniform(1, 4)), random, hard=False),
    "noise": lambda x, y, random: random.random(x.shape),
    "clouds": lambda x, y, random: _smooth_noise(x, random, int(random.integers(4, 9))),
    "gradient": _gradient,
    "rings": lambda x, y, random: _wave(np.hypot(x - random.random(), y - random.random()), random),
    "bricks": _bricks,
    "scales": _scales,
    "zigzag lines": lambda x, y, random: _wave(y + 0.5 * np.abs((x * random.uniform(3, 6)) % 1 - 0.5), random),
}
_SCENES = (_symbol, _shape, _sign, _count, _texture)
_SHARES = (0.5, 0.15, 0.15, 0.05, 0.15)
