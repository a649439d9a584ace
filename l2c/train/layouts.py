"""Layouts of drawn training pictures: pages of text, parts of user interfaces, charts, photographs with text.

Each fills a box of a canvas in a given style. Boxes may begin and end outside of the canvas, so that the picture cuts
through them as a crop of a screen does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from l2c.train.canvas import (
    BLACK,
    FACES,
    WHITE,
    Array,
    Box,
    Canvas,
    Colour,
    Rng,
    Style,
    capital,
    font_of,
    ink_on,
    mix,
    pick,
    random_words,
)

_CODE = (
    "def return if else for while in import from class None True self const int float void auto let fn pub use match",
    "value index count data result size rng path name config i x node batch print len range append get update key",
    "= == + - * ( ) [ ] { } : , . -> => != <= && || += ; < >",
    "0 1 42 3.14 0xff 1e-4 255 100 0.5 12_000",
    '"text" "%d" \'utf-8\' "/usr/lib" "key" f"{x:.2f}"',
)
# Lines of icons, each point two digits: its place in a square, 0..9 from the left and from the top.
_ICONS = [
    [[(int(point[0]) / 9, int(point[1]) / 9) for point in line.split("-")] for line in icon.split()]
    for icon in (
        "14-47-82",  # tick
        "11-88 81-18",  # cross
        "12-82 15-85 18-88",  # menu
        "21-85-28-21",  # play
        "51-58 15-85",  # plus
        "31-65-38",  # next
        "15-51-95-75-79-39-35-15",  # home
        "02-08-98-93-53-42-02",  # folder
        "40-53-93-65-79-46-19-35-03-33-40",  # star
        "02-92-97-07-02-45-92",  # letter
        "51-56 34-56-74 19-99",  # download
    )
]


def smooth(rng: Rng, height: int, width: int, cells: int) -> Array:
    """A smooth field about 0, float32 [height, width], with about `cells` humps along each side."""
    coarse = Image.fromarray(rng.normal(size=(cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def landscape(rng: Rng, height: int, width: int) -> Array:
    """Instead of a photograph: smooth colours, finer light and shade, and grain; uint8 [height, width, 3]."""
    coarse = Image.fromarray(rng.integers(20, 236, (4, 4, 3), np.uint8))
    colours = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    light = smooth(rng, height, width, 24) * 12 + smooth(rng, height, width, 7) * 12
    grain = rng.standard_normal((height, width), np.float32) * rng.uniform(0, 4)
    return np.clip(colours + (light + grain)[..., None], 0, 255).astype(np.uint8)


def photo_part(rng: Rng, photo: Array, height: int, width: int) -> Array:
    """A window of the photograph at its own pixels, or more of it scaled down; uint8 [height, width, 3]."""
    scale = max(height / photo.shape[0], width / photo.shape[1])
    scale = scale if scale > 1 or rng.random() < 0.4 else 1.0
    high, wide = (max(1, min(round(a / scale), b)) for a, b in zip((height, width), photo.shape))
    top, left = int(rng.integers(photo.shape[0] - high + 1)), int(rng.integers(photo.shape[1] - wide + 1))
    window = photo[top : top + high, left : left + wide]
    if (high, wide) == (height, width):
        return window
    return np.asarray(Image.fromarray(window).resize((width, height), Image.Resampling.BICUBIC))


def _photograph(canvas: Canvas, rng: Rng, box: Box) -> None:
    """The part of a box that the canvas shows, filled with a part of the photograph."""
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], canvas.width), min(box[3], canvas.height)
    high, wide = round(bottom - top), round(right - left)
    if high >= 1 and wide >= 1 and canvas.photo is not None:
        canvas.paste(photo_part(rng, canvas.photo, high, wide), left, top)


def _paragraph(
    canvas: Canvas, rng: Rng, style: Style, box: Box, scale: float = 1.0, lines: int = 999, faint: bool = False
) -> float:
    """Lines of text down to the box's end at most; returns where the next one would begin."""
    left, top, right, bottom = box
    font, colour = style.font(scale), style.faint if faint else style.ink
    chars = int((right - left) / font.length("nature is") * 9)
    for i in range(lines):
        if top + font.height > bottom + 1 or chars < 2 or top > canvas.height:
            break
        if top > -font.height:
            last = i > 0 and i == lines - 1
            canvas.text(
                left, top, random_words(rng, style.language, round(chars * 0.6) if last else chars), font, colour
            )
        top += round(font.height * (1.0 if scale > 1.5 else 1.15))
    return top


