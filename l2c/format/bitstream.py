"""The L2C file: what every byte means, and the only code that reads and writes it.

This docstring is the specification. All numbers are unsigned and little-endian; CRC-32 is the one of zlib and
PNG (reflected polynomial 0xEDB88320, start and final XOR 0xFFFFFFFF). A file is three parts without gaps:

    head:      preamble | fields | tile directory | section table; `head_size` bytes under `head_crc32`
    sections:  the data of each section, in the order of the section table
    payloads:  one per tile, in the order of the tile directory

and it ends with the last byte of the last payload.

Preamble, 14 bytes

    offset  size  name         legal values
    0       4     magic        8B 4C 32 43 (0x8B, "L2C"); the high bit shows up channels that keep 7 bits
    4       1     version      1; any other value, and so another layout from here on, is refused
    5       1     flags        0; a later writer's flag would change the meaning of the file and is refused
    6       4     head_size    40 + 10 * tiles + 10 * sections, at most the size of the file
    10      4     head_crc32   CRC-32 of bytes 0..9 followed by bytes 14..head_size-1

Fields, 26 bytes

    14      4     width        1..2^31-1 pixels
    18      4     height       1..2^31-1 pixels
    22      8     model_id     any; hash of the weights that the file was made with
    30      4     latents_crc32  any; CRC-32 of all latent symbols of the picture, channel by channel
    34      2     quality      0..1000, tenths of the 0..100 scale
    36      1     levels       low 4 bits latent_bits, 1..8; high 4 bits metric_mix in eighths, 0..8, what
                               the file was optimised for: an index into l2c/objective.py's axis
    37      1     mode         0..13, what the picture was before it was coded, an index into MODES:
                               RGB L LA RGBA P PA CMYK YCbCr LAB HSV 1 I;16 I F (Pillow's names)
    38      1     bit_depth    1..64, bits a sample before the picture was coded
    39      1     tile_log2    0..15; tiles are squares of side 512 << tile_log2 pixels

Tile directory, 10 bytes a tile. Tiles cover the picture in rows from the top left; those at the right and at
the bottom end at the picture's edge. There are ceil(height / side) * ceil(width / side).

    +0      4     size         any, bytes of the payload
    +4      4     crc32        CRC-32 of the payload
    +8      2     channels     any; latent channels 0..channels-1 of this tile are coded, higher ones are zero

Section table, 10 bytes a section; it fills the rest of the head, so there are
(head_size - 40 - 10 * tiles) / 10 of them, without remainder.

    +0      2     type         strictly increasing from entry to entry, so each type occurs at most once
    +2      4     size         1..2^32-1, bytes of the section
    +6      4     crc32        CRC-32 of the section

A type below 0x8000 is critical: the picture cannot be shown as meant without it, and a reader that does not
know the type refuses the file. A type from 0x8000 on is ancillary: a reader that does not know it ignores it.

    0x0001  ALPHA  alpha plane without loss, in the form that format/alpha_section.py defines
    0x0002  LOSSY_ALPHA  alpha plane with loss, likewise; a file with both is refused
    0x0003  LOSSLESS  pixels without loss instead of latents, in the form that format/lossless_section.py defines: size,
                   CRC and channels of every tile, and the latents' CRC, are 0. They are the picture's where the
                   header's quality is 1000; where it is less, the picture in fewer colours
    0x0010  ADAPT  what encode-time adaptation changes in the decoder (bias set and modulator conditions per
                   patch), in the form that the docstring of format/adapt_section.py defines
    0x0011  QUALITY_MAP  parts of the picture that are coded coarser than the header's quality, in the form that the
                   docstring of format/quality_map_section.py defines
    0x8001  ICC    the picture's ICC profile as it was
    0x8002  EXIF   the picture's EXIF: a TIFF structure ("II" or "MM" first), Orientation set to 1
    0x8003  XMP    the picture's XMP packet, Orientation set to 1, in the form that format/metadata_sections.py defines
    0x8004  DPI    the picture's dots per inch, in the form that format/metadata_sections.py defines
    0x8010  ALTERNATIVES  modulator conditions for receivers who want another metric than the file's, in the form that
                   the docstring of format/alternatives_section.py defines
    0x8011  PIXELS  4 bytes, CRC-32 of the colours that D in integers makes of the file: uint8 [height, width, 3], RGB

What a payload holds is the codec's affair (l2c/codec, csrc/core/rans.h). A payload starts at head_size + the sizes
of all sections + the sizes of the payloads before it, so a reader can decode a region from the tiles that it
touches (`Container`), or around a damaged tile; a payload decodes from its beginning, so one that is cut short is the
coarser part of a tile.

Order of checks: magic, version, head_size, head_crc32, flags, every field, the caller's limits, directory,
section table, size of the file, CRC-32 of every section and payload. Nothing is allocated in proportion to a
number that was not checked before, and all of it happens before a network runs.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from l2c.errors import BitstreamError, DamagedError, LimitError, UnsupportedError
from l2c.format.levels import MAX_MU, MAX_QUALITY, OperatingPoint
from l2c.format.source import BytesLike, Memory, Source
from l2c.format.tiles import Box

MAGIC = b"\x8bL2C"
VERSION = 1
MODES = ("RGB", "L", "LA", "RGBA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "1", "I;16", "I", "F")

ALPHA = 0x0001
LOSSY_ALPHA = 0x0002
LOSSLESS = 0x0003
ADAPT = 0x0010
QUALITY_MAP = 0x0011
ICC = 0x8001
EXIF = 0x8002
XMP = 0x8003
DPI = 0x8004
ALTERNATIVES = 0x8010
PIXELS = 0x8011
FIRST_ANCILLARY = 0x8000
SECTION_NAMES = {
    ALPHA: "ALPHA",
    LOSSY_ALPHA: "LOSSY_ALPHA",
    LOSSLESS: "LOSSLESS",
    ADAPT: "ADAPT",
    QUALITY_MAP: "QUALITY_MAP",
    ICC: "ICC",
    EXIF: "EXIF",
    XMP: "XMP",
    DPI: "DPI",
    ALTERNATIVES: "ALTERNATIVES",
    PIXELS: "PIXELS",
}
ALPHA_TYPES = frozenset({ALPHA, LOSSY_ALPHA})
PIXEL_TYPES = ALPHA_TYPES | {LOSSLESS}  # whose decoded size is that of the picture
UNDERSTOOD = frozenset(SECTION_NAMES)

MIN_TILE_SIZE = 512
_PREAMBLE = struct.Struct("<4sBBII")
_FIELDS = struct.Struct("<II8sIHBBBB")
_ENTRY_TILE = struct.Struct("<IIH")
_ENTRY_SECTION = struct.Struct("<HII")
SECTION_OVERHEAD = _ENTRY_SECTION.size  # bytes that a section costs beside its data
_FIELDS_AT = _PREAMBLE.size
_CRC_AT = 10
_TABLES_AT = _PREAMBLE.size + _FIELDS.size

# Attribute of Header -> (byte offset in the file, least and greatest legal value), in the order of checks.
_RANGES = {
    "width": (14, 1, 2**31 - 1),
    "height": (18, 1, 2**31 - 1),
    "latents_crc32": (30, 0, 2**32 - 1),
    "quality": (34, 0, MAX_QUALITY),
    "latent_bits": (36, 1, 8),
    "metric_mix": (36, 0, MAX_MU),
    "bit_depth": (38, 1, 64),
}
_TWO_PLANES = "section table: ALPHA and LOSSY_ALPHA in one file"
_MODE_AT = 37
_TILE_LOG2_AT, _TILE_LOG2_MAX = 39, 15
TILE_SIZES = tuple(MIN_TILE_SIZE << k for k in range(_TILE_LOG2_MAX + 1))  # pixels a side


@dataclass(frozen=True)
class Limits:
    """What a file may ask for before it is refused with `LimitError`; None lifts a limit.

    Attributes:
        max_pixels: width * height of the picture.
        max_tiles: entries of the tile directory.
        max_tile_pixels: pixels of the largest tile, cut at the picture's edge: what is decoded in one piece.
        max_metadata_bytes: all sections together but those of pixels, whose decoded size `max_pixels` bounds.
    """

    max_pixels: int | None = 2**29
    max_tiles: int | None = 2**16
    max_tile_pixels: int | None = 2**24
    max_metadata_bytes: int | None = 2**26

    @classmethod
    def unlimited(cls) -> Limits:
        """No limit but what the format itself can express and the file's own size."""
        return cls(None, None, None, None)


