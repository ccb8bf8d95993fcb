"""Scenes of a few coloured shapes: random drawing, the describing sentence, and the image."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SIZES = ("small", "large")
COUNTS = ("one", "two", "three")
PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
SIDE = 64
GRID = 3
CELL = SIDE / GRID

_RGB = ((220, 40, 40), (40, 160, 60), (40, 80, 220), (240, 215, 50), (140, 50, 170), (245, 130, 30))
_TINT = 12
_RADII = ((3.6, 4.4), (6.3, 7.4))
# Corners of the shapes that have some, at unit radius: of about the circle's area, the star's inner corners at 45%.
_CORNERS = {
    1: (np.full(4, 1.25), np.arange(4) * math.pi / 2 + math.pi / 4),
    2: (np.full(3, 1.35), np.arange(3) * 2 * math.pi / 3 - math.pi / 2),
    3: (np.tile([1.35, 0.6], 5), np.arange(10) * math.pi / 5 - math.pi / 2),
}
_REACH = (1.0, 1.25, 1.35, 1.35)
_EDGE = 0.6  # how far OpenCV draws over a shape's outline, in pixels
_LARGEST_TURN = math.radians(12)
_SHIFT = 4  # OpenCV takes coordinates in sixteenths of a pixel


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One shape: indices into SHAPES, COLOURS and SIZES, its grid cell, and its geometry.

    Centre and radius are in pixels, the turn is in radians.
    """

    shape: int
    colour: int
    size: int
    row: int
    column: int
    x: float
    y: float
    radius: float
    turn: float
    rgb: tuple[int, int, int]

    def __str__(self) -> str:
        return f"a {SIZES[self.size]} {COLOURS[self.colour]} {SHAPES[self.shape]}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """Things in their order: by column from the left, within a column from the top."""

    things: tuple[SceneObject, ...]
    background: tuple[int, int, int]

    def sentence(self) -> str:
        """The description of the scene.

        One thing and its place, or several joined by the relation of each to the next, "left of" or else "above".
        """
        first = self.things[0]
        if len(self.things) == 1:
            return f"{first} at the {PLACES[first.row][first.column]}"
        words = str(first)
        for left, right in zip(self.things, self.things[1:], strict=False):
            words += f" {'left of' if left.column < right.column else 'above'} {right}"
        return words

    def positions(self) -> np.ndarray:
        """Centres float32[S 2] as shares of the image's width and height."""
        return np.array([((thing.x + 0.5) / SIDE, (thing.y + 0.5) / SIDE) for thing in self.things], np.float32)

    def draw(self) -> np.ndarray:
        """The image, uint8[64 64 3]."""
        import cv2

        picture = np.empty((SIDE, SIDE, 3), np.uint8)
        picture[:] = self.background
        for thing in self.things:
            if thing.shape == 0:
                centre = (round(thing.x * 16), round(thing.y * 16))
                cv2.circle(picture, centre, round(thing.radius * 16), thing.rgb, cv2.FILLED, cv2.LINE_AA, _SHIFT)
            else:
                lengths, angles = _CORNERS[thing.shape]
                angles = angles + thing.turn
                x = thing.x + thing.radius * lengths * np.cos(angles)
                y = thing.y + thing.radius * lengths * np.sin(angles)
                points = np.rint(np.stack([x, y], 1) * 16).astype(np.int32)
                cv2.fillPoly(picture, [points], thing.rgb, cv2.LINE_AA, _SHIFT)
        return picture


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draws one to three objects in distinct cells, with independently drawn attributes."""
    chances = iter(rng.random(5 + 11 * len(COUNTS)).tolist())  # all at once: one call is dear, a number is not
    background = _tinted((205 + _choose(chances, 36),) * 3, chances)
    free = list(range(GRID * GRID))  # numbered down the columns
    cells = sorted(free.pop(_choose(chances, len(free))) for _ in range(1 + _choose(chances, len(COUNTS))))
    things = []
    for cell in cells:
        shape, colour, size = (_choose(chances, len(classes)) for classes in (SHAPES, COLOURS, SIZES))
        smallest, largest = _RADII[size]
        radius = smallest + next(chances) * (largest - smallest)
        room = CELL - 2 * (radius * _REACH[shape] + _EDGE)  # the centre keeps the shape inside its cell
        column, row = divmod(cell, GRID)
        x = (column + 0.5) * CELL + (next(chances) - 0.5) * room - 0.5
        y = (row + 0.5) * CELL + (next(chances) - 0.5) * room - 0.5
        turn = (2 * next(chances) - 1) * _LARGEST_TURN
        things.append(SceneObject(shape, colour, size, row, column, x, y, radius, turn, _tinted(_RGB[colour], chances)))
    return Scene(tuple(things), background)


def _choose(chances: Iterator[float], count: int) -> int:
    return int(next(chances) * count)


def _tinted(rgb: tuple[int, int, int], chances: Iterator[float]) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + _choose(chances, 2 * _TINT + 1) - _TINT)) for value in rgb)
    return red, green, blue