def _prose(canvas: Canvas, rng: Rng, style: Style, box: Box) -> None:
    """Columns of headings, paragraphs, lists and links."""
    left, top, right, bottom = box
    columns = max(1, min(int(rng.integers(1, 4)), int((right - left) / style.unit / 16)))
    wide = (right - left) / columns
    for column in range(columns):
        inner = left + column * wide + style.unit * 0.8, right - (columns - 1 - column) * wide - style.unit * 0.8
        y = top + style.unit * rng.uniform(0.3, 1.2)
        while y < min(bottom, canvas.height):
            form, x = rng.random(), inner[0]
            if form < 0.25:
                y = _paragraph(canvas, rng, style, (x, y, inner[1], bottom), pick(rng, (1.3, 1.6, 2.0, 2.6)), 1)
            elif form < 0.4:
                for _ in range(int(rng.integers(2, 6))):
                    dot = y + style.unit * 0.45
                    canvas.ellipse((x, dot, x + style.unit * 0.4, dot + style.unit * 0.4), style.ink)
                    y = _paragraph(canvas, rng, style, (x + style.unit * 1.2, y, inner[1], bottom), 1.0, 1)
            elif form < 0.5:
                font, words = style.font(), random_words(rng, style.language, 18)
                canvas.text(x, y, words, font, style.accents[0])
                under = y + font.height * 0.88
                canvas.box((x, under, x + font.length(words), under + max(1, style.unit / 14)), style.accents[0])
                y += font.height * 1.3
            else:
                faint = rng.random() < 0.2
                y = _paragraph(canvas, rng, style, (x, y, inner[1], bottom), 1.0, int(rng.integers(2, 9)), faint)
            y += style.unit * rng.uniform(0.2, 1.0)


def _poster(canvas: Canvas, rng: Rng, style: Style, box: Box) -> None:
    """A few lines of different sizes, faces and colours, on bars of colour now and then."""
    y = box[1]
    while y < min(box[3], canvas.height):
        own = replace(style, unit=int(rng.integers(9, 61)), face=pick(rng, FACES), language="plain")
        font, x = own.font(), box[0] + rng.uniform(0.0, 0.3) * (box[2] - box[0])
        ink = own.ink
        if rng.random() < 0.3:
            ground = pick(rng, own.accents)
            ink = ink_on(ground)
            canvas.box((box[0], y, box[2], y + font.height), ground)
        canvas.text(x, y, capital(random_words(rng, own.language, int(rng.integers(4, 24)))), font, ink)
        y += round(font.height * rng.uniform(0.9, 1.4))


def _code(canvas: Canvas, rng: Rng, style: Style, box: Box) -> None:
    """Monospaced lines with coloured tokens, numbered now and then."""
    face = pick(rng, [face for face in FACES if face[2]])
    font = font_of(face[0], style.unit, style.smooth)
    keywords, names, marks, numbers, texts = (group.split() for group in _CODE)
    step, y, depth, number = round(font.height * 1.1), box[1], 0, int(rng.integers(1, 900))
    numbered = rng.random() < 0.4
    while y < min(box[3], canvas.height):
        depth = max(0, min(5, depth + int(rng.integers(-1, 2))))
        x = box[0] + style.unit * 0.5
        if numbered:
            canvas.text(x, y, f"{number:4}", font, style.faint)
            x += font.length("00000 ")
        x += depth * font.length("    ")
        if rng.random() < 0.12:
            canvas.text(x, y, "# " + random_words(rng, "plain", 30), font, style.faint)
        elif rng.random() < 0.9:
            for token in rng.random(int(rng.integers(2, 8))):
                kind = int(token * 10)
                group = (keywords, keywords, names, names, names, names, marks, marks, numbers, texts)[kind]
                word = pick(rng, group)
                colour = (
                    style.accents[(0, 0, 5, 5, 5, 1, 5, 5, 2, 3)[kind]] if kind not in (2, 3, 4, 6, 7) else style.ink
                )
                canvas.text(x, y, word, font, colour)
                x += font.length(word + (" " if kind < 9 else ""))
        y, number = y + step, number + 1