@dataclass(frozen=True)
class Header:
    """Fixed fields of a file (offsets and ranges: module docstring).

    Attributes:
        width, height: pixels, 1..2^31-1.
        model_id: 8 bytes, hash of the weights.
        latents_crc32: CRC-32 of all latent symbols, in the codec's order.
        quality: 0..1000, tenths of the 0..100 scale.
        latent_bits: b, 1..8.
        metric_mix: 0..8, eighths of the axis from psnr over mixed to msssim; see METRICS.
        mode: one of MODES, what the picture was.
        bit_depth: 1..64, bits a sample of what the picture was.
        tile_size: side of a tile in pixels, 512 << k for k in 0..15.
    Raises:
        BitstreamError: a value that the format cannot hold.
    """

    width: int
    height: int
    model_id: bytes
    latents_crc32: int
    quality: int
    latent_bits: int
    metric_mix: int = 0
    mode: str = "RGB"
    bit_depth: int = 8
    tile_size: int = 1024

    def __post_init__(self) -> None:
        for name in _RANGES:
            _check_range(name, getattr(self, name))
        if len(self.model_id) != 8:
            raise BitstreamError(f"model_id: {len(self.model_id)} bytes instead of 8")
        if self.mode not in MODES:
            raise BitstreamError(f"mode: {self.mode!r} is none of {', '.join(MODES)}")
        if self.tile_size not in TILE_SIZES:
            raise BitstreamError(f"tile_size: {self.tile_size} is not 512 << k for k in 0..{_TILE_LOG2_MAX}")

    @property
    def point(self) -> OperatingPoint:
        """What P is conditioned on."""
        return OperatingPoint(self.quality, self.metric_mix, self.latent_bits)

    @property
    def pixels(self) -> int:
        """width * height."""
        return self.width * self.height

    @property
    def tile_rows(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.height // self.tile_size)

    @property
    def tile_columns(self) -> int:
        """Tiles from left to right."""
        return -(-self.width // self.tile_size)

    @property
    def tile_count(self) -> int:
        """Entries of the tile directory."""
        return self.tile_rows * self.tile_columns

    @property
    def tile_pixels(self) -> int:
        """Pixels of the largest tile, the first one."""
        return min(self.tile_size, self.width) * min(self.tile_size, self.height)

    def tile_box(self, index: int) -> Box:
        """Place of tile `index` (row-major, from 0) in the picture, in pixels."""
        if not 0 <= index < self.tile_count:
            raise IndexError(f"tile {index} of {self.tile_count}")
        row, column = divmod(index, self.tile_columns)
        top, left, side = row * self.tile_size, column * self.tile_size, self.tile_size
        return Box(top, left, min(self.height, top + side), min(self.width, left + side))


@dataclass(frozen=True)
class Tile:
    """Directory entry of one tile.

    Attributes:
        offset: first byte of the payload in the file.
        size: bytes of the payload.
        channels: latent channels in use, 0..65535.
        crc32: CRC-32 of the payload.
    """

    offset: int
    size: int
    channels: int
    crc32: int


@dataclass(frozen=True)
class Section:
    """Entry of the section table: `size` bytes of data at byte `offset` of the file."""

    type: int
    offset: int
    size: int
    crc32: int

    @property
    def name(self) -> str:
        """ICC, EXIF, ALPHA, ... or the type in hexadecimal."""
        return section_name(self.type)


@dataclass(frozen=True)
class FileIndex:
    """Everything that the head of a file says: its fields and where each part lies.

    Attributes:
        header: the fixed fields.
        tiles: row-major, `header.tile_count` entries.
        sections: in file order, types strictly increasing.
        head_size: bytes of preamble, fields, directory and table.
        file_size: bytes that the whole file must have.
    """

    header: Header
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    head_size: int
    file_size: int

    @property
    def keeps_pixels(self) -> bool:
        """Whether the file keeps pixels, and no latents."""
        return any(section.type == LOSSLESS for section in self.sections)

    @property
    def is_lossless(self) -> bool:
        """Whether it keeps them as they were, not in fewer colours."""
        return self.keeps_pixels and self.header.quality == MAX_QUALITY

    def part_sizes(self) -> dict[str, int]:
        """Bytes of each part: header, directory, section_table, one entry per section name, payloads.

        Their sum is `file_size`.
        """
        sizes = {
            "header": _TABLES_AT,
            "directory": _ENTRY_TILE.size * len(self.tiles),
            "section_table": _ENTRY_SECTION.size * len(self.sections),
        }
        sizes.update((section.name, section.size) for section in self.sections)
        sizes["payloads"] = sum(tile.size for tile in self.tiles)
        return sizes


@dataclass(frozen=True)
class Bitstream:
    """A file, or the tiles of it that were asked for, every CRC checked. Views share memory with data in memory.

    Attributes:
        index: what the head says.
        payloads: one view per tile; empty for a damaged one, and for one that was not asked for.
        metadata: section type -> view of its data, unknown ancillary types included, without damaged ones.
        damaged_tiles: indices of tiles that are cut short or fail their CRC; empty unless damaged="report".
        damaged_sections: types of such sections; empty unless damaged="report".
        beginnings: of damaged tiles that the end of the file cuts short, what there is of the payload.
        skipped: indices of tiles that were not asked for: nothing is known of their bytes.
    """

    index: FileIndex
    payloads: tuple[memoryview, ...] = field(repr=False)
    metadata: Mapping[int, memoryview] = field(repr=False)
    damaged_tiles: tuple[int, ...] = ()
    damaged_sections: tuple[int, ...] = ()
    beginnings: Mapping[int, memoryview] = field(default_factory=dict, repr=False)
    skipped: frozenset[int] = frozenset()

    @property
    def header(self) -> Header:
        """The fixed fields."""
        return self.index.header

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """Directory entries, one per payload."""
        return self.index.tiles

    def check_damage(self) -> None:
        """Raises DamagedError, which names all parts that are damaged."""
        sections = tuple(map(section_name, self.damaged_sections))
        parts = [f"section {name}" for name in sections] + [f"tile {number}" for number in self.damaged_tiles]
        if parts:
            what = f"{', '.join(parts)} of {len(self.tiles)}" if self.damaged_tiles else ", ".join(parts)
            raise DamagedError(f"damaged or cut off: {what}", self.damaged_tiles, sections)


def section_name(type_: int) -> str:
    """Name of a section type in messages and listings: "ICC", or "0x8077" for one without a name."""
    return SECTION_NAMES.get(type_, f"0x{type_:04x}")


def file_size(payload_bytes: Sequence[int], section_bytes: Sequence[int]) -> int:
    """Bytes of a file with such payloads, one per tile, and sections."""
    tables = _ENTRY_TILE.size * len(payload_bytes) + _ENTRY_SECTION.size * len(section_bytes)
    return _TABLES_AT + tables + sum(payload_bytes) + sum(section_bytes)


def write_bitstream(
    header: Header,
    payloads: Sequence[BytesLike],
    channels: Sequence[int],
    metadata: Mapping[int, BytesLike] | None = None,
) -> bytes:
    """Assembles a file; the same arguments give the same bytes.

    Args:
        header: fixed fields.
        payloads: one per tile, row-major, each shorter than 2^32 bytes.
        channels: latent channels in use per tile, 0..65535.
        metadata: section type -> data of 1..2^32-1 bytes.
    Raises:
        BitstreamError: counts that do not match the tile grid, a value that the format cannot hold, two alpha planes.
        UnsupportedError: a critical section type that this version could not read back.
    """
    if not len(payloads) == len(channels) == header.tile_count:
        raise BitstreamError(
            f"{len(payloads)} payloads and {len(channels)} channel counts for {header.tile_count} tiles"
        )
    bodies: list[BytesLike] = []
    table = bytearray()
    if metadata is not None and metadata.keys() >= ALPHA_TYPES:
        raise BitstreamError(_TWO_PLANES)
    for type_, data in sorted((metadata or {}).items()):
        _check_section_type(type_, "section table")
        if not 0 < len(data) < 2**32:
            raise BitstreamError(f"section {section_name(type_)}: {len(data)} bytes are outside 1..2^32-1")
        table += _ENTRY_SECTION.pack(type_, len(data), zlib.crc32(data))
        bodies.append(data)
    directory = bytearray()
    for index, (payload, used) in enumerate(zip(payloads, channels, strict=True)):
        if len(payload) >= 2**32:
            raise BitstreamError(f"tile {index}: payload of {len(payload)} bytes, the format holds 2^32-1")
        if not 0 <= used < 2**16:
            raise BitstreamError(f"tile {index}: {used} channels are outside 0..65535")
        directory += _ENTRY_TILE.pack(len(payload), zlib.crc32(payload), used)
        bodies.append(payload)

    head_size = _TABLES_AT + len(directory) + len(table)
    if head_size >= 2**32:
        raise BitstreamError(f"head of {head_size} bytes, the format holds 2^32-1")
    fields = _FIELDS.pack(
        header.width,
        header.height,
        header.model_id,
        header.latents_crc32,
        header.quality,
        header.latent_bits | header.metric_mix << 4,
        MODES.index(header.mode),
        header.bit_depth,
        TILE_SIZES.index(header.tile_size),
    )
    rest = fields + directory + table
    start = _PREAMBLE.pack(MAGIC, VERSION, 0, head_size, 0)[:_CRC_AT]
    crc = zlib.crc32(rest, zlib.crc32(start))
    return b"".join([start, struct.pack("<I", crc), rest, *bodies])


def read_header(data: BytesLike, limits: Limits = Limits()) -> FileIndex:
    """Checks and reads the head alone; what follows it may be missing.

    Args:
        data: the file, or its first bytes as long as they hold the head.
        limits: what the file may ask for.
    Raises:
        BitstreamError: not an L2C file, truncated within the head, altered, or a value outside its range.
        UnsupportedError: another format version, unknown flags, or an unknown critical section.
        LimitError: more pixels, tiles or metadata than `limits` allow.
    """
    source = Memory(data)
    view = source.read(0, source.size)
    head_size = _check_preamble(view)
    header = _read_fields(view)
    tiles = header.tile_count
    _check_limit("pixels", header.pixels, limits.max_pixels, "max_pixels")
    _check_limit("tiles", tiles, limits.max_tiles, "max_tiles")
    _check_limit("pixels in a tile", header.tile_pixels, limits.max_tile_pixels, "max_tile_pixels")

    table_at = _TABLES_AT + _ENTRY_TILE.size * tiles
    table_size = head_size - table_at
    if table_size < 0 or table_size % _ENTRY_SECTION.size:
        raise BitstreamError(
            f"byte 6, head_size: {head_size} is not {table_at} for {tiles} tiles "
            f"plus a multiple of {_ENTRY_SECTION.size} for sections"
        )
    sections = tuple(_read_section_table(view[table_at:head_size], table_at, head_size))
    if {section.type for section in sections} >= ALPHA_TYPES:
        raise BitstreamError(f"byte {table_at}, {_TWO_PLANES}")
    metadata_bytes = sum(section.size for section in sections if section.type not in PIXEL_TYPES)
    _check_limit("bytes of metadata", metadata_bytes, limits.max_metadata_bytes, "max_metadata_bytes")

    offset = head_size + sum(section.size for section in sections)
    directory = []
    for size, crc, channels in _ENTRY_TILE.iter_unpack(view[_TABLES_AT:table_at]):
        directory.append(Tile(offset, size, channels, crc))
        offset += size
    index = FileIndex(header, tuple(directory), sections, head_size, offset)
    coded = header.latents_crc32 or any(tile.size or tile.channels or tile.crc32 for tile in directory)
    if index.keeps_pixels and coded:
        raise BitstreamError(f"byte {_TABLES_AT}, tile directory: latents beside section LOSSLESS")
    return index


def read_bitstream(
    data: BytesLike,
    limits: Limits = Limits(),
    damaged: Literal["raise", "report"] = "raise",
) -> Bitstream:
    """Reads a whole file and checks every CRC; nothing is copied.

    Args:
        data: the file, nothing before or after it.
        limits: what the file may ask for.
        damaged: "raise" refuses a file with a damaged section or payload; "report" lists damaged ones in the
            result, those cut off by the end of the file included. The head must be intact in both.
    Raises:
        BitstreamError, UnsupportedError, LimitError: as `read_header`; also for a file that is longer than
            its head says or, with damaged="raise", shorter or altered anywhere.
    """
    return Container.open(Memory(data), limits).read(damaged=damaged)


@dataclass(frozen=True)
class Container:
    """A file whose head was read and checked; its sections and payloads are read when they are asked for.

    Attributes:
        source: the file, nothing before or after it.
        index: what the head says.
    """

    source: Source
    index: FileIndex

    @property
    def header(self) -> Header:
        """The fixed fields."""
        return self.index.header

    @classmethod
    def open(cls, source: Source, limits: Limits = Limits()) -> Container:
        """Read the head alone. Raises as `read_header`, and OSError."""
        head = source.read(0, _PREAMBLE.size)
        if len(head) == _PREAMBLE.size:
            _, _, _, head_size, _ = _PREAMBLE.unpack(head)
            head = source.read(0, max(head_size, _PREAMBLE.size))
        return cls(source, read_header(head, limits))

    def read(
        self,
        tiles: Collection[int] | None = None,
        damaged: Literal["raise", "report"] = "raise",
        sections: Collection[int] | None = None,
    ) -> Bitstream:
        """Sections and the payloads of some tiles, every CRC of them checked.

        Args:
            tiles: which; None: all. Nothing is read of others.
            damaged: as for `read_bitstream`.
            sections: types of those that are wanted; None: all.
        Raises:
            BitstreamError: as `read_bitstream`; a file that is shorter than its head says is refused whichever tiles
                are asked for, unless damaged="report". OSError.
        """
        if damaged not in ("raise", "report"):
            raise ValueError(f"damaged={damaged!r}: choose 'raise' or 'report'")
        index, size = self.index, self.source.size
        if size > index.file_size:
            raise BitstreamError(
                f"byte {index.file_size}: {size - index.file_size} bytes follow the end of the last payload"
            )
        if size < index.file_size and damaged == "raise":
            raise BitstreamError(f"truncated: {size} bytes of {index.file_size}")
        chosen = sorted(range(len(index.tiles)) if tiles is None else set(tiles))
        wanted = [section for section in index.sections if sections is None or section.type in sections]
        bodies = self._bodies([*wanted, *(index.tiles[number] for number in chosen)])

        metadata, damaged_sections = {}, []
        for section in wanted:
            body = next(bodies)
            if _is_whole(body, section):
                metadata[section.type] = body
            elif damaged == "raise":
                raise BitstreamError(f"byte {section.offset}, section {section.name}: CRC-32 does not match")
            else:
                damaged_sections.append(section.type)
        payloads, damaged_tiles, beginnings = [memoryview(b"")] * len(index.tiles), [], {}
        for number in chosen:
            tile, body = index.tiles[number], next(bodies)
            if _is_whole(body, tile):
                payloads[number] = body
                continue
            if damaged == "raise":
                raise BitstreamError(f"byte {tile.offset}, payload of tile {number}: CRC-32 does not match")
            damaged_tiles.append(number)
            if 0 < len(body) < tile.size:
                beginnings[number] = body
        skipped = frozenset(range(len(index.tiles))).difference(chosen)
        return Bitstream(
            index, tuple(payloads), metadata, tuple(damaged_tiles), tuple(damaged_sections), beginnings, skipped
        )

    def _bodies(self, parts: Sequence[Tile | Section]) -> Iterator[memoryview]:
        """The bytes of parts in the order of the file, as far as there are any; neighbours are read together."""
        start = 0
        while start < len(parts):
            stop = start + 1
            while stop < len(parts) and parts[stop].offset == parts[stop - 1].offset + parts[stop - 1].size:
                stop += 1
            first, last = parts[start], parts[stop - 1]
            run = self.source.read(first.offset, last.offset + last.size - first.offset)
            for part in parts[start:stop]:
                yield run[part.offset - first.offset :][: part.size]
            start = stop


def _check_preamble(view: memoryview) -> int:
    """Checks magic, version, size and CRC-32 of the head, then the flags; returns head_size."""
    magic = bytes(view[: len(MAGIC)])
    if not MAGIC.startswith(magic):
        raise BitstreamError(f"byte 0, magic: not an L2C file (starts with {magic.hex()}, not {MAGIC.hex()})")
    if len(view) > 4 and view[4] != VERSION:
        raise UnsupportedError(f"byte 4, version: format version {view[4]}, this reader knows {VERSION}")
    if len(view) < _PREAMBLE.size:
        raise BitstreamError(f"truncated: {len(view)} bytes, the preamble alone has {_PREAMBLE.size}")
    _, _, flags, head_size, crc = _PREAMBLE.unpack_from(view)
    if head_size < _TABLES_AT + _ENTRY_TILE.size:
        raise BitstreamError(f"byte 6, head_size: {head_size} is less than any file has")
    if head_size > len(view):
        raise BitstreamError(f"truncated: {len(view)} bytes, the head alone has {head_size} (byte 6, head_size)")
    if zlib.crc32(view[_FIELDS_AT:head_size], zlib.crc32(view[:_CRC_AT])) != crc:
        raise BitstreamError(f"byte {_CRC_AT}, head_crc32: the head (bytes 0..{head_size - 1}) is altered")
    if flags:
        raise UnsupportedError(f"byte 5, flags: 0x{flags:02x}, this reader knows none")
    return int(head_size)


def _read_fields(view: memoryview) -> Header:
    """Reads and checks bytes 14..39."""
    width, height, model_id, latents_crc32, quality, levels, mode, bit_depth, tile_log2 = _FIELDS.unpack_from(
        view, _FIELDS_AT
    )
    values = {
        "width": width,
        "height": height,
        "latents_crc32": latents_crc32,
        "quality": quality,
        "latent_bits": levels & 15,
        "metric_mix": levels >> 4,
        "bit_depth": bit_depth,
    }
    for name, value in values.items():
        _check_range(name, value, where=f"byte {_RANGES[name][0]}, ")
    if mode >= len(MODES):
        raise BitstreamError(f"byte {_MODE_AT}, mode: {mode} is outside 0..{len(MODES) - 1}")
    if tile_log2 > _TILE_LOG2_MAX:
        raise BitstreamError(f"byte {_TILE_LOG2_AT}, tile_log2: {tile_log2} is outside 0..{_TILE_LOG2_MAX}")
    return Header(model_id=model_id, mode=MODES[mode], tile_size=TILE_SIZES[tile_log2], **values)


def _read_section_table(table: memoryview, table_at: int, head_size: int) -> Iterator[Section]:
    """Reads and checks the section table; offsets count from the start of the file."""
    previous = -1
    offset = head_size
    for number, (type_, size, crc) in enumerate(_ENTRY_SECTION.iter_unpack(table)):
        where = f"byte {table_at + number * _ENTRY_SECTION.size}, section {section_name(type_)}"
        if type_ <= previous:
            raise BitstreamError(f"{where}: types must increase, the one before is {section_name(previous)}")
        _check_section_type(type_, where)
        if size == 0:
            raise BitstreamError(f"{where}: size 0")
        yield Section(type_, offset, size, crc)
        previous = type_
        offset += size


def _check_section_type(type_: int, where: str) -> None:
    if not 0 <= type_ < 2**16:
        raise BitstreamError(f"{where}: type {type_} is outside 0..65535")
    if type_ < FIRST_ANCILLARY and type_ not in UNDERSTOOD:
        raise UnsupportedError(f"{where}: critical section {section_name(type_)}, which this version cannot apply")


def _check_range(name: str, value: int, where: str = "") -> None:
    _, least, greatest = _RANGES[name]
    if not least <= value <= greatest:
        raise BitstreamError(f"{where}{name}: {value} is outside {least}..{greatest}")


def _check_limit(what: str, value: int, limit: int | None, name: str) -> None:
    if limit is not None and value > limit:
        raise LimitError(f"the file asks for {value} {what}, the limit is {limit} (Limits.{name})")


def _is_whole(body: memoryview, part: Tile | Section) -> bool:
    """Whether the bytes of a tile or section are all there and have its CRC."""
    return len(body) == part.size and zlib.crc32(body) == part.crc32
