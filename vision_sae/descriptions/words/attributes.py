"""Attributes and parts of things, from which phrases are composed.

The lists are English and short on purpose: common words in descriptions of pictures.
"""

from __future__ import annotations

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey",
    "golden", "silver", "beige", "turquoise", "colourful", "dark", "bright", "pale",
)  # fmt: skip
TEXTURES = (
    "striped", "dotted", "checkered", "spotted", "patterned", "plain", "smooth", "rough", "shiny",
    "furry", "hairy", "fluffy", "feathered", "scaly", "wrinkled", "woven", "cracked", "grainy",
    "blurred", "transparent", "glowing",
)  # fmt: skip
MATERIALS = (
    "wooden", "metal", "glass", "stone", "brick", "plastic", "paper", "leather", "cloth", "knitted",
    "rubber", "ceramic", "concrete", "sandy", "grassy", "icy", "snowy", "wet",
)  # fmt: skip
SHAPES = (
    "round", "square", "triangular", "rectangular", "oval", "star-shaped", "heart-shaped", "curved",
    "straight", "pointed", "flat", "long", "thin", "thick", "hollow", "spiral", "branching",
)  # fmt: skip
SIZES = ("small", "large", "tall", "tiny")
PARTS = (
    "head", "face", "eye", "ear", "nose", "mouth", "teeth", "hair", "neck", "body", "back", "arm",
    "hand", "finger", "leg", "foot", "paw", "tail", "wing", "beak", "horn", "fur", "petal", "leaf",
    "stem", "branch", "trunk", "wheel", "window", "door", "roof", "wall", "handle", "lid", "screen",
    "edge", "corner", "tip", "top", "bottom", "side", "middle", "outline", "surface", "shadow",
    "reflection", "background",
)  # fmt: skip

ATTRIBUTES = COLOURS + TEXTURES + MATERIALS + SHAPES + SIZES
"""Words that stand before a noun."""
