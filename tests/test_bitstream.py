"""The container: round trips, a second writer made from the specification alone, and all that is refused."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2c.errors import BitstreamError, LimitError, UnsupportedError
from l2c.format.bitstream import (
    ADAPT,
    ALPHA,
    EXIF,
    ICC,
    MODES,
    Bitstream,
    Header,
    Limits,
    read_bitstream,
    read_header,
    write_bitstream,
)
from l2c.format.tiles import Box, grid, latent_tiles

HEADER = Header(
    width=768,
    height=512,
    model_id=b"model-id",
    latents_crc32=0xDEADBEEF,
    quality=505,
    latent_bits=8,
    metric_mix=3,
    tile_size=512,
)
PAYLOADS = [b"first payload", b"second"]
METADATA = {ICC: b"profile", EXIF: b"II*\x00", ALPHA: b"\x00\x01\xff", 0x9000: b"from a later writer"}


def small_file() -> bytes:
    """Two tiles, four sections; one of the section types is ancillary and unknown."""
    return write_bitstream(HEADER, PAYLOADS, [192, 7], METADATA)


def built(
    *,
    magic: bytes = b"\x8bL2C",
    version: int = 1,
    flags: int = 0,
    head_size: int | None = None,
    fields: tuple[int, ...] = (768, 512),
    levels: int = 0x38,
    quality: int = 505,
    mode: int = 0,
    bit_depth: int = 8,
    tile_log2: int = 1,
    directory: bytes | None = None,
    table: bytes = b"",
    body: bytes = b"abc",
) -> bytes:
    """A file put together from the specification without the code under test; its head CRC is right."""
    width, height = fields
    if directory is None:
        directory = struct.pack("<IIH", 3, zlib.crc32(b"abc"), 192)
    rest = struct.pack("<II", width, height) + b"model-id" + struct.pack("<I", 0xDEADBEEF)
    rest += struct.pack("<HBBBB", quality, levels, mode, bit_depth, tile_log2) + directory + table
    start = magic + struct.pack("<BBI", version, flags, 14 + len(rest) if head_size is None else head_size)
    return start + struct.pack("<I", zlib.crc32(start + rest)) + rest + body


def entry(type_: int, data: bytes) -> bytes:
    """An entry of the section table."""
    return struct.pack("<HII", type_, len(data), zlib.crc32(data))


# ---------------------------------------------------------------------------------------------- round trips


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Headers of at most 16 tiles, all other values over their whole range."""
    tile_size = 512 << draw(st.integers(0, 15))
    return Header(
        width=draw(st.integers(1, min(4 * tile_size, 2**31 - 1))),
        height=draw(st.integers(1, min(4 * tile_size, 2**31 - 1))),
        model_id=draw(st.binary(min_size=8, max_size=8)),
        latents_crc32=draw(st.integers(0, 2**32 - 1)),
        quality=draw(st.integers(0, 1000)),
        latent_bits=draw(st.integers(1, 8)),
        metric_mix=draw(st.integers(0, 8)),
        mode=draw(st.sampled_from(MODES)),
        bit_depth=draw(st.integers(1, 64)),
        tile_size=tile_size,
    )


section_types = st.sampled_from([ALPHA, ICC, EXIF]) | st.integers(0x8000, 0xFFFF)


@settings(max_examples=200, deadline=None)
@given(
    headers(),
    st.lists(st.binary(max_size=40), min_size=16, max_size=16),
    st.lists(st.integers(0, 65535), min_size=16, max_size=16),
    st.dictionaries(section_types, st.binary(min_size=1, max_size=40), max_size=5),
)
def test_round_trip(header: Header, payloads: list[bytes], channels: list[int], metadata: dict[int, bytes]) -> None:
    count = header.tile_count
    data = write_bitstream(header, payloads[:count], channels[:count], metadata)
    back = read_bitstream(data, Limits.unlimited())
    assert back.header == header
    assert [bytes(payload) for payload in back.payloads] == payloads[:count]
    assert [tile.channels for tile in back.tiles] == channels[:count]
    assert {type_: bytes(view) for type_, view in back.metadata.items()} == metadata
    assert back.damaged_tiles == back.damaged_sections == ()
    assert back.index.file_size == len(data) == sum(back.index.part_sizes().values())
    for tile, payload in zip(back.tiles, payloads, strict=False):
        assert data[tile.offset : tile.offset + tile.size] == payload
    assert read_header(data[: back.index.head_size], Limits.unlimited()) == back.index


