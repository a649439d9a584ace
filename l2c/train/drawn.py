"""Training pictures drawn by code: what photographs do not teach. Text, user interfaces, charts, flat colours.

`draw` is a pure function of its arguments and of the generator's state: same seed, same picture with the same versions
of numpy, Pillow and matplotlib, whose fonts are used (but for a pixel here and there by one grey level, where the
processors' sines and exponentials differ in their last bit).

Layouts are larger than the picture and start outside of it, so that a picture cuts through them as a crop of a screen
does. A 192x192 picture takes 2-5 ms on one core once the glyphs are rendered, which takes the first few hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from l2c.train.canvas import (
    BLACK,
    FACES,
    SALT,
    SCREEN_FACES,
    WHITE,
    Array,
    Box,
    Canvas,
    Rng,
    capital,
    mix,
    pick,
    random_colour,
    random_style,
    random_words,
)
from l2c.train.layouts import (
    PAGES,
    PHOTO_PAGES,
    WIDGETS,
    Content,
    chart,
    fields,
    landscape,
    photo_part,
    screen,
    shadow,
    smooth,
)


def _around(rng: Rng, canvas: Canvas, most: float) -> Box:
    """A box that covers the canvas and goes beyond it by up to `most` times its size on each side."""
    left, top, right, bottom = rng.random(4) * most * (rng.random(4) < 0.7)
    return (
        float(round(-left * canvas.width)),
        float(round(-top * canvas.height)),
        canvas.width * (1 + right),
        canvas.height * (1 + bottom),
    )


def _text(height: int, width: int, rng: Rng, photo: Array | None) -> Array:
    style = random_style(rng, FACES, 8, 40 if rng.random() < 0.3 else 18)
    canvas = Canvas(height, width, style.page, 1)
    pick(rng, PAGES)(canvas, rng, replace(style, panel=style.page), _around(rng, canvas, 0.15))
    return canvas.finish()


def _ui(height: int, width: int, rng: Rng, photo: Array | None, contents: Sequence[Content] = WIDGETS) -> Array:
    style = random_style(rng, SCREEN_FACES, 9, 20)
    canvas = Canvas(height, width, style.page, pick(rng, (1, 2)), photo)
    screen(canvas, rng, style, _around(rng, canvas, 0.6), contents)
    if rng.random() < 0.15:
        left, top = rng.uniform(0, 0.4, 2) * (width, height)
        dialogue = (left, top, left + style.unit * rng.uniform(14, 22), top + style.unit * rng.uniform(8, 16))
        over = replace(style, panel=style.page)
        canvas.settle()
        shadow(canvas, over, dialogue, style.panel)
        canvas.box(dialogue, over.panel, style.rule, 1, style.radius)
        fields(canvas, rng, over, dialogue)
    return canvas.finish()


def _screenshot(height: int, width: int, rng: Rng, photo: Array | None) -> Array:
    return _ui(height, width, rng, photo, PHOTO_PAGES)


def _charts(height: int, width: int, rng: Rng, photo: Array | None) -> Array:
    style = random_style(rng, FACES, 8, 18)
    canvas = Canvas(height, width, style.page, pick(rng, (1, 2, 2)))
    left, top, right, bottom = _around(rng, canvas, 0.3)
    chart(canvas, rng, replace(style, panel=style.page), (left + 4, top + 4, right - style.unit, bottom))
    return canvas.finish()


def _flat(height: int, width: int, rng: Rng, photo: Array | None) -> Array:
    """Areas, stripes, checkers and gradients; black and white more often than any other pair of colours."""
    form = rng.random()
    pair = (BLACK, WHITE) if rng.random() < 0.25 else (random_colour(rng), random_colour(rng))
    first, second = (np.array(c, np.uint8) for c in (pair if rng.random() < 0.5 else pair[::-1]))
    y, x = (side.astype(np.float32) for side in np.ogrid[0:height, 0:width])
    if form < 0.3:
        picture = np.broadcast_to(first, (height, width, 3)).copy()
        for i in range(0 if form < 0.1 else int(rng.integers(1, 7))):
            top, left = int(rng.integers(height)), int(rng.integers(width))
            bottom, right = (int(v) for v in rng.integers((top + 1, left + 1), (height + 1, width + 1)))
            picture[top:bottom, left:right] = second if i == 0 else random_colour(rng)
        return picture
    if form < 0.55:
        wide, high = (int(2 ** rng.uniform(0, 4.1)) for _ in range(2))
        at, down = x // wide, y // (wide if rng.random() < 0.6 else high)
        odd = (at + down if form > 0.42 else pick(rng, (at, down))) % 2 > 0
        if rng.random() < 0.2:
            odd = (x / width if rng.random() < 0.5 else y / height) < rng.uniform(0.2, 0.8)
        return np.where(np.broadcast_to(odd, (height, width))[..., None], first, second)
    angle, span, *centre = rng.uniform((0, 0.5, -0.3, -0.3), (6.3, 3.0, 1.3, 1.3)).tolist()
    if form < 0.8:
        across, down = 2 / span * math.cos(angle), 2 / span * math.sin(angle)
        ramp = (x / width - 0.5) * across + (y / height - 0.5) * down + 0.5
    else:
        ramp = np.hypot(x / width - centre[0], y / height - centre[1]) / span
    ramp = np.clip(ramp, 0, 1)[..., None] ** pick(rng, (1.0, 1.0, 0.5, 2.0))
    if rng.random() < 0.15:
        steps = int(rng.integers(3, 20))
        ramp = np.floor(ramp * steps) / steps
    picture = first + (second.astype(np.float32) - first) * ramp
    dither = pick(rng, (0.0, 0.0, 1.0, 2.0, 4.0))
    if dither:
        picture += (rng.random((height, width, pick(rng, (1, 3))), np.float32) - 0.5) * dither
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _noise(height: int, width: int, rng: Rng, photo: Array | None) -> Array:
    """White or coarse, grey or coloured noise on a colour, or random black and white."""
    sigma, cell, channels = 2 ** rng.uniform(1, 6.5), pick(rng, (1, 1, 1, 2, 3, 4)), pick(rng, (1, 3))
    grain = rng.standard_normal((-(-height // cell), -(-width // cell), channels), np.float32)
    if rng.random() < 0.15:
        grain = np.sign(grain)
    if cell > 1:
        grain = grain.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    return np.clip(np.array(random_colour(rng), np.float32) * 0.8 + 25 + sigma * grain, 0, 255).astype(np.uint8)


def _blob(rng: Rng, x: float, y: float, radius: float, rough: float) -> list[tuple[float, float]]:
    """A closed smooth outline about a place."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    waves = sum(rng.normal() * rough / k * np.cos(k * angles + rng.uniform(0, 6.3)) for k in (1, 2, 3, 4, 5))
    reach = radius * np.clip(1 + waves, 0.3, 2.0)
    return list(zip((x + reach * np.cos(angles)).tolist(), (y + reach * np.sin(angles) * rng.uniform(0.6, 1)).tolist()))


