"""Distorted characters in the fonts that matplotlib ships: a 62-class data set that the repository generates."""

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