def _table(canvas: Canvas, rng: Rng, style: Style, box: Box) -> None:
    """A spreadsheet: numbers at the right of their cells, words at the left."""
    font, row = style.font(), style.font().height * rng.uniform(1.1, 1.8)
    wide = style.unit * rng.uniform(4, 9)
    lines, zebra = rng.random() < 0.6, rng.random() < 0.4
    columns = int((min(box[2], canvas.width) - box[0]) / wide) + 1
    numeric = rng.random(columns) < 0.6
    y, number = box[1], 0
    while y < min(box[3], canvas.height):
        head = number == 0
        fill = style.accents[0] if head else mix(style.panel, style.ink, 0.05 if zebra and number % 2 else 0.0)
        ink = (ink_on(fill)) if head else style.ink
        canvas.box((box[0], y, box[2], y + row), fill)
        for column in range(columns):
            x, word = box[0] + column * wide, random_words(rng, style.language, int(wide / style.unit * 1.4))
            if numeric[column] and not head:
                word = f"{rng.uniform(-9, 99) * 10 ** rng.integers(0, 3):,.{number % 3}f}"
            align = float(numeric[column])
            left = x + style.unit * 0.4 + align * (wide - style.unit * 0.8)
            canvas.text(left, y + (row - font.height) / 2, word, font, ink, align)
            if lines:
                canvas.box((x, y, x + 1, y + row), style.rule)
        if lines:
            canvas.box((box[0], y + row - 1, box[2], y + row), style.rule)
        y, number = y + row, number + 1


def _icon(canvas: Canvas, rng: Rng, x: float, y: float, size: float, colour: Colour, paper: Colour) -> None:
    """One of the icons, as a line drawing, filled, or on a disc or tile of the colour."""
    form, ground = pick(rng, _ICONS), rng.random()
    if ground < 0.4:
        plate = canvas.ellipse if ground < 0.2 else canvas.box
        plate((x, y, x + size, y + size), colour)
        x, y, size, colour = x + size * 0.25, y + size * 0.25, size * 0.5, paper
    for points in form:
        placed = [(x + px * size, y + py * size) for px, py in points]
        if points[0] == points[-1] and ground > 0.7:
            canvas.polygon(placed, colour)
        else:
            canvas.line(placed, colour, max(1.0, size / 9))


def shadow(canvas: Canvas, style: Style, box: Box, under: Colour) -> None:
    """A soft dark rim, a little lower than the box."""
    depth = style.unit * 0.5
    for i in range(4, 0, -1):
        grow = depth * i / 4
        left, top, right, bottom = box
        dark = mix(under, BLACK, 0.25 * (1 - i / 5) ** 2)
        canvas.box((left - grow, top - grow / 2, right + grow, bottom + grow), dark, radius=style.radius + grow)


def _button(canvas: Canvas, rng: Rng, style: Style, x: float, y: float) -> float:
    """A button with a word; returns its right edge."""
    font, word = style.font(), capital(random_words(rng, style.language, int(rng.integers(3, 13))))
    wide, high = font.length(word) + style.unit * 1.6, font.height * 1.5
    fill = pick(rng, (style.accents[0], style.accents[0], style.panel))
    outline = style.rule if fill == style.panel else None
    canvas.box((x, y, x + wide, y + high), fill, outline, 1, style.radius)
    ink = style.ink if fill == style.panel else ink_on(fill)
    canvas.text(x + wide / 2, y + (high - font.height) / 2, word, font, ink, 0.5)
    return x + wide