def test_same_arguments_give_the_same_bytes() -> None:
    assert small_file() == write_bitstream(HEADER, PAYLOADS, [192, 7], dict(reversed(METADATA.items())))


def test_writer_against_a_second_writer() -> None:
    header = Header(768, 512, b"model-id", 0xDEADBEEF, 505, 8, 3, tile_size=1024)
    assert write_bitstream(header, [b"abc"], [192]) == built()
    with_icc = write_bitstream(header, [b"abc"], [192], {ICC: b"profile"})
    assert with_icc == built(table=entry(0x8001, b"profile"), body=b"profileabc")


def test_golden_bytes() -> None:
    header = Header(768, 512, b"model-id", 0xDEADBEEF, 505, 8, 3, tile_size=1024)
    preamble = "8b4c3243 01 00 32000000 b585cf36"
    fields = "00030000 00020000 6d6f64656c2d6964 efbeadde f901 38 00 08 01"
    directory = "03000000 c2412435 c000"
    golden = bytes.fromhex(preamble + fields + directory) + b"abc"
    assert write_bitstream(header, [b"abc"], [192]) == golden


def test_overhead_of_a_kodak_picture() -> None:
    one_tile = Header(768, 512, b"model-id", 0, 505, 8, tile_size=1024)
    assert len(write_bitstream(one_tile, [b""], [192])) == 50
    assert len(write_bitstream(HEADER, [b"", b""], [192, 192])) == 60


def test_part_sizes() -> None:
    index = read_header(small_file())
    assert index.part_sizes() == {
        "header": 40,
        "directory": 20,
        "section_table": 40,
        "ALPHA": 3,
        "ICC": 7,
        "EXIF": 4,
        "0x9000": 19,
        "payloads": 19,
    }


def test_accepts_every_bytes_like_and_copies_nothing() -> None:
    data = bytearray(small_file())
    for form in (bytes(data), data, memoryview(data), memoryview(data).cast("B", (len(data), 1))):
        assert bytes(read_bitstream(form).payloads[0]) == PAYLOADS[0]
    view = read_bitstream(data).payloads[1]
    data[-1] = 0
    assert view[-1] == 0


@pytest.mark.parametrize("width", [1, 511, 512, 513, 1024, 1700])
@pytest.mark.parametrize("height", [1, 512, 1025])
def test_tile_boxes_cover_the_picture_once(width: int, height: int) -> None:
    header = Header(width, height, bytes(8), 0, 0, 8, tile_size=512)
    boxes = list(map(header.tile_box, range(header.tile_count)))
    covered = {(y, x) for box in boxes for y in (box.top, box.bottom - 1) for x in (box.left, box.right - 1)}
    area = sum(box.height * box.width for box in boxes)
    assert area == header.pixels
    assert {(0, 0), (height - 1, width - 1)} <= covered
    assert header.tile_count == header.tile_rows * header.tile_columns
    assert boxes == sorted(boxes) == grid(height, width, 512)
    for outside in (-1, header.tile_count):
        with pytest.raises(IndexError):
            header.tile_box(outside)