def _curve(rng: Rng, canvas: Canvas) -> list[tuple[float, float]]:
    """A smooth line through the picture."""
    t = np.linspace(0, 1, 50)
    start, end = rng.uniform(-0.2, 1.2, (2, 2))
    wave = sum(rng.normal(size=(2, 1)) * 0.25 / k * np.sin(np.pi * k * t) for k in (1, 2, 3))
    x, y = start[:, None] + (end - start)[:, None] * t + wave
    return list(zip((x * canvas.width).tolist(), (y * canvas.height).tolist()))


def _lines(height: int, width: int, rng: Rng, photo: Array | None) -> Array:
    """Curves, polygons, hatching, street maps and contour lines, smooth or with hard steps."""
    style = random_style(rng, SCREEN_FACES, 9, 16)
    canvas = Canvas(height, width, style.page, pick(rng, (1, 2)))
    form, wide = int(rng.integers(5)), pick(rng, (1.0, 1.0, 1.5, 2.0, 4.0))
    colours = style.accents if rng.random() < 0.5 else (style.ink,)
    if form == 0:
        for _ in range(int(rng.integers(3, 25))):
            canvas.line(_curve(rng, canvas), pick(rng, colours), wide)
    elif form == 1:
        for _ in range(int(rng.integers(3, 20))):
            corners = rng.uniform(-0.1, 1.1, 2) + rng.uniform(-0.4, 0.4, (int(rng.integers(3, 7)), 2))
            fill = mix(pick(rng, style.accents), style.page, 0.5) if rng.random() < 0.3 else None
            canvas.polygon((corners * (width, height)).tolist(), fill, pick(rng, colours), wide)
    elif form == 2:
        for _ in range(int(rng.integers(1, 6))):
            angle, gap, reach = rng.uniform(0, np.pi), rng.uniform(2, 14), height + width
            x, y, half = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.1, 0.7) * width
            across, along = np.array((np.cos(angle), np.sin(angle))), np.array((-np.sin(angle), np.cos(angle)))
            colour = pick(rng, colours)
            for at in np.arange(-half, half, gap):
                centre = (x, y) + across * at
                canvas.line([tuple(centre - along * half), tuple(centre + along * min(half, reach))], colour, wide)
    elif form == 3:
        ground = mix(style.page, style.accents[0], 0.15)
        canvas.box((0, 0, width, height), ground)
        for _ in range(int(rng.integers(1, 5))):
            park = _blob(rng, rng.random() * width, rng.random() * height, rng.uniform(0.1, 0.4) * width, 0.3)
            canvas.polygon(park, mix(pick(rng, style.accents), WHITE, 0.5))
        roads = [(_curve(rng, canvas), pick(rng, (2.0, 3.0, 4.0, 8.0))) for _ in range(int(rng.integers(4, 16)))]
        for extra, colour in ((1.5, style.faint), (0.0, pick(rng, (WHITE, style.accents[2])))):
            for road, broad in roads:
                canvas.line(road, colour, broad + extra)
        for _ in range(int(rng.integers(1, 9))):
            x, y = rng.random(2) * (width, height)
            canvas.text(x, y, capital(random_words(rng, style.language, 12)), style.font(), style.ink, 0.5, ground)
    else:
        rows, columns = height * canvas.scale, width * canvas.scale
        levels = (smooth(rng, rows, columns, int(rng.integers(2, 7))) * rng.uniform(1.5, 6) + 99).astype(np.uint8)
        table = np.array(style.accents if rng.random() < 0.4 else (style.page,), np.uint8)
        pixels = table[levels % len(table)]
        edge = np.zeros((rows, columns), bool)
        edge[:-1] |= levels[:-1] != levels[1:]
        edge[:, :-1] |= levels[:, :-1] != levels[:, 1:]
        if canvas.scale > 1:
            edge[1:] |= edge[:-1]
            edge[:, 1:] |= edge[:, :-1]
        pixels[edge] = colours[0] if len(table) == 1 else style.ink
        canvas.image = Image.fromarray(pixels)
    return canvas.finish()