def _list(canvas: Canvas, rng: Rng, style: Style, box: Box) -> None:
    """Rows with an icon or a disc, a title, sometimes a second line, and a figure at the right."""
    left, top, right, bottom = box
    unit, font = style.unit, style.font()
    row, mark, chosen = unit * rng.uniform(1.7, 4.2), int(rng.integers(4)), int(rng.integers(9))
    deep, ruled, figures = row > unit * 2.9, rng.random() < 0.5, rng.random() < 0.6
    for number in range(99):
        y = top + number * row
        if y > min(bottom - row / 2, canvas.height):
            break
        fill, ink = style.panel, style.ink
        if number == chosen:
            fill = style.accents[0]
            ink = ink_on(fill)
            canvas.box((left, y, right, y + row), fill, radius=style.radius)
        x, size = left + unit * 0.6, min(row * 0.7, unit * 2.4)
        centre = y + (row - size) / 2
        if mark == 1:
            _icon(canvas, rng, x, centre, size, style.accents[number % 6] if number != chosen else ink, fill)
        elif mark == 2:
            canvas.ellipse((x, centre, x + size, centre + size), style.accents[number % 6])
            canvas.text(
                x + size / 2, y + (row - font.height) / 2, "ABCDEFGKMNRST"[int(rng.integers(13))], font, WHITE, 0.5
            )
        elif mark == 3:
            canvas.box((x, centre, x + size, centre + size), fill, ink, max(1, unit / 10), unit * 0.2)
        x += size + unit * 0.6 if mark else 0.0
        words = capital(random_words(rng, style.language, max(2, int((right - x) / unit * rng.uniform(0.8, 1.6)))))
        line = y + (row - (2 if deep else 1) * font.height) / 2
        canvas.text(x, line, words, font, ink)
        if deep:
            second = random_words(rng, style.language, max(2, int((right - x) / unit * 1.6)))
            canvas.text(x, line + font.height, second, style.font(0.85), mix(ink, fill, 0.4))
        if figures:
            canvas.text(
                right - unit * 0.5, line, str(int(rng.integers(1, 2000))), style.font(0.85), mix(ink, fill, 0.3), 1.0
            )
        if ruled:
            canvas.box((left, y + row - 1, right, y + row), style.rule)


def fields(canvas: Canvas, rng: Rng, style: Style, box: Box) -> None:
    """Labels, fields, boxes to tick, switches, sliders, progress bars and buttons."""
    unit, font, y = style.unit, style.font(), box[1] + style.unit * 0.7
    left, right = box[0] + unit, box[2] - unit
    accent = style.accents[0]
    while y < min(box[3], canvas.height) and right - left > 4 * unit:
        part, high = int(rng.integers(6)), font.height * 1.5
        word = capital(random_words(rng, style.language, int(rng.integers(5, 20))))
        if part == 0:
            canvas.text(left, y, word, font, style.ink)
            y += font.height * 1.1
            fill = mix(style.panel, ink_on(style.ink), 0.5)
            canvas.box((left, y, right, y + high), fill, style.rule, max(1, unit / 12), style.radius)
            canvas.text(left + unit * 0.6, y + high / 6, random_words(rng, style.language, 14), font, style.faint)
        elif part == 1:
            chosen, size = rng.random() < 0.5, unit * 1.1
            square = (left, y, left + size, y + size)
            canvas.box(square, accent if chosen else style.panel, style.faint, max(1, unit / 12), style.radius)
            if chosen:
                canvas.line([(left + px * size, y + py * size) for px, py in _ICONS[0][0]], WHITE, unit / 7)
            canvas.text(left + size + unit * 0.5, y + (size - font.height) / 2, word, font, style.ink)
        elif part == 2:
            on, size = rng.random() < 0.5, unit * 1.2
            canvas.box((left, y, left + 2 * size, y + size), accent if on else style.rule, radius=size / 2)
            knob = left + size * on
            canvas.ellipse((knob + 1, y + 1, knob + size - 1, y + size - 1), WHITE)
            canvas.text(left + 2.6 * size, y + (size - font.height) / 2, word, font, style.ink)
        elif part == 3:
            at, middle = left + (right - left) * rng.random(), y + unit / 2
            canvas.box((left, middle - unit / 8, right, middle + unit / 8), style.rule, radius=unit / 8)
            canvas.box((left, middle - unit / 8, at, middle + unit / 8), accent, radius=unit / 8)
            canvas.ellipse((at - unit / 2, y, at + unit / 2, y + unit), accent, style.panel, unit / 8)
        else:
            x = left
            for _ in range(int(rng.integers(1, 4))):
                x = _button(canvas, rng, style, x, y) + unit * 0.7
        y += high + unit * rng.uniform(0.3, 1.2)


