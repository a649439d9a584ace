"""What drawn training pictures are put together from: colours, words, fonts, styles, and a canvas.

Shapes are drawn at once, twice or three times the size and reduced (`Canvas`). Text is put together from glyphs that
are rendered once for each face and size (`Font`).
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from l2c.errors import ConfigError

T = TypeVar("T")
Array = np.ndarray[Any, np.dtype[Any]]
Rng = np.random.Generator
Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Points = Sequence[tuple[float, float]]

SALT = 0xD7A  # of generators made here, beside the caller's seed
BLACK, WHITE = (0, 0, 0), (255, 255, 255)

WORDS = {
    "plain": "the of and to in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out so up said what its "
    "about than into them can only other time new some could these two may first then do any like my now over such our "
    "man me even most made after also well before through years where much your way down should because long people "
    "state world still school between never last house system number public water small large order night picture "
    "quality install settings language important window different government example account password",
    "accents": "über für größe können schöne straße mädchen français déjà été où garçon naïve cœur élève même après "
    "niño mañana corazón acción también está fácil åben ærlig første født självklart größte źródło łódź český příliš "
    "žluťoučký kůň são não tradução günaydın çok değil või täna även ligger bjørn smörgås weiß l’été “quoted”",
    "greek": "και το της είναι για με που από στην λόγος κόσμος ημέρα Αθήνα θάλασσα φως αλφα βήτα γάμμα δέλτα νερό",
    "cyrillic": "и в не на что это как его она мир день время человек жизнь слово город Москва вода дом книга съезд",
}
_ALPHABETS = ("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "{}()[]<>/\\|@#$%&*+-=_~^:;?!")
_OTHER_DIGITS = [str.maketrans("0123456789", "".join(str((k + 3 * i) % 10) for i in range(10))) for k in range(10)]
# Face: file in matplotlib's folder of fonts (Pillow's own where empty), has more than ASCII, monospaced.
FACES = [("DejaVuSans", 1, 0), ("DejaVuSans", 1, 0), ("DejaVuSans-Bold", 1, 0), ("DejaVuSans-Oblique", 1, 0)]
FACES += [("DejaVuSerif", 1, 0), ("DejaVuSerif-Bold", 1, 0), ("DejaVuSerif-Italic", 1, 0), ("STIXGeneral", 1, 0)]
FACES += [("STIXGeneralBol", 1, 0), ("STIXGeneralItalic", 1, 0), ("cmr10", 0, 0), ("cmss10", 0, 0), ("cmb10", 0, 0)]
FACES += [("", 0, 0), ("", 0, 0), ("DejaVuSansMono", 1, 1), ("DejaVuSansMono-Bold", 1, 1), ("cmtt10", 0, 1)]
SCREEN_FACES = [("DejaVuSans", 1, 0), ("", 0, 0), ("cmss10", 0, 0), ("DejaVuSans-Bold", 1, 0)]


def pick(rng: Rng, items: Sequence[T]) -> T:
    """One of them, all equally often."""
    return items[int(rng.integers(len(items)))]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """From `a` (0) to `b` (1)."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b))
    return red, green, blue


def luma(colour: Colour) -> float:
    """BT.709 weights, 0..255."""
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]


def ink_on(ground: Colour) -> Colour:
    """Black or white, whichever is read more easily."""
    return BLACK if luma(ground) > 127 else WHITE


def random_colour(rng: Rng) -> Colour:
    """A corner of RGB, a grey, or any hue, more often a strong than a dull one."""
    kind = rng.random()
    if kind < 0.15:
        red, green, blue = (255 * int(v) for v in rng.integers(0, 2, 3))
    elif kind < 0.35:
        red = green = blue = int(rng.integers(0, 256))
    else:
        hue, saturation, value = rng.random(3)
        red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(hue, saturation**0.5, 0.25 + 0.75 * value**0.5))
    return red, green, blue