def _cartoon(height: int, width: int, rng: Rng, photo: Array | None) -> Array:
    """Flat round shapes with outlines, lighter on one side, on a plain or a graded ground."""
    canvas = Canvas(height, width, random_colour(rng), 2)
    outline = pick(rng, (BLACK, BLACK, None, (40, 30, 60)))
    wide, shade = max(1.0, min(height, width) / 192 * rng.uniform(1, 5)), rng.uniform(0.1, 0.4)
    if rng.random() < 0.5:
        canvas.box((0, height * rng.uniform(0.4, 0.9), width, height), random_colour(rng), outline, wide)
    for _ in range(int(rng.integers(3, 12))):
        x, y, radius = *(rng.random(2) * (width, height)), rng.uniform(0.06, 0.35) * min(width, height)
        colour, points = random_colour(rng), _blob(rng, x, y, radius, pick(rng, (0.0, 0.1, 0.3)))
        canvas.polygon(points, mix(colour, BLACK, shade))
        inner = [(x + (px - x) * 0.82 - radius * 0.1, y + (py - y) * 0.82 - radius * 0.12) for px, py in points]
        canvas.polygon(inner, colour)
        if outline is not None:
            canvas.polygon(points, None, outline, wide)
        if rng.random() < 0.35:
            for eye in (-0.35, 0.35):
                size, ex, ey = radius * 0.2, x + eye * radius, y - radius * 0.2
                canvas.ellipse((ex - size, ey - size, ex + size + 1, ey + size + 1), WHITE, outline, wide / 2)
                canvas.ellipse((ex - size / 2, ey - size / 2, ex + size / 2 + 1, ey + size / 2 + 1), BLACK)
    picture = canvas.finish()
    if rng.random() < 0.4:
        light = 1 + 0.12 * smooth(rng, height, width, 2)[..., None]
        picture = np.clip(picture * light, 0, 255).astype(np.uint8)
    return picture


def _product(height: int, width: int, rng: Rng, photo: Array | None) -> Array:
    """A cut-out of the photograph, or a shaded ball, can or box, on a flat ground with a soft edge and shadow."""
    ground = WHITE if rng.random() < 0.7 else random_colour(rng)
    left, top, wide, high = (rng.uniform(low, low + 0.45) for low in (0.25, 0.25, 0.12, 0.12))
    wide, high = wide * width, high * height
    u = (np.arange(width, dtype=np.float32) - left * width)[None] / wide
    v = (np.arange(height, dtype=np.float32) - top * height)[:, None] / high
    picture = np.full((height, width, 3), ground, np.float32)
    if rng.random() < 0.6:
        shadow = np.exp(u**2 * -1.5) * np.exp(((v - 1) / rng.uniform(0.08, 0.3)) ** 2 * -1)
        picture *= (1 - shadow * rng.uniform(0.1, 0.5))[..., None]
    form, edge, square = int(rng.integers(4)), rng.uniform(0.5, 3.0), u**2 + v**2
    if form == 1:
        distance = 1 - np.maximum(np.abs(u), np.abs(v))
    elif form == 2:
        distance = 1 - np.sqrt(np.sqrt((u**2) ** 2 + (v**2) ** 2))
    else:
        distance = 1 - np.sqrt(square)
        if form == 3:
            distance = distance + 0.25 * smooth(rng, height, width, 3)
    mask = np.clip(distance * (min(wide, high) / edge) + 0.5, 0, 1)[..., None]
    if photo is not None and rng.random() < 0.6:
        thing = photo_part(rng, photo, height, width).astype(np.float32)
    else:
        lit = 1.3 - 0.3 * (u + v) if form == 1 else np.sqrt(np.clip(1 - (square if form == 0 else u**2), 0, 1))
        shine = np.exp(-20 * (u + 0.4) ** 2) * (np.exp(-20 * (v + 0.4) ** 2) if form == 0 else 1) * rng.uniform(0, 200)
        stripe = np.abs(v) < rng.uniform(-0.6, 0.5)
        colours = np.array((random_colour(rng), random_colour(rng)), np.float32)
        thing = colours[stripe.astype(np.int64)] * (0.25 + 0.75 * lit[..., None]) + shine[..., None]
    picture += (thing - picture) * mask
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


