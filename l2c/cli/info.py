"""`l2c info`."""

from __future__ import annotations

from typing import Annotated

import typer

from l2c.cli import lazy, options
from l2c.cli.messages import DAMAGED, errors_of, say
from l2c.cli.report import Result, print_json, print_rows
from l2c.cli.terminal import read_input, shown
from l2c.codec.facts import file_facts
from l2c.errors import BitstreamError
from l2c.format.bitstream import (
    ADAPT,
    ALTERNATIVES,
    QUALITY_MAP,
    VERSION,
    Bitstream,
    Limits,
    read_bitstream,
    section_name,
)
from l2c.format.levels import metric_name


def info(
    source: Annotated[str, typer.Argument(metavar="FILE", help="L2C file; - for standard input.")],
    as_json: options.Json = False,
) -> int:
    """Show what a file's head says and the size of each part; needs no model."""
    with errors_of(source):
        data = read_input(source)
        stream = read_bitstream(data, Limits.unlimited(), damaged="report")
    result = {"input": source, **_facts(stream, len(data))}
    if as_json:
        print_json(result)
    else:
        _print_info(result)
    damaged = result["damaged_sections"] + [f"tile {number}" for number in stream.damaged_tiles]
    if damaged:
        say("error", f"{shown(source)}: damaged or cut off: {', '.join(damaged)}")
        return DAMAGED
    return 0


def _facts(stream: Bitstream, size: int) -> Result:
    index = stream.index
    header = index.header
    return {
        **file_facts(size, index),
        "format_version": VERSION,
        "bit_depth": header.bit_depth,
        "quality": header.quality / 10,
        "metric_mix": header.metric_mix,
        "lossless": index.is_lossless,
        "keeps_pixels": index.keeps_pixels,
        "latent_bits": header.latent_bits,
        "latents_crc32": f"{header.latents_crc32:08x}",
        "tile_size": header.tile_size,
        "tile_rows": header.tile_rows,
        "tile_columns": header.tile_columns,
        "parts": index.part_sizes(),
        "sections": [
            {
                "type": part.type,
                "name": part.name,
                "offset": part.offset,
                "size": part.size,
                "crc32": f"{part.crc32:08x}",
            }
            for part in index.sections
        ],
        "tiles": [
            {
                "top": box.top,
                "left": box.left,
                "height": box.height,
                "width": box.width,
                "offset": tile.offset,
                "size": tile.size,
                "channels": tile.channels,
                "crc32": f"{tile.crc32:08x}",
            }
            for tile, box in zip(index.tiles, map(header.tile_box, range(header.tile_count)))
        ],
        "adaptation": _adaptation_facts(stream),
        "alternatives": _alternatives_facts(stream),
        "quality_map": _quality_map_facts(stream),
        "damaged_sections": [section_name(type_) for type_ in stream.damaged_sections],
        "damaged_tiles": list(stream.damaged_tiles),
    }


def _adaptation_facts(stream: Bitstream) -> Result:
    """What the ADAPT section of a file changes in D; empty without one that can be read."""
    body, header = stream.metadata.get(ADAPT), stream.header
    if body is None:
        return {}
    try:
        changes = lazy.adapt_section.PatchChanges.unpack(
            bytes(body), header.width, header.height, lazy.adapt_section.NO_SET, None
        )
    except BitstreamError:
        return {}
    facts: Result = {}
    if changes.sets is not None:
        used = changes.sets[changes.sets != lazy.adapt_section.NO_SET]
        facts |= {"patches_with_bias_set": len(used), "bias_sets_in_use": sorted(set(used.tolist()))}
    if changes.conditions is not None:
        facts["patches_with_conditions"] = int(changes.conditions.any(axis=0).sum())
    return facts


def _alternatives_facts(stream: Bitstream) -> list[Result]:
    """What a file has for receivers who want another metric than its own; empty without a section that can be read."""
    body, header = stream.metadata.get(ALTERNATIVES), stream.header
    if body is None:
        return []
    try:
        found = lazy.alternatives_section.unpack_alternatives(
            bytes(body), header.width, header.height, header.metric_mix, None
        )
    except BitstreamError:
        return []
    return [
        {"metric": metric_name(part.mix), "patches_with_conditions": len(part.values), "size": part.size}
        for part in found
    ]


def _quality_map_facts(stream: Bitstream) -> Result:
    """Which parts of a file are coded coarser; empty without a section that can be read."""
    body, header = stream.metadata.get(QUALITY_MAP), stream.header
    if body is None:
        return {}
    try:
        found = lazy.quality_map_section.QualityMap.unpack(bytes(body), header.width, header.height)
    except BitstreamError:
        return {}
    share = float((found.drops == 0).mean())
    return {"patch_side": found.side, "patches_at_full_quality": share, "greatest_drop": int(found.drops.max())}


def _print_info(result: Result) -> None:
    tiles, sizes = result["tiles"], [tile["size"] for tile in result["tiles"]]
    channels = [tile["channels"] for tile in tiles]
    rows = [
        ("file", shown(result["input"])),
        ("format version", str(result["format_version"])),
        ("picture", f"{result['width']}x{result['height']}, {result['mode']}, {result['bit_depth']} bits"),
        ("size", f"{result['size_bytes']} bytes, {result['bpp']:.4f} bpp"),
        ("model", result["model_id"]),
        (
            "quality",
            "lossless"
            if result["lossless"]
            else "pixels in fewer colours"
            if result["keeps_pixels"]
            else f"{result['quality']:g} of 100, metric {metric_name(result['metric_mix'])}",
        ),
        ("latents", f"{result['latent_bits']} bits, CRC-32 {result['latents_crc32']}"),
        (
            "tiles",
            f"{result['tile_columns']}x{result['tile_rows']} of {result['tile_size']} pixels, "
            f"{min(sizes)}..{max(sizes)} bytes, {min(channels)}..{max(channels)} channels",
        ),
    ]
    facts = result["adaptation"]
    if facts:
        rows.append(
            (
                "adaptation",
                f"{facts.get('patches_with_bias_set', 0)} patches with one of "
                f"{len(facts.get('bias_sets_in_use', []))} bias sets, "
                f"{facts.get('patches_with_conditions', 0)} with modulator conditions",
            )
        )
    if result["quality_map"]:
        found = result["quality_map"]
        least = 2.0 ** (-found["greatest_drop"] / 2)
        rows.append(
            (
                "quality map",
                f"{100 * found['patches_at_full_quality']:.1f} % of the patches ({found['patch_side']} pixels a side) "
                f"have it; in the others errors weigh down to {least:.3g}",
            )
        )
    rows += [
        (f"for {part['metric']}", f"{part['patches_with_conditions']} patches with others, {part['size']} bytes")
        for part in result["alternatives"]
    ]
    rows += [(f"  {name}", f"{size} bytes") for name, size in result["parts"].items()]
    print_rows(rows)
