"""Pillow's process-wide switches while pictures are read, and what it raises in words of ours."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from l2c.errors import ImageError, L2CError, LimitError, one_line
from l2c.format.metadata_sections import MAX_XMP_BYTES

MAX_TEXT_BYTES = MAX_XMP_BYTES  # of a compressed text, XMP packet or profile in a PNG file, and of all its texts

_limit_lock = threading.Lock()


class _Settings:
    """Pillow's process-wide switches while pictures are read.

    Its limits on text in PNG files become ours while anyone reads. LOAD_TRUNCATED_IMAGES is for one reader alone, so
    that nobody else's broken picture passes for a whole one.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0  # -1: one that takes truncated pictures, and no other
        self._before = (0, 0, False)

    @contextlib.contextmanager
    def reading(self, truncated: bool = False) -> Iterator[None]:
        """Enters one reader."""
        with self._condition:
            self._condition.wait_for(lambda: self._readers == 0 or (self._readers > 0 and not truncated))
            if self._readers == 0:
                self._before = (
                    PngImagePlugin.MAX_TEXT_CHUNK,
                    PngImagePlugin.MAX_TEXT_MEMORY,
                    ImageFile.LOAD_TRUNCATED_IMAGES,
                )
                PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES
            if truncated:
                ImageFile.LOAD_TRUNCATED_IMAGES = True
            self._readers = -1 if truncated else self._readers + 1
        try:
            yield
        finally:
            with self._condition:
                self._readers = 0 if truncated else self._readers - 1
                if self._readers == 0:
                    (
                        PngImagePlugin.MAX_TEXT_CHUNK,
                        PngImagePlugin.MAX_TEXT_MEMORY,
                        ImageFile.LOAD_TRUNCATED_IMAGES,
                    ) = self._before
                self._condition.notify_all()


settings = _Settings()


@contextlib.contextmanager
def for_opening(libtiff: bool = False) -> Iterator[None]:
    """Lifts Pillow's process-wide pixel limit while a header is read; the caller checks its own right after.

    Opening decodes no pixels. Decoding runs outside of this, so that the time without a guard is short.

    Args:
        libtiff: TIFF files are read by libtiff, the uncompressed ones too.
    """
    with _limit_lock:
        before = Image.MAX_IMAGE_PIXELS, TiffImagePlugin.READ_LIBTIFF
        Image.MAX_IMAGE_PIXELS = None
        TiffImagePlugin.READ_LIBTIFF = libtiff or before[1]
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, TiffImagePlugin.READ_LIBTIFF = before


@contextlib.contextmanager
def pillow_errors(name: str) -> Iterator[None]:
    """Turns what Pillow raises into an ImageError of one line."""
    try:
        yield
    except (L2CError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LimitError(f"{name}: {one_line(error)}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture in a format that Pillow reads") from error
    except Exception as error:  # parsers of broken files raise nearly everything
        if "MAX_TEXT" in str(error):
            raise LimitError(
                f"{name}: more than {MAX_TEXT_BYTES} bytes of text, XMP or ICC profile, unpacked"
            ) from error
        raise ImageError(f"{name}: cannot be read: {one_line(error)}") from error
