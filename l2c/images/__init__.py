"""Pictures in and out: whatever a user hands over -> uint8 RGB and what is kept beside it; back to a file.

What is kept without loss: alpha, ICC profile, EXIF and XMP (Orientation is applied to the pixels, then its tag is set
to 1), dots per inch. What the codec gets is always uint8 RGB; `Picture.mode` and `Picture.bit_depth` say what it came
from. Colours that a file describes without an ICC profile (PNG's gAMA, cHRM and cICP) get one that says the same.

    source                            becomes                                           comes back as
    L, 1, LA, L or 1 with a key       grey in all three channels                        L, LA
    RGB, RGBA, RGB with a key         itself                                            RGB, RGBA
    P, PA                             its colours                                       RGB, RGBA
    CMYK                              sRGB, through its ICC profile where it has one    RGB
    YCbCr, HSV, LAB                   RGB (LAB through an ICC transform to sRGB)        RGB
    I;16, I, 16-bit colour, uint16    8 bits, with a warning                            L, RGB, RGBA
    F, in 0..1 or 0..255              8 bits, with a warning                            L
    float arrays and tensors, 0..1    8 bits                                            L, LA, RGB, RGBA
"""

from l2c.images.load import MAX_PIXELS, load_picture
from l2c.images.picture import Metadata, Picture, keep, to_original
from l2c.images.save import check_output_format, save_picture, to_pil, with_metadata

__all__ = [
    "MAX_PIXELS",
    "Metadata",
    "Picture",
    "check_output_format",
    "keep",
    "load_picture",
    "save_picture",
    "to_original",
    "to_pil",
    "with_metadata",
]