def test_boxes() -> None:
    box = Box(3, 5, 20, 40)
    assert (box.height, box.width) == (17, 35)
    assert np.zeros((50, 50))[box.slices].shape == (17, 35)
    assert box.widened(4, 22, 60) == (0, 1, 22, 44)
    assert box.within(Box(1, 2, 60, 60)) == (2, 3, 19, 38)
    assert box.covering(8) == (0, 0, 3, 5)
    assert box.covering(8).times(8) == (0, 0, 24, 40)
    assert latent_tiles(1030, 520, 512, 8) == [
        (0, 0, 64, 64), (0, 64, 64, 65), (64, 0, 128, 64), (64, 64, 128, 65), (128, 0, 129, 64), (128, 64, 129, 65),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ refusals


def test_every_prefix_is_refused_as_truncated() -> None:
    data = small_file()
    for size in range(len(data)):
        with pytest.raises(BitstreamError, match="truncated"):
            read_bitstream(data[:size])


@pytest.mark.parametrize("extra", [b"\x00", b"padding" * 10])
def test_trailing_bytes_are_refused(extra: bytes) -> None:
    data = small_file()
    for damaged in ("raise", "report"):
        with pytest.raises(BitstreamError, match=f"byte {len(data)}: {len(extra)} bytes follow"):
            read_bitstream(data + extra, damaged=damaged)


def test_every_flipped_bit_is_refused() -> None:
    data = small_file()
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        expected: type[Exception] = UnsupportedError if bit // 8 == 4 else BitstreamError
        with pytest.raises(expected) as caught:
            read_bitstream(altered)
        if bit // 8 < 4:
            assert "not an L2C file" in str(caught.value)


def test_another_file_is_refused() -> None:
    for other in (b"\x89PNG\r\n\x1a\n" + bytes(100), b"\xff\xd8\xff\xe0" + bytes(100), bytes(100), b"P"):
        with pytest.raises(BitstreamError, match="byte 0, magic: not an L2C file"):
            read_bitstream(other)


def test_seven_bit_copy_is_refused() -> None:
    with pytest.raises(BitstreamError, match="not an L2C file"):
        read_bitstream(bytes(byte & 127 for byte in small_file()))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"version": 0}, UnsupportedError, "byte 4, version: format version 0"),
        ({"version": 2}, UnsupportedError, "byte 4, version: format version 2"),
        ({"flags": 128}, UnsupportedError, "byte 5, flags: 0x80"),
        ({"head_size": 0}, BitstreamError, "byte 6, head_size: 0"),
        ({"head_size": 49}, BitstreamError, "byte 6, head_size: 49"),
        ({"head_size": 2**32 - 1}, BitstreamError, "truncated: 53 bytes, the head alone has 4294967295"),
        ({"fields": (0, 512)}, BitstreamError, "byte 14, width: 0 is outside"),
        ({"fields": (2**31, 512)}, BitstreamError, "byte 14, width: 2147483648 is outside"),
        ({"fields": (768, 0)}, BitstreamError, "byte 18, height: 0 is outside"),
        ({"quality": 1001}, BitstreamError, "byte 34, quality: 1001 is outside 0..1000"),
        ({"levels": 0x30}, BitstreamError, "byte 36, latent_bits: 0 is outside 1..8"),
        ({"levels": 0x39}, BitstreamError, "byte 36, latent_bits: 9 is outside 1..8"),
        ({"levels": 0x98}, BitstreamError, "byte 36, metric_mix: 9 is outside 0..8"),
        ({"mode": 14}, BitstreamError, "byte 37, mode: 14 is outside 0..13"),
        ({"bit_depth": 0}, BitstreamError, "byte 38, bit_depth: 0 is outside 1..64"),
        ({"bit_depth": 65}, BitstreamError, "byte 38, bit_depth: 65 is outside 1..64"),
        ({"tile_log2": 16}, BitstreamError, "byte 39, tile_log2: 16 is outside 0..15"),
        ({"directory": bytes(17)}, BitstreamError, "byte 6, head_size: 57 is not 50 for 1 tiles"),
        ({"tile_log2": 0}, BitstreamError, "byte 6, head_size: 50 is not 60 for 2 tiles"),
        ({"table": entry(0x8001, b"")}, BitstreamError, "byte 50, section ICC: size 0"),
        ({"table": entry(0x8002, b"a") + entry(0x8001, b"b")}, BitstreamError, "byte 60, section ICC: types"),
        ({"table": entry(0x8001, b"a") * 2}, BitstreamError, "byte 60, section ICC: types must increase"),
        ({"table": entry(ADAPT, b"a"), "body": b"babc"}, BitstreamError, "byte 60, section ADAPT: CRC-32"),
        ({"table": entry(0x0077, b"a")}, UnsupportedError, "byte 50, section 0x0077: critical"),
        ({"table": entry(0x8077, b"a"), "body": b"babc"}, BitstreamError, "byte 60, section 0x8077: CRC-32"),
        ({"body": b"abd"}, BitstreamError, "byte 50, payload of tile 0: CRC-32"),
        ({"body": b"ab"}, BitstreamError, "truncated: 52 bytes of 53"),
        ({"body": b"abcd"}, BitstreamError, "byte 53: 1 bytes follow"),
    ],
)
def test_each_fault_is_named(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        read_bitstream(built(**changes))  # type: ignore[arg-type]


def test_altered_head_is_named() -> None:
    data = bytearray(built())
    data[34] ^= 1
    with pytest.raises(BitstreamError, match=r"byte 10, head_crc32: the head \(bytes 0..49\) is altered"):
        read_header(data)


def test_unknown_ancillary_section_is_kept() -> None:
    back = read_bitstream(built(table=entry(0xFFFF, b"new"), body=b"newabc"))
    assert bytes(back.metadata[0xFFFF]) == b"new"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"fields": (2**31 - 1, 2**31 - 1)}, LimitError),
        ({"fields": (2**31 - 1, 2**31 - 1), "tile_log2": 0}, LimitError),
        ({"fields": (2**31 - 1, 1), "tile_log2": 0}, LimitError),
        ({"fields": (2**29, 1), "tile_log2": 0}, LimitError),
        ({"fields": (2**14, 2**14), "tile_log2": 15}, LimitError),
        ({"fields": (2**14, 2**14), "tile_log2": 0}, BitstreamError),
        ({"directory": struct.pack("<IIH", 2**32 - 1, 0, 65535)}, BitstreamError),
        ({"table": struct.pack("<HII", ICC, 2**32 - 1, 0)}, LimitError),
        ({"table": struct.pack("<HII", ALPHA, 2**32 - 1, 0)}, BitstreamError),
        ({"head_size": 2**32 - 1}, BitstreamError),
    ],
)
def test_absurd_sizes_cost_neither_time_nor_memory(changes: dict[str, object], error: type[Exception]) -> None:
    data = built(**changes)  # type: ignore[arg-type]
    elapsed = []
    for _ in range(5):  # the best of five: other processes share these cores
        start = time.perf_counter()
        with pytest.raises(error):
            read_bitstream(data)
        elapsed.append(time.perf_counter() - start)
    assert min(elapsed) < 1e-3
    tracemalloc.start()
    with pytest.raises(error):
        read_bitstream(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 1024


def test_absurd_sizes_without_limits_are_still_refused() -> None:
    for fields in ((2**31 - 1, 2**31 - 1), (2**31 - 1, 1)):
        with pytest.raises(BitstreamError, match="head_size"):
            read_bitstream(built(fields=fields, tile_log2=0), Limits.unlimited())


@pytest.mark.parametrize(
    ("name", "enough"),
    [
        ("max_pixels", 768 * 512),
        ("max_tiles", 2),
        ("max_tile_pixels", 512 * 512),
        ("max_metadata_bytes", 7 + 4 + 19),
    ],
)
def test_limits_too_low_and_just_enough(name: str, enough: int) -> None:
    data = small_file()
    assert len(read_bitstream(data, Limits(**{name: enough})).payloads) == 2
    assert len(read_bitstream(data, Limits(**{name: None})).payloads) == 2
    for read in (read_bitstream, read_header):
        with pytest.raises(LimitError, match=rf"{enough} .*limit is {enough - 1} \(Limits.{name}\)"):
            read(data, Limits(**{name: enough - 1}))


def test_tile_pixels_count_the_tile_cut_at_the_edge() -> None:
    data = built(tile_log2=15)
    assert read_bitstream(data, Limits(max_tile_pixels=768 * 512)).header.tile_size == 2**24


# --------------------------------------------------------------------------------------- damage and writing


def damaged_report(data: bytes | bytearray) -> Bitstream:
    """Reads around the damage."""
    return read_bitstream(data, damaged="report")


def test_damaged_tiles_are_reported_and_withheld() -> None:
    data = bytearray(small_file())
    data[read_header(data).tiles[0].offset] ^= 1
    back = damaged_report(data)
    assert back.damaged_tiles == (0,)
    assert bytes(back.payloads[0]) == b""
    assert bytes(back.payloads[1]) == PAYLOADS[1]
    assert set(back.metadata) == set(METADATA)


def test_damaged_sections_are_reported_and_withheld() -> None:
    data = bytearray(small_file())
    offset = next(section.offset for section in read_header(data).sections if section.type == EXIF)
    data[offset] ^= 1
    back = damaged_report(data)
    assert back.damaged_sections == (EXIF,)
    assert set(back.metadata) == set(METADATA) - {EXIF}
    assert back.damaged_tiles == ()


def test_cut_off_tiles_are_reported() -> None:
    data = small_file()
    index = read_header(data)
    for size in range(index.head_size, len(data)):
        back = damaged_report(data[:size])
        assert back.damaged_tiles == tuple(
            number for number, tile in enumerate(index.tiles) if tile.offset + tile.size > size
        )
    for size in range(index.head_size):
        with pytest.raises(BitstreamError):
            damaged_report(data[:size])


def test_damaged_argument_is_checked() -> None:
    with pytest.raises(ValueError, match="choose 'raise' or 'report'"):
        read_bitstream(small_file(), damaged="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width: 0"),
        ({"height": 2**31}, "height: 2147483648"),
        ({"model_id": b"short"}, "model_id: 5 bytes"),
        ({"latents_crc32": -1}, "latents_crc32: -1"),
        ({"quality": 1001}, "quality: 1001"),
        ({"latent_bits": 9}, "latent_bits: 9"),
        ({"metric_mix": 9}, "metric_mix: 9"),
        ({"mode": "BGR;15"}, "mode: 'BGR;15'"),
        ({"bit_depth": 0}, "bit_depth: 0"),
        ({"tile_size": 513}, "tile_size: 513"),
        ({"tile_size": 2**25}, "tile_size: 33554432"),
    ],
)
def test_header_refuses_what_the_format_cannot_hold(changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {
        "width": 1,
        "height": 1,
        "model_id": bytes(8),
        "latents_crc32": 0,
        "quality": 0,
        "latent_bits": 8,
    }
    Header(**values)  # type: ignore[arg-type]
    with pytest.raises(BitstreamError, match=message):
        Header(**values | changes)  # type: ignore[arg-type]


def test_writer_refuses_what_the_reader_would() -> None:
    with pytest.raises(BitstreamError, match="1 payloads and 2 channel counts for 2 tiles"):
        write_bitstream(HEADER, [b""], [1, 1])
    with pytest.raises(BitstreamError, match="tile 1: 65536 channels"):
        write_bitstream(HEADER, [b"", b""], [1, 65536])
    with pytest.raises(BitstreamError, match="section ICC: 0 bytes"):
        write_bitstream(HEADER, [b"", b""], [1, 1], {ICC: b""})
    with pytest.raises(BitstreamError, match="type 65536 is outside"):
        write_bitstream(HEADER, [b"", b""], [1, 1], {65536: b"a"})
    with pytest.raises(UnsupportedError, match="critical section 0x0012"):
        write_bitstream(HEADER, [b"", b""], [1, 1], {0x0012: b"a"})


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_raise_our_errors_only(noise: bytes, with_preamble: bool) -> None:
    data = noise
    if with_preamble:  # get past magic, version and CRC, so that the fields themselves are tried
        head = b"\x8bL2C\x01\x00" + struct.pack("<I", 14 + len(noise))
        data = head + struct.pack("<I", zlib.crc32(head + noise)) + noise
    try:
        assert read_bitstream(data).index.file_size == len(data)
    except (BitstreamError, UnsupportedError, LimitError) as error:
        assert "\n" not in str(error)
