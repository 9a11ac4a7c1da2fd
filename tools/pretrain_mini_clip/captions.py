"""The words of pre-training: prompts for class names, and the vocabulary of generated images."""

from __future__ import annotations

TEMPLATES = (
    "{}",
    "a photo of a {}",
    "a photo of the {}",
    "a blurry photo of a {}",
    "a close-up photo of a {}",
    "a small photo of a {}",
    "a picture of a {}",
    "an image of {}",
    "a photo of a {}, a type of thing",
    "this is a {}",
)
DRAWING_TEMPLATES = ("{}", "a drawing of {}", "an emoji of {}", "a picture of {}", "an icon of {}", "this is {}")

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (15, 15, 15),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "red": (210, 30, 35),
    "orange": (240, 140, 20),
    "yellow": (245, 220, 40),
    "green": (40, 150, 60),
    "blue": (35, 80, 200),
    "purple": (125, 50, 160),
    "pink": (245, 140, 180),
    "brown": (120, 75, 35),
    "turquoise": (60, 200, 195),
}
SHAPES = (
    "circle",
    "ring",
    "triangle",
    "upside down triangle",
    "square",
    "diamond",
    "pentagon",
    "hexagon",
    "octagon",
    "star",
    "cross",
    "arrow",
    "bar",
    "half circle",
    "curve",
    "heart",
    "zigzag",
    "spiral",
)
DIRECTIONS = ("right", "down", "left", "up")
COUNTS = ("one", "two", "three", "four", "five", "six")
POSITIONS = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the middle",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
TEXTURES = (
    "stripes",
    "vertical stripes",
    "diagonal stripes",
    "checkerboard",
    "dots",
    "grid",
    "waves",
    "noise",
    "clouds",
    "gradient",
    "rings",
    "bricks",
    "scales",
    "zigzag lines",
)
SCRIPTS = ("greek", "cyrillic", "armenian", "georgian", "arabic", "hebrew")
OTHER_PHRASES = (
    "{} and {} on a {} background",
    "a letter of the {} alphabet",
    "a {} sign with a {} {} on it",
    "a {} {} on a {} {}",
    "a mathematical symbol",
    "a white symbol on black, a black symbol on white",
    "a handwritten letter, printed letter, italic, bold, large and small",
    "a row of {} {} shapes, {} {} pattern, a texture of {} and {} {}",
    "a {} with a {} border",
    "a pattern of {}",
)