class Font(dict[str, tuple[Array, int]]):
    """Glyphs of one face at one size, rendered when first asked for, with their advances in pixels.

    A glyph is a mask, uint8 [w, height] in one row, that begins `margin` pixels left of its origin. `pillow` is the
    font that they are rendered with.
    """

    def __init__(self, face: str, size: int, smooth: bool) -> None:
        if face:
            try:
                import matplotlib
            except ImportError as error:
                raise ConfigError(f"drawn pictures take their fonts from the `matplotlib` package: {error}") from error
            path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
            self.pillow: Any = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
        else:
            self.pillow = ImageFont.load_default(size)
        self.margin, self.height, self._mode = size // 2, sum(self.pillow.getmetrics()), "L" if smooth else "1"

    def __missing__(self, char: str) -> tuple[Array, int]:
        advance = round(self.pillow.getlength(char))
        image = Image.new("L", (advance + 2 * self.margin, self.height))
        pen = ImageDraw.Draw(image)
        pen.fontmode = self._mode
        pen.text((self.margin, 0), char, 255, self.pillow)
        self[char] = np.asarray(image).T.ravel(), advance
        return self[char]

    def length(self, text: str) -> int:
        """Advance of a text in pixels."""
        return sum([self[char][1] for char in text])

    def mask(self, text: str, length: int) -> Array:
        """Coverage of the first `length` pixels of a text, uint8 [height, length + 2 margin]."""
        line, start = np.zeros((length + 2 * self.margin) * self.height, np.uint8), 0
        for char in text:
            glyph, advance = self[char]
            part = line[start : start + glyph.size]
            if part.size < glyph.size:
                break
            np.maximum(part, glyph, out=part)  # glyphs may lean over their neighbours
            start += advance * self.height
        return line.reshape(-1, self.height).T


kept_font = lru_cache(maxsize=640)(Font)


def font_of(face: str, size: float, smooth: bool) -> Font:
    """A font of about a size, 6..72 pixels: so few that most pictures find their glyphs rendered."""
    size = min(max(round(size), 6), 72)
    return kept_font(face, size if size <= 18 else round(18 * 1.12 ** round(math.log(size / 18, 1.12))), smooth)


@lru_cache
def vocabulary(language: str) -> tuple[str, ...]:
    """Words of a language, some with capitals, marks and numbers between them: always the same."""
    rng = np.random.default_rng([SALT, len(language)])
    words = WORDS[language].split()
    words += [word.capitalize() for word in words[::3]] + [word + pick(rng, ",,.;:?!") for word in words[::2]]
    forms = ("{}", "{}%", "${}.99", "({})", "1{}-07", "#{}", "{}x")
    words += [pick(rng, forms).format(rng.integers(999)) for _ in words[::8]]
    words += ["".join(rng.choice(list(pick(rng, _ALPHABETS)), int(rng.integers(2, 9)))) for _ in words[::12]]
    return tuple(words)