def _cards(canvas: Canvas, rng: Rng, style: Style, box: Box) -> None:
    """Tiles with shadows or rims, each with an icon and text, a large figure, a chart, or a photograph at their top."""
    gap, under = style.unit * 0.9, mix(style.panel, BLACK, 0.06)
    canvas.box(box, under)
    wide, high = (style.unit * rng.uniform(a, b) for a, b in ((8, 18), (6, 16)))
    kind = int(rng.integers(4))
    for top in np.arange(box[1] + gap, min(box[3], canvas.height), high + gap).tolist():
        for left in np.arange(box[0] + gap, min(box[2], canvas.width), wide + gap).tolist():
            tile = (left, top, left + wide, top + high)
            if style.shadows:
                shadow(canvas, style, tile, under)
            canvas.box(tile, style.panel, None if style.shadows else style.rule, 1, style.radius)
            inner = (left + gap, top + gap * 0.7, left + wide - gap, top + high - gap * 0.5)
            if kind == 0:
                _icon(canvas, rng, inner[0], inner[1], style.unit * 2, style.accents[int(rng.integers(6))], style.panel)
                inner = (inner[0], inner[1] + style.unit * 2.4, inner[2], inner[3])
            elif kind == 1:
                figure = f"{rng.integers(1, 9999):,}{pick(rng, ('', '%', ' $', 'k'))}"
                canvas.text(inner[0], inner[1], figure, style.font(2.0), pick(rng, (style.ink, style.accents[0])))
                inner = (inner[0], inner[1] + style.unit * 2.8, inner[2], inner[3])
            elif kind == 2 and wide > style.unit * 12:
                chart(canvas, rng, style, inner)
                continue
            _paragraph(canvas, rng, style, inner, 1.0, int(rng.integers(1, 6)), rng.random() < 0.3)