_DRAW: dict[str, Callable[[int, int, Rng, Array | None], Array]] = {
    "text": _text,
    "ui": _ui,
    "flat": _flat,
    "screenshot": _screenshot,
    "product": _product,
    "chart": _charts,
    "lines": _lines,
    "cartoon": _cartoon,
    "noise": _noise,
}
SHARES = (0.27, 0.2, 0.11, 0.12, 0.1, 0.08, 0.06, 0.04, 0.02)  # of all drawn pictures, in the order of the kinds
KINDS = tuple(_DRAW)
UPRIGHT = frozenset(("text", "ui", "screenshot", "chart"))  # kinds with text, which stands as it is read
WITH_PHOTO = frozenset(("screenshot", "product"))


def random_kind(rng: Rng) -> str:
    """One of `KINDS`, as often as training pictures take it."""
    return KINDS[int(np.searchsorted(np.cumsum(SHARES)[:-1], rng.random(), "right"))]


def draw(kind: str, size: int | tuple[int, int], rng: Rng, photo: Array | None = None) -> Array:
    """A picture of one of `KINDS`.

    Args:
        size: its side, or its height and width, in pixels.
        photo: uint8 [h, w, 3], any size: what the kinds of `WITH_PHOTO` show a part of; smooth colours without it.
    Returns:
        uint8 [height, width, 3], shares no memory.
    Raises:
        ValueError: an unknown kind, or a side below 1.
        ConfigError: matplotlib is not installed.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if kind not in _DRAW or min(height, width) < 1:
        raise ValueError(f"cannot draw {kind!r} of {width}x{height} pixels: the kinds are {', '.join(KINDS)}")
    zoom, fringe, form = rng.random(3)
    if kind in ("flat", "noise", "product") or zoom > 0.15:
        factor = 1.0
    else:
        factor = 0.5 if zoom < 0.03 else rng.uniform(1.1, 1.7)  # large pixels, or a picture that was scaled down
    sides = max(1, round(height * factor)), max(1, round(width * factor))
    if photo is None and kind in WITH_PHOTO:
        photo = landscape(rng, *sides)
    for _ in range(9):  # the picture may lie in a gap of its layout
        picture = _DRAW[kind](*sides, rng, photo)
        if kind == "flat" or (picture != picture[0, 0]).any():
            break
    if factor != 1.0:
        filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
        how = Image.Resampling.NEAREST if factor < 1 else filters[int(form * 3)]
        picture = np.array(Image.fromarray(picture).resize((width, height), how))
    elif kind in ("text", "ui") and fringe < 0.15:  # the three colours of an LCD's pixel lie side by side
        for channel, shift in ((0, 1), (2, -1)):
            plane = picture[..., channel].astype(np.uint16)
            beside = np.pad(plane, ((0, 0), (1, 1)), "edge")[:, 1 - shift : 1 - shift + width]
            picture[..., channel] = (2 * plane + beside + 1) // 3
    return picture


def draw_batch(count: int, size: int, seed: int, photos: Sequence[Array] | None = None) -> Tensor:
    """Pictures of random kinds to crop from later: picture i depends on size, seed, i and the photographs alone.

    Args:
        photos: uint8 [h, w, 3] each, for the kinds that show one.
    Returns:
        uint8 [count, 3, size, size], contiguous.
    """
    batch = np.empty((count, 3, size, size), np.uint8)
    for i in range(count):
        rng = np.random.default_rng([seed, SALT, i])
        kind, photo = random_kind(rng), pick(rng, photos) if photos else None
        batch[i] = draw(kind, size, rng, photo).transpose(2, 0, 1)
    return torch.from_numpy(batch)