def random_words(rng: Rng, language: str, chars: int) -> str:
    """At most `chars` characters of text, at least one, ending with a whole word where one fits."""
    words = vocabulary(language)
    numbers = rng.integers(0, len(words), chars // 4 + 2).tolist()
    text = " ".join([words[i] for i in numbers[1:]]).translate(_OTHER_DIGITS[numbers[0] % 10])
    return text[: max(text.rfind(" ", 0, chars + 1), 0) or max(chars, 1)]


def capital(text: str) -> str:
    """With a capital letter first, the others as they are."""
    return text[:1].upper() + text[1:]


@dataclass(frozen=True)
class Style:
    """What the parts of one picture have in common. `unit`: size of its body text in pixels."""

    page: Colour
    panel: Colour
    ink: Colour
    accents: tuple[Colour, ...]
    unit: int
    face: tuple[str, int, int]
    language: str
    smooth: bool
    radius: float
    shadows: bool

    @property
    def faint(self) -> Colour:
        """Of text that matters less."""
        return mix(self.ink, self.panel, 0.42)

    @property
    def rule(self) -> Colour:
        """Of lines between parts."""
        return mix(self.ink, self.panel, 0.82)

    def font(self, scale: float = 1.0) -> Font:
        """The style's face at `scale` times the body's size."""
        return font_of(self.face[0], self.unit * scale, self.smooth)


def random_style(rng: Rng, faces: Sequence[tuple[str, int, int]], low: float, high: float) -> Style:
    """A style. Its unit is log-uniform in low..high, its ink differs from page and panel by 90 in luma or more."""
    base = rng.random()
    if base < 0.45:
        page = WHITE if rng.random() < 0.7 else (int(rng.integers(235, 255)),) * 3
    elif base < 0.65:
        page = (int(rng.integers(0, 50)),) * 3 if rng.random() < 0.8 else BLACK
    else:
        page = mix(pick(rng, (WHITE, WHITE, BLACK)), random_colour(rng), pick(rng, (0.08, 0.15, 0.3, 1.0)))
    pole = ink_on(page)
    panel = mix(page, pick(rng, (pole, WHITE)), pick(rng, (0.0, 0.04, 0.08)))
    ink = mix(pole, random_colour(rng), pick(rng, (0.0, 0.0, 0.15, 0.3, 0.8)))
    if min(abs(luma(ink) - luma(c)) for c in (page, panel)) < 90:
        ink = pole
    face = pick(rng, faces)
    language = str(rng.choice(list(WORDS), p=(0.62, 0.18, 0.08, 0.12))) if face[1] else "plain"
    accents = tuple(
        mix(colour, pole, 0.6) if abs(luma(colour) - luma(panel)) < 45 else colour
        for colour in (random_colour(rng) for _ in range(6))
    )
    unit = round(low * (high / low) ** rng.random())
    radius = unit * pick(rng, (0.0, 0.3, 0.6, 1.2))
    return Style(page, panel, ink, accents, unit, face, language, rng.random() > 0.08, radius, rng.random() < 0.5)


class Canvas:
    """Shapes at `scale` times the size, reduced at the end; text at the size itself, over all of them.

    Everything takes places in the final picture's pixels and may lie outside of it.
    """

    def __init__(self, height: int, width: int, colour: Colour, scale: int, photo: Array | None = None) -> None:
        self.height, self.width, self.scale, self.photo = height, width, scale, photo
        self.image = Image.new("RGB", (width * scale, height * scale), colour)
        self.pen = ImageDraw.Draw(self.image)
        self._texts: list[tuple[int, int, Array, Colour]] = []

    def _scaled(self, points: Points) -> list[tuple[float, float]]:
        return [(x * self.scale, y * self.scale) for x, y in points]

    def box(
        self, box: Box, fill: Colour | None, outline: Colour | None = None, line: float = 1, radius: float = 0
    ) -> None:
        """A rectangle, with round corners where it is filled; outside the picture or without area it is left out."""
        left, top, right, bottom = (round(side * self.scale) for side in box)
        inside = left < self.image.width and top < self.image.height and min(right, bottom) > 0
        if not (inside and left < right and top < bottom):
            return
        form = (left, top, right - 1, bottom - 1)
        corner = int(min(radius * self.scale, (right - left) / 2 - 2, (bottom - top) / 2 - 2))
        if fill is None:
            self.pen.rectangle(form, None, outline, max(1, round(line * self.scale)))
        elif corner < 1:
            self.pen.rectangle(form, outline or fill)
        else:
            self.pen.rounded_rectangle(form, corner, outline or fill)
        if fill is not None and outline is not None:
            inner = (box[0] + line, box[1] + line, box[2] - line, box[3] - line)
            self.box(inner, fill, radius=max(radius - line, 0))

    def ellipse(self, box: Box, fill: Colour | None, outline: Colour | None = None, line: float = 1) -> None:
        """Inside a box, which must have an area."""
        left, top, right, bottom = (side * self.scale for side in box)
        self.pen.ellipse((left, top, right - 1, bottom - 1), fill, outline, max(1, round(line * self.scale)))

    def polygon(self, points: Points, fill: Colour | None, outline: Colour | None = None, line: float = 1) -> None:
        """Closed."""
        if fill is not None:
            self.pen.polygon(self._scaled(points), fill)
        if outline is not None:
            self.line([*points, points[0]], outline, line)

    def line(self, points: Points, colour: Colour, wide: float = 1) -> None:
        """Open; round where it is broad and bends sharply."""
        joint = "curve" if wide > 1.5 and len(points) < 20 else None
        self.pen.line(self._scaled(points), colour, max(1, round(wide * self.scale)), joint)

    def paste(self, pixels: Array, left: float, top: float) -> None:
        """uint8 [h, w, 3], each pixel on one of the picture's; later shapes go over it."""
        image = Image.fromarray(pixels)
        if self.scale > 1:
            image = image.resize((image.width * self.scale, image.height * self.scale), Image.Resampling.NEAREST)
        self.image.paste(image, (round(left) * self.scale, round(top) * self.scale))

    def text(
        self,
        left: float,
        top: float,
        text: str,
        font: Font,
        colour: Colour,
        align: float = 0.0,
        stroke: Colour | None = None,
    ) -> None:
        """One line; `left` is its left edge, its middle or its right edge at `align` 0, 0.5 and 1."""
        if not -font.height < top < self.height:
            return
        length = font.length(text)
        x = round(left - align * length) - font.margin
        if -length < x < self.width:
            mask = font.mask(text, min(length, self.width - x + font.margin))
            if stroke is not None:
                grown = Image.fromarray(np.pad(mask, 2)).filter(ImageFilter.MaxFilter(5))
                self._texts.append((x - 2, round(top) - 2, np.asarray(grown), stroke))
            self._texts.append((x, round(top), mask, colour))

    def settle(self) -> None:
        """Put the text so far below the shapes to come."""
        self.paste(self.finish(), 0, 0)
        self._texts = []

    def finish(self) -> Array:
        """The picture: uint8 [height, width, 3]."""
        image = self.image.reduce(self.scale) if self.scale > 1 else self.image
        for left, top, mask, colour in self._texts:
            image.paste(colour, (left, top), Image.fromarray(mask))
        return np.array(image)