def chart(canvas: Canvas, rng: Rng, style: Style, box: Box) -> None:
    """Bars, stacks, lines, areas, points or a pie, with title, axes, labels, grid and legend."""
    unit, small = style.unit, style.font(0.85)
    left, top, right, bottom = box
    if rng.random() < 0.6:
        title = capital(random_words(rng, style.language, max(4, int((right - left) / unit * 0.9))))
        canvas.text((left + right) / 2, top, title, style.font(1.2), style.ink, 0.5)
        top += unit * 2
    form, series = int(rng.integers(7)), int(rng.integers(1, 5))
    if rng.random() < 0.5:
        x = left + unit * 3
        for i in range(series):
            canvas.box((x, top + unit * 0.2, x + unit * 0.8, top + unit), style.accents[i])
            word = random_words(rng, style.language, 9)
            canvas.text(x + unit * 1.1, top, word, small, style.ink)
            x += small.length(word) + unit * 2.2
        top += unit * 1.6
    if form == 6:
        side = max(min(right - left, bottom - top), 4.0)
        circle = [(left + right - side) / 2, (top + bottom - side) / 2]
        frame = (circle[0], circle[1], circle[0] + side, circle[1] + side)
        scaled = [v * canvas.scale for v in frame]
        ends = np.cumsum(rng.dirichlet(np.full(int(rng.integers(3, 7)), 2.0))) * 360
        for i, (start, end) in enumerate(zip([0.0, *ends[:-1]], ends)):
            rim = style.panel if style.shadows else None
            canvas.pen.pieslice(scaled, start - 90, end - 90, style.accents[i % 6], rim, canvas.scale * 2)
            angle = np.radians((start + end) / 2 - 90)
            at = circle[0] + side / 2 * (1 + 0.7 * np.cos(angle)), circle[1] + side / 2 * (1 + 0.7 * np.sin(angle))
            ink = ink_on(style.accents[i % 6])
            canvas.text(at[0], at[1] - small.height / 2, f"{(end - start) / 3.6:.0f}%", small, ink, 0.5)
        if rng.random() < 0.4:
            quarter = side / 4
            hole = (frame[0] + quarter, frame[1] + quarter, frame[2] - quarter, frame[3] - quarter)
            canvas.ellipse(hole, style.panel)
        return
    left, bottom = left + unit * 3.2, bottom - unit * 1.6
    wide, high = max(right - left, 1.0), max(bottom - top, 1.0)
    ticks, step = int(rng.integers(3, 8)), pick(rng, (1, 2, 5, 10, 25, 100, 0.1, 0.5))
    mark, grid = pick(rng, ("", "", "%", "k")), int(rng.integers(3))
    for i in range(ticks + 1):
        y = bottom - high * i / ticks
        if grid:
            canvas.box((left, y, right, y + 1), style.rule)
        canvas.text(left - unit * 0.4, y - small.height / 2, f"{i * step:g}{mark}", small, style.faint, 1.0)
    count = int(rng.integers(3, 13)) if form < 2 else int(rng.integers(8, 60))
    values = (
        rng.random((series, count))
        if form in (0, 1, 5)
        else 0.5 + 0.12 * np.cumsum(rng.normal(size=(series, count)), axis=1)
    )
    values = np.clip(values, 0.02, 1.0)
    if form == 1:
        values = np.cumsum(values, axis=0) / series
    every = max(1, -(-count * unit * 3 // int(wide + 1)))
    first = int(rng.integers(1, 2000))
    for i in range(0, count, int(every)):
        x = left + wide * (i + 0.5) / count
        canvas.text(x, bottom + unit * 0.3, str(first + i), small, style.faint, 0.5)
        if grid == 2:
            canvas.box((x, top, x + 1, bottom), style.rule)
    for i in reversed(range(series)):
        colour = style.accents[i]
        points = [(left + wide * (j + 0.5) / count, bottom - high * v) for j, v in enumerate(values[i])]
        if form < 2:
            bar = wide / count * 0.8 / (series if form == 0 else 1)
            for x, y in points:
                x += bar * (i - series / 2) if form == 0 else -bar / 2
                canvas.box((x, y, x + bar, bottom), colour)
        elif form == 5:
            for x, y in points:
                canvas.ellipse((x - unit / 4, y - unit / 4, x + unit / 4, y + unit / 4), colour)
        else:
            if form == 4:
                canvas.polygon(
                    [(points[0][0], bottom), *points, (points[-1][0], bottom)], mix(colour, style.panel, 0.6)
                )
            canvas.line(points, colour, max(1, unit / pick(rng, (12, 7, 4))))
            for x, y in points if form == 3 else ():
                canvas.ellipse((x - unit / 3, y - unit / 3, x + unit / 3, y + unit / 3), colour, style.panel)
    canvas.line([(left, top), (left, bottom), (right, bottom)], style.ink, max(1, unit / 12))


def _article(canvas: Canvas, rng: Rng, style: Style, box: Box) -> None:
    """A photograph with a heading above and a caption below, then text."""
    inner = (box[0] + style.unit, box[2] - style.unit)
    y = _paragraph(canvas, rng, style, (inner[0], box[1] + 4, inner[1], box[3]), 1.8, int(rng.integers(0, 3)))
    high = (inner[1] - inner[0]) * rng.uniform(0.4, 0.8)
    _photograph(canvas, rng, (inner[0], y, inner[1], y + high))
    y = _paragraph(canvas, rng, style, (inner[0], y + high + style.unit / 2, inner[1], box[3]), 0.85, 1, True)
    _prose(canvas, rng, style, (box[0], y + style.unit / 2, *box[2:]))


def _gallery(canvas: Canvas, rng: Rng, style: Style, box: Box) -> None:
    """Small photographs side by side, with names or without."""
    wide, names = style.unit * rng.uniform(5, 16), rng.random() < 0.5
    high, gap = wide * rng.uniform(0.6, 1.2), style.unit * rng.uniform(0.2, 1)
    for top in np.arange(box[1] + gap, min(box[3], canvas.height), high + gap + names * style.unit * 1.6).tolist():
        for left in np.arange(box[0] + gap, min(box[2], canvas.width), wide + gap).tolist():
            _photograph(canvas, rng, (left, top, left + wide, top + high))
            if names:
                word = random_words(rng, style.language, max(2, int(wide / style.unit * 1.2)))
                canvas.text(left, top + high + 1, word, style.font(0.9), style.ink)


def _viewer(canvas: Canvas, rng: Rng, style: Style, box: Box) -> None:
    """One photograph that fills the box, with captions, buttons and marks over it."""
    _photograph(canvas, rng, box)
    left, right, bottom = max(box[0], 0), min(box[2], canvas.width), min(box[3], canvas.height)
    top = min(max(box[1], 0), bottom)
    for _ in range(int(rng.integers(1, 4))):
        form, y, unit = int(rng.integers(5)), rng.uniform(top, bottom), style.unit
        font, words = (
            style.font(pick(rng, (1.0, 1.5, 2.5))),
            capital(random_words(rng, style.language, int(rng.integers(5, 30)))),
        )
        middle, ink = (left + right) / 2, pick(rng, (WHITE, WHITE, (255, 255, 0), BLACK))
        if form == 0:
            canvas.text(middle, y, words, font, ink, 0.5, WHITE if ink == BLACK else BLACK)
        elif form == 1:
            canvas.box((left, y, right, y + font.height * 1.4), style.panel)
            canvas.text(left + unit, y + font.height * 0.2, words, font, style.ink)
        elif form == 2:
            canvas.text(rng.uniform(left, middle), y, words, font, ink)
        elif form == 3:
            _button(canvas, rng, style, rng.uniform(left, right), y)
        else:
            _icon(canvas, rng, middle - unit, y, unit * rng.uniform(1, 5), ink, style.panel)


Content = Callable[[Canvas, Rng, Style, Box], None]
PAGES: tuple[Content, ...] = (_prose, _prose, _poster, _code, _code, _table)
WIDGETS: tuple[Content, ...] = (_list, _list, fields, fields, _cards, _cards, _table, _prose, chart)
PHOTO_PAGES: tuple[Content, ...] = (_article, _gallery, _viewer, _viewer)


def screen(canvas: Canvas, rng: Rng, style: Style, box: Box, contents: Sequence[Content]) -> None:
    """Windows: bars at the top and the side of one or two contents, sometimes with a dialogue over them."""
    left, top, right, bottom = box
    unit, font, bars = style.unit, style.font(), rng.random(5)
    canvas.box(box, style.panel)
    if bars[0] < 0.7:
        fill = pick(rng, (style.accents[1], style.page, mix(style.panel, style.ink, 0.1)))
        ink = ink_on(fill)
        high = unit * rng.uniform(2, 3.4)
        canvas.box((left, top, right, top + high), fill)
        x, y = left + unit * 0.7, top + (high - font.height) / 2
        while x < min(right, canvas.width):
            if rng.random() < 0.6:
                _icon(canvas, rng, x, top + high / 2 - unit * 0.6, unit * 1.2, ink, fill)
                x += unit * 2
            else:
                word = capital(random_words(rng, style.language, int(rng.integers(3, 14))))
                canvas.text(x, y, word, font, ink)
                x += font.length(word) + unit
        top += high
        if bars[1] < 0.6:
            canvas.box((left, top - 1, right, top), style.rule)
    if bars[2] < 0.45 and right - left > 24 * unit:
        side = left + unit * rng.uniform(7, 13)
        tint = replace(style, panel=mix(style.panel, style.ink, 0.06))
        canvas.box((left, top, side, bottom), tint.panel)
        _list(canvas, rng, tint, (left, top, side, bottom))
        left = side
    if bars[3] < 0.4:
        cut = top + (bottom - top) * rng.uniform(0.3, 0.7)
        pick(rng, contents)(canvas, rng, style, (left, top, right, cut))
        canvas.settle()
        canvas.box((left, cut, right, bottom), style.panel, style.rule)
        top = cut + 1
    pick(rng, contents)(canvas, rng, style, (left, top, right, bottom))
