"""What a GPU should take for our work, by operation count: the floors, and predictions with stated assumptions.

The counts come from the shipped model and the launch order of `DeviceCoder`, nothing is measured here. The serial
part of entropy decoding is rows of lanes, one after the other: ROW_CYCLES each at 1.7 GHz, counted in the machine code
of the decoding loop for sm_90 (CUDA C++) with its stall counts and assumed latencies; of the Triton form a guess.
"""

from __future__ import annotations

import torch

from l2c import transforms
from l2c.codec import DEFAULT_TILE
from l2c.entropy.multiscale.backends.device_coder import choose_lanes
from l2c.entropy.multiscale.schedule import scale_sizes
from l2c.format.tiles import latent_tiles
from l2c.models import Model, load_model

CLOCK = 1.7e9
ROW_CYCLES = {"cuda": (175, 287), "triton": (1000, 1500)}  # up to 32 lanes, 64 lanes
MISS_CYCLES, MISSES = 800, 0.01  # rows with a symbol outside its window, at 0.5 bpp (measured on kodim04 and kodim19)
BPP = 0.5
# Passes of networks that an encode to a target rate takes, in units of one pass of D with its gradient counted as two.
PASSES = {0: 3, 4: 10 * 3, 9: 3 * 20 * 3}


def probability_macs(model: Model, boxes: list[tuple[int, int, int, int]]) -> float:
    """Of P over all tiles; channels padded to whole blocks, as the kernels compute them."""
    layers = [layer for step in model.integer.steps for layer in (step.w1, step.w2, step.w3, step.w4)]
    per_cell = sum(
        -(-w.shape[0] // 64) * 64 * -(-w.shape[1] // 64) * 64 * w.shape[2] ** 2 for w in (l.weight for l in layers)
    )
    cells = 0
    for top, left, bottom, right in boxes:
        sizes = scale_sizes(bottom - top, right - left, model.integer.config.num_scales)
        cells += sum(rows * columns for rows, columns in sizes[1:])
    return float(per_cell * cells)


def launches(model: Model) -> int:
    """Kernels of one decode of all scales and groups: four layers, parameters, window, decode and fill a group."""
    p = model.integer.config
    return 4 + p.num_scales * (1 + 8 * 3 * len(p.channel_groups))


def serial_decoding(model: Model, boxes: list[tuple[int, int, int, int]], kind: str) -> tuple[int, float]:
    """(rows, seconds) of the tile that takes longest."""
    c, s = model.integer.c, model.transform.s
    longest = (0, 0.0)
    for top, left, bottom, right in boxes:
        positions = (bottom - top) * (right - left)
        lanes = choose_lanes(int(BPP * positions * s * s * 256))
        rows = -(-positions * c // lanes)
        cycles = ROW_CYCLES[kind][lanes > 32] + (MISS_CYCLES * MISSES if kind == "cuda" else 0.0)
        longest = max(longest, (rows, rows * cycles / CLOCK), key=lambda pair: pair[1])
    return longest


def decoder_macs(model: Model, pixels: int) -> float:
    """Of D."""
    cond = transforms.condition(torch.tensor([0.01]), torch.zeros(1))
    y = torch.zeros(1, model.config.transform.c, 32, 32)
    side = 32 * model.transform.s
    return 1000.0 * pixels * transforms.kmac_per_pixel(lambda: model.transform.decoder(y, cond), side * side)


def predicted_rows(
    peak: dict[str, float], share: dict[str, float], launch: float, model_name: str = "l2c-default"
) -> list[tuple[str, str, float, float]]:
    """(title, part of the measured record or "", floor in seconds, predicted seconds) of each target."""
    model = load_model(model_name)
    s = model.transform.s
    rows = []
    for width, height in ((768, 512), (2000, 1128)):
        boxes = latent_tiles(height, width, DEFAULT_TILE, s)
        pixels = width * height
        symbols = sum((b - t) * (r - l) for t, l, b, r in boxes) * model.integer.c
        p, d = probability_macs(model, boxes), decoder_macs(model, pixels)
        name = f"{width}x{height}"
        # Parameters and windows are written and read once: 6 K + 66 bytes a symbol, twice.
        moved = 2 * symbols * (6 * model.integer.config.num_mixtures + 66) / peak["bytes"]
        network = max(launches(model) * launch, p / (share["int8"] * peak["int8"])) + moved
        coders = {kind: serial_decoding(model, boxes, kind) for kind in ROW_CYCLES}
        rows.append((f"P of {name}, all scales and groups", "", p / peak["int8"] + moved, network))
        for kind, (count, seconds) in coders.items():
            rows.append((f"its serial decoding, {kind} ({count} rows)", "", 0.0, seconds))
        for precision in ("float32", "bfloat16"):
            floor = d / peak[precision]
            whole = network + coders["cuda"][1] + d / (share[precision] * peak[precision])
            rows.append(
                (
                    f"D of {name}, {precision}",
                    "" if width > 768 else f"D, {precision}",
                    floor,
                    d / (share[precision] * peak[precision]),
                )
            )
            rows.append(
                (f"decode {name}, {precision}", f"decode {name}, {precision}", floor + p / peak["int8"] + moved, whole)
            )
    boxes = latent_tiles(512, 768, DEFAULT_TILE, s)
    p, d, count = probability_macs(model, boxes), decoder_macs(model, 768 * 512), 64
    batch = (
        launches(model) * launch
        + count * p / (2 * share["int8"] * peak["int8"])
        + serial_decoding(model, boxes, "cuda")[1]
        + count * d / (share["bfloat16"] * peak["bfloat16"])
    )
    floor = count * (p / peak["int8"] + d / peak["bfloat16"])
    rows.append(
        (
            f"decode a batch of {count}, 768x512 ({count / batch:.0f} pictures/s)",
            f"decode a batch of {count}, 768x512",
            floor,
            batch,
        )
    )
    for effort, passes in PASSES.items():
        coded = 2 * serial_decoding(model, boxes, "cuda")[1]  # coded once to be measured, once trimmed
        whole = passes * (d / (share["bfloat16"] * peak["bfloat16"]) + 60 * launch) + coded
        rows.append(
            (f"encode 768x512, effort {effort}", f"encode, effort {effort}", passes * d / peak["bfloat16"], whole)
        )
    return rows
