"""L2C files in Pillow, and in all that reads and writes through it: `import l2c.pillow` registers the format.

    import l2c.pillow
    from PIL import Image

    image = Image.open("photo.l2c")         # size, mode, profile, EXIF, XMP: of the head alone, without PyTorch
    image.thumbnail((256, 256))             # decoded small (`draft`)
    image.save("other.l2c", bpp=0.5)        # every option of `l2c.encode`; without one, quality 50

A file that is damaged is an error of Pillow's kind (UnidentifiedImageError where its head is, OSError on loading), or
filled in with a warning where `ImageFile.LOAD_TRUNCATED_IMAGES` is set.
"""

from __future__ import annotations

import warnings
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from PIL import Image, ImageFile

from l2c import codec, images
from l2c.codec.options import SCALES, EncodeOptions
from l2c.codec.views import View
from l2c.errors import L2CError, L2CWarning
from l2c.format.bitstream import ALPHA_TYPES, DPI, EXIF, ICC, MAGIC, XMP, Container, Limits
from l2c.format.metadata_sections import unpack_dpi, unpack_xmp
from l2c.format.source import OpenFile
from l2c.images.picture import GREY_MODES

if TYPE_CHECKING:
    from l2c.codec import Codec
    from l2c.codec.options import Scale

FORMAT, MIME = "L2C", "image/x-l2c"
_codec: Codec | None = None


def use(chosen: Codec | None) -> None:
    """What decodes and encodes from now on: a codec, on a GPU say; None: that of `l2c.decode`, made when needed."""
    global _codec
    _codec = chosen


def _in_use() -> Codec:
    return codec.shared_codec() if _codec is None else _codec


class L2CImageFile(ImageFile.ImageFile):
    """An L2C file that Pillow has opened; pixels are decoded when they are asked for."""

    format, format_description = FORMAT, "L2C learned image codec"
    _scale: Scale = 1
    _container: Container | None = None  # until the pixels are here

    def _open(self) -> None:
        try:
            container = Container.open(OpenFile(self._file()), Limits(max_pixels=None))
            kept = container.read([], "report", {ICC, EXIF, XMP, DPI}).metadata
            xmp = unpack_xmp(kept[XMP]) if XMP in kept else None
            dpi = unpack_dpi(kept[DPI]) if DPI in kept else None
        except L2CError as error:
            raise SyntaxError(str(error)) from error  # what Pillow expects of a plugin
        self._container, header = container, container.header
        has_alpha = any(section.type in ALPHA_TYPES for section in container.index.sections)
        self._mode = ("L" if header.mode in GREY_MODES else "RGB") + ("A" if has_alpha else "")
        self._size = header.width, header.height
        icc, exif = (bytes(kept[kind]) if kind in kept else None for kind in (ICC, EXIF))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", L2CWarning)  # loading warns of what it leaves out
            shown = images.with_metadata(Image.new(self._mode, (1, 1)), icc=icc, exif=exif, xmp=xmp, dpi=dpi)
        self.info.update(shown.info)

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Make the picture 2, 4 or 8 times smaller when it is loaded, but not smaller than `size`."""
        if self._container is None or size is None:
            return None
        header = self._container.header
        share = min(header.width / size[0], header.height / size[1])
        self._scale = max((scale for scale in SCALES if scale <= share), default=1)
        height, width = View(None, self._scale).size(header.height, header.width)
        self._size = width, height
        return self.mode, (0, 0, header.width / self._scale, header.height / self._scale)

    def load(self) -> Image.core.PixelAccess | None:
        """Decode the pixels. Raises OSError, as Pillow's own formats do."""
        if self._container is not None:
            conceal = ImageFile.LOAD_TRUNCATED_IMAGES
            try:
                picture = _in_use().decode(
                    self._container, as_="pil", scale=self._scale, damaged="conceal" if conceal else "raise"
                )
            except L2CError as error:
                raise OSError(str(error)) from error
            self.im, self._mode, self._size = picture.im, picture.mode, picture.size
            self.info.update(picture.info)
            self.tile = []
            self._release()
        return Image.Image.load(self)

    def verify(self) -> None:
        """Check every part's CRC, without PyTorch; the picture has to be opened again afterwards. Raises OSError."""
        if self._container is None:
            raise RuntimeError("verify must be called directly after open")
        try:
            self._container.read()
        except L2CError as error:
            raise OSError(str(error)) from error
        self._release()

    def _release(self) -> None:
        """Nothing more is read of the file."""
        if self._exclusive_fp and self._close_exclusive_fp_after_loading:
            self._file().close()
        self.fp = self._container = None

    def _file(self) -> BinaryIO:
        assert self.fp is not None
        return self.fp  # type: ignore[return-value]


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _save(image: Image.Image, file: IO[bytes], name: str | bytes) -> None:
    """Write an image with the options of `l2c.encode` that `Image.save` was given; others are Pillow's to ignore.

    As with PNG and WebP, what `info` has of icc_profile, exif, xmp and dpi is kept unless `save` says otherwise.
    """
    asked = dict(image.encoderinfo)
    options: Any = {key: asked.pop(key) for key in EncodeOptions.__annotations__ if key in asked}
    changed = {key: asked[key] for key in ("icc_profile", "exif", "xmp", "dpi") if key in asked}
    if isinstance(changed.get("exif"), Image.Exif):
        changed["exif"] = changed["exif"].tobytes()
    if changed:
        image = image.copy()
        image.info = {key: value for key, value in (image.info | changed).items() if value or key not in changed}
    try:
        data = _in_use().encode(image, **options)
    except L2CError as error:
        raise OSError(f"cannot write as {FORMAT}: {error}") from error
    file.write(data)


Image.register_open(FORMAT, L2CImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".l2c")
Image.register_mime(FORMAT, MIME)
