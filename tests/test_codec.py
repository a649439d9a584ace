"""The whole path with tiny untrained models: any size, any input, exactness, tiles, errors."""

import copy
import dataclasses
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import l2c
from l2c import metrics, ops, transforms
from l2c.adapt import bias_sets, sequential
from l2c.codec import session
from l2c.codec.latent_stage import Latents
from l2c.config import ModelConfig
from l2c.entropy import multiscale
from l2c.entropy.multiscale import MultiscaleConfig
from l2c.entropy.multiscale.backends import stepwise
from l2c.entropy.multiscale.backends.cpu import CpuBackend
from l2c.errors import (
    BackendError,
    BitstreamError,
    ImageError,
    L2CWarning,
    LimitError,
    ModelMismatchError,
    RateError,
    UnsupportedError,
)
from l2c.format.bitstream import Header, read_bitstream, read_header, write_bitstream
from l2c.format.levels import OperatingPoint
from l2c.models import save_model
from l2c.transforms import BlockConfig


def drawn(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth picture with an edge and some grain, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([128 + 90 * np.sin(x / 17 + k) * np.cos(y / (11 + k)) for k in range(3)], axis=2)
    base += np.where(x + 2 * y > width, 30, -30)[..., None] + rng.normal(0, 6, (height, width, 3))
    return base.clip(0, 255).astype(np.uint8)


def faint(height: int, width: int) -> np.ndarray:
    """The same with so little contrast that no latents clip, where quality is what was asked for."""
    return drawn(height, width) // 4 + np.uint8(96)


@pytest.fixture(scope="module")
def codec(tiny_model_path) -> l2c.Codec:
    return l2c.Codec(tiny_model_path)


def test_round_trip_keeps_shape_and_latents(codec) -> None:
    picture = drawn(75, 110)
    encoded = codec.encode_detailed(picture, quality=70)
    decoded = codec.decode(encoded.data)
    assert decoded.shape == picture.shape
    assert decoded.dtype == np.uint8
    assert encoded.bpp == 8 * len(encoded.data) / (75 * 110)
    assert codec.verify(encoded.data) == encoded.latents_sha256
    # Even an untrained model starts as a block transform coder, so the picture must come back recognisably.
    assert np.abs(decoded.astype(int) - picture).mean() < 25


def test_sizes_from_1_to_70_alone_and_in_mixed_batches(codec) -> None:
    """980 sizes, encoded and entropy-decoded in mixed batches, each of them decoded alone as well.

    Of each height every fifth width, another fifth for the next height: all remainders of both sides by 8 and all
    sizes of latents come together.
    """
    sizes = [(h, w) for h in range(1, 71) for w in range(1, 71) if (2 * h + w) % 5 == 0]
    assert len({(-h % 8, -w % 8) for h, w in sizes}) == 64 and len({(-(-h // 8), -(-w // 8)) for h, w in sizes}) == 81
    source = drawn(70, 70)
    for start in range(0, len(sizes), 490):
        part = sizes[start : start + 490]
        pictures = [source[:h, :w] for h, w in part]
        files = codec.encode_batch(pictures, quality=40)
        streams = [read_bitstream(f) for f in files]
        together = codec.read_latents(streams)
        for picture, file, stream, symbols in zip(pictures, files, streams, together):
            assert (stream.header.height, stream.header.width) == picture.shape[:2]
            alone = codec.decode_detailed(file)
            assert alone.latents_sha256 == hashlib.sha256(symbols).hexdigest()
            assert alone.picture.rgb.shape == picture.shape


@pytest.mark.parametrize(
    "name, s, c, groups",
    [("wide8", 8, 64, (16, 48)), ("wide16", 16, 192, (192,)), ("small4", 4, 8, (3, 5))],
)
def test_any_down_sampling_and_channel_count(tmp_path, name: str, s: int, c: int, groups: tuple[int, ...]) -> None:
    config = ModelConfig(name, BlockConfig(s, c, 8, 1, 1, 4, mask=True), MultiscaleConfig(3, groups, 2, 8))
    whole_path(config, tmp_path)


@pytest.mark.parametrize("codec_name", ["c8b8", "c6b8", "c3b4", "c1b4"])
def test_four_codec_set_runs_with_tiny_widths(tmp_path, configs, codec_name: str) -> None:
    config = ModelConfig.from_file(configs / f"{codec_name}.json")
    config = dataclasses.replace(
        config,
        transform=dataclasses.replace(config.transform, width=8),
        probability=dataclasses.replace(config.probability, width=8),
    )
    whole_path(config, tmp_path)


def whole_path(config: ModelConfig, folder) -> None:
    torch.manual_seed(0)
    path = folder / f"{config.name}.safetensors"
    probability = multiscale.IntegerModel.from_float(config.float_model())
    save_model(path, config, transforms.Transform(config.transform), probability, [])
    codec = l2c.Codec(path)
    picture = drawn(45, 83)
    for b in {1, config.bits}:
        data = codec.encode(picture, quality=60, b=b)
        assert codec.decode(data).shape == picture.shape
        reference = l2c.Codec(path, backend="reference")
        assert reference.verify(data) == codec.verify(data)


def test_backends_and_batches_give_identical_files(tiny_model_path) -> None:
    pictures = [drawn(40, 61), drawn(9, 100), drawn(64, 64)]
    codecs = [l2c.Codec(tiny_model_path, backend=b, threads=t) for b in ("cpu", "torch", "reference") for t in (1, 2)]
    analysed = codecs[0].transform_stage.analyse(pictures, [500] * 3, 4, 8)
    parts = [Latents(part.symbols, OperatingPoint(500, 4, 8)) for part in analysed]
    sizes = [p.shape[:2] for p in pictures]
    expected = [written[1:] for written in codecs[0].latent_stage.write(sizes, parts, 1024)]
    for codec in codecs[1:]:
        assert [written[1:] for written in codec.latent_stage.write(sizes, parts, 1024)] == expected
    files = codecs[0].encode_batch(pictures, quality=50)
    for codec in codecs:
        assert [codec.verify(f) for f in files] == [codecs[0].verify(f) for f in files]


def test_tiles_do_not_show_in_the_pixels(codec, monkeypatch) -> None:
    """The same latents decoded whole and in small chunks differ by at most one level; so do E's latents rarely."""
    picture = drawn(600, 700)
    whole = codec.encode(picture, quality=60, tile=1024)
    tiled = codec.encode(picture, quality=60, tile=512)
    assert len(read_header(tiled).tiles) == 4
    assert codec.verify(whole) == codec.verify(tiled)
    full = codec.decode(whole).astype(int)
    monkeypatch.setattr(codec.transform_stage, "chunk", 128)
    assert np.abs(codec.decode(tiled).astype(int) - full).max() <= 1
    stream = read_bitstream(codec.encode(picture, quality=60))
    chunked = codec.read_latents([stream])[0]
    original = codec.read_latents([read_bitstream(whole)])[0]
    assert (chunked != original).mean() < 1e-3


def test_rate_target_is_met_from_below(codec) -> None:
    picture = drawn(256, 256)
    least = codec.encode_detailed(picture, quality=0).bpp
    most = codec.encode_detailed(picture, quality=100).bpp
    for share in (0.1, 0.5, 0.9):
        target = least + share * (most - least)
        encoded = codec.encode_detailed(picture, bpp=target)
        assert encoded.target_reached == (encoded.bpp >= 0.98 * target)
        assert 0.95 * target <= encoded.bpp <= target
        assert encoded.bpp == 8 * len(encoded.data) / picture[..., 0].size


def test_rate_out_of_reach(codec) -> None:
    with pytest.raises(RateError, match="least rate is") as caught:
        codec.encode(drawn(16, 16), bpp=0.01)
    assert caught.value.least_bpp > 0.01
    encoded = codec.encode_detailed(faint(64, 64), bpp=50.0, lossless="never")
    assert not encoded.target_reached
    assert "needs only" in encoded.reason
    assert encoded.quality == 100.0


def test_quality_is_monotone_in_rate(codec) -> None:
    picture = faint(128, 160)
    sizes = [len(codec.encode(picture, quality=q)) for q in range(0, 101, 10)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]


def test_outputs(codec) -> None:
    picture = drawn(30, 50)
    data = codec.encode(picture)
    array = codec.decode(data)
    tensor = codec.decode(data, as_="torch")
    assert tensor.shape == (3, 30, 50)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), array)
    assert np.array_equal(np.asarray(codec.decode(data, as_="pil")), array)
    with pytest.raises(UnsupportedError, match="as_"):
        codec.decode(data, as_="jpeg")
    with pytest.raises(UnsupportedError, match="its path or a file object, not as ndarray"):
        codec.decode(array)
    with pytest.raises(FileNotFoundError):
        codec.decode("no-picture.l2c")
    with pytest.raises(UnsupportedError, match="mode"):
        codec.decode(data, mode="gray")


def test_inputs_are_equivalent(codec, tmp_path) -> None:
    picture = drawn(33, 41)
    Image.fromarray(picture).save(tmp_path / "p.png")
    sources = [
        picture,
        tmp_path / "p.png",
        str(tmp_path / "p.png"),
        (tmp_path / "p.png").read_bytes(),
        Image.fromarray(picture),
        torch.from_numpy(picture),
        torch.from_numpy(picture).permute(2, 0, 1),
    ]
    assert len({codec.encode(source) for source in sources}) == 1
    as_float = codec.encode_detailed(picture.astype(np.float64) / 255.0)  # its file differs in the original bit depth
    assert as_float.latents_sha256 == codec.encode_detailed(picture).latents_sha256


def test_alpha_and_grey_come_back_in_original_mode(codec) -> None:
    alpha = (np.arange(40 * 30).reshape(40, 30) % 251).astype(np.uint8)
    rgba = np.dstack((drawn(40, 30), alpha))
    back = codec.decode(codec.encode(rgba), mode="original")
    assert back.shape == (40, 30, 4)
    assert np.array_equal(back[..., 3], alpha)
    grey = codec.decode(codec.encode(drawn(20, 20)[..., 0]), mode="original")
    assert grey.shape == (20, 20)
    tensor = codec.decode(codec.encode(rgba), as_="torch", mode="original")
    assert tensor.shape == (4, 40, 30)


def test_a_pil_image_is_the_original_by_default(codec) -> None:
    """Alpha and grey come back to Pillow's users; arrays and tensors have three channels unless asked otherwise."""
    alpha = (np.arange(24 * 30).reshape(24, 30) % 251).astype(np.uint8)
    sources = {
        "RGB": drawn(24, 30),
        "L": drawn(24, 30)[..., 0],
        "RGBA": np.dstack((drawn(24, 30), alpha)),
        "LA": np.dstack((drawn(24, 30)[..., :1], alpha)),
    }
    for expected, source in sources.items():
        data = codec.encode(source)
        image = codec.decode(data, as_="pil")
        assert image.mode == expected
        if "A" in expected:
            assert np.array_equal(np.asarray(image)[..., -1], alpha)
        (batched,) = codec.decode_batch([data], as_="pil")
        assert batched.mode == expected
        assert codec.decode(data, as_="pil", mode="original").mode == expected
        assert codec.decode(data, as_="pil", mode="rgb").mode == "RGB"
        assert codec.decode(data).shape == (24, 30, 3)
        assert codec.decode(data, as_="torch").shape == (3, 24, 30)
        assert codec.decode(data, mode="rgb").shape == (24, 30, 3)


def test_the_module_decodes_to_pil_as_the_codec_does(codec, monkeypatch) -> None:
    monkeypatch.setattr(session, "shared_codec", lambda *_: codec)
    data = codec.encode(np.dstack((drawn(9, 8), np.full((9, 8), 7, np.uint8))))
    assert l2c.decode(data, as_="pil").mode == "RGBA"
    assert l2c.decode(data, as_="pil", mode="rgb").mode == "RGB"
    assert l2c.decode(data).shape == (9, 8, 3)


def test_icc_and_exif_are_kept(codec) -> None:
    from PIL import ImageCms

    image = Image.fromarray(drawn(20, 20))
    exif = Image.Exif()
    exif[0x010E] = "a picture"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif, icc_profile=profile)
    data = codec.encode(buffer.getvalue())
    decoded = codec.decode(data, as_="pil")
    assert decoded.info["icc_profile"] == profile
    assert decoded.getexif()[0x010E] == "a picture"
    again = io.BytesIO()
    decoded.save(again, "JPEG", exif=decoded.info["exif"])
    assert Image.open(again).getexif()[0x010E] == "a picture"
    assert len(codec.encode(buffer.getvalue(), metadata=False)) < len(data) - len(profile)


@pytest.mark.parametrize(
    "options",
    [{"bpp": 0.5, "quality": 3}, {"bpp": -1.0}, {"bpp": float("nan")}, {"quality": 101}, {"metric": "vmaf"},
     {"effort": 10}, {"effort": -1}, {"effort": 1.5}, {"effort": True}, {"max_bytes": 0}, {"max_bytes": 10.5},
     {"max_bytes": 10**400}, {"bpp": 10**400}, {"progress": 5}, {"effort": 1, "tile": 4096},
     {"psnr": 0}, {"psnr": 30, "bpp": 1}, {"msssim": 1.0}, {"msssim": 0}, {"max_seconds": 0},
     {"b": 0}, {"b": 9}, {"tile": 100}, {"tile": 1536}],
)  # fmt: skip
def test_bad_options(codec, options) -> None:
    with pytest.raises(UnsupportedError):
        codec.encode(drawn(8, 8), **options)


@pytest.mark.parametrize(
    "image",
    [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 3), bool), np.full((5, 5, 3), np.nan), b"", b"not a picture",
     "no/such/file.png", np.zeros((2, 2, 2, 3), np.uint8)],
)  # fmt: skip
def test_bad_pictures(codec, image) -> None:
    with pytest.raises(ImageError):
        codec.encode(image)


def test_bad_files(codec) -> None:
    data = codec.encode(drawn(40, 40), quality=30)
    for wrong in (b"", b"x", data[:10], data[:-1], data + b"\0", b"\x89PNG" + data):
        with pytest.raises(BitstreamError):
            codec.decode(wrong)
    for position in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        with pytest.raises((BitstreamError, UnsupportedError)):
            codec.decode(bytes(flipped))


def rewritten(data: bytes, **changes) -> bytes:
    """The same payloads under a header with other fields and right CRCs: only the codec can notice."""
    stream = read_bitstream(data)
    header = dataclasses.replace(stream.header, **changes)
    return write_bitstream(header, stream.payloads, [t.channels for t in stream.tiles])


def test_lies_with_valid_crcs(codec) -> None:
    data = codec.encode(drawn(40, 40), quality=30)
    for changes in (
        {"quality": 301},
        {"width": 48},
        {"height": 9},
        {"latent_bits": 7},
        {"metric_mix": 0},
        {"latents_crc32": 1},
    ):
        with pytest.raises(BitstreamError):
            codec.decode(rewritten(data, **changes))
    with pytest.raises(ModelMismatchError, match="ffffffff") as caught:
        codec.decode(rewritten(data, model_id=b"\xff" * 8))
    assert caught.value.wanted == "ff" * 8
    stream = read_bitstream(data)
    with pytest.raises(BitstreamError, match="channels"):
        codec.decode(write_bitstream(stream.header, stream.payloads, [999]))


def test_limits(codec, tiny_model_path) -> None:
    data = codec.encode(drawn(40, 50))
    with pytest.raises(LimitError):
        l2c.Codec(tiny_model_path, limits=l2c.Limits(max_pixels=1999)).decode(data)
    assert l2c.Codec(tiny_model_path, limits=l2c.Limits(max_pixels=2000)).decode(data).shape == (40, 50, 3)


def test_other_models_are_found_by_id(codec, tiny_model_path, tmp_path, monkeypatch) -> None:
    config = ModelConfig("other", BlockConfig(8, 6, 8, 1, 1), MultiscaleConfig(2, (6,), 1, 4))
    torch.manual_seed(1)
    path = tmp_path / "other.safetensors"
    probability = multiscale.IntegerModel.from_float(config.float_model())
    save_model(path, config, transforms.Transform(config.transform), probability, [])
    other = l2c.Codec(path)
    picture = drawn(31, 22)
    files = [codec.encode(picture), other.encode(picture), codec.encode(picture, quality=20)]
    with pytest.raises(ModelMismatchError, match=other.model.model_id.hex()):
        codec.decode(files[1])
    monkeypatch.setenv("L2C_MODEL_PATH", str(tmp_path))
    decoded = codec.decode_batch(files)
    assert np.array_equal(decoded[1], other.decode(files[1]))
    assert np.array_equal(decoded[0], codec.decode(files[0]))


def break_the_cpu_path(monkeypatch) -> None:
    """From here on the C++ form of a model has another bias in the head of its second step."""
    right = CpuBackend.tile_coder

    def wrong(backend):
        model = backend.weights
        w4 = dataclasses.replace(model.steps[1].w4, bias=model.steps[1].w4.bias + 500)
        other = copy.copy(model)
        other.steps = (model.steps[0], dataclasses.replace(model.steps[1], w4=w4), *model.steps[2:])
        return right(CpuBackend(other))

    monkeypatch.setattr(CpuBackend, "tile_coder", wrong)


def test_wrong_integers_fall_back_to_the_exact_path(tiny_model_path, monkeypatch) -> None:
    """A backend that computes other integers than the encoder must not lose the picture."""
    monkeypatch.delenv("L2C_BACKEND", raising=False)
    codec = l2c.Codec(tiny_model_path)
    picture = drawn(50, 50)
    data = codec.encode(picture)
    expected = codec.decode(data)
    break_the_cpu_path(monkeypatch)
    with pytest.warns(L2CWarning, match="cpu backend decoded wrongly"):
        assert np.array_equal(codec.decode(data), expected)
    with pytest.warns(L2CWarning, match="exact slow path"):
        assert l2c.Codec(tiny_model_path).backend == "reference"
    with pytest.raises(BackendError, match="computes other integers"):
        l2c.Codec(tiny_model_path, backend="cpu")


def test_a_second_implementation_that_is_wrong_is_not_asked(tiny_model_path, monkeypatch) -> None:
    codec = l2c.Codec(tiny_model_path)
    picture = drawn(20, 20)
    data = codec.encode(picture)
    expected = codec.verify(data)
    break_the_cpu_path(monkeypatch)
    step = stepwise.TorchEngine.step
    monkeypatch.setattr(stepwise.TorchEngine, "step", lambda self, index: [part + 1 for part in step(self, index)])
    with pytest.warns(L2CWarning, match="the reference backend was used"):
        assert codec.verify(data) == expected


def test_header_is_small(codec) -> None:
    data = codec.encode(drawn(512, 768), quality=20)
    sizes = read_header(data).part_sizes()
    assert len(data) - sizes["payloads"] <= 64
    assert read_header(data).header.latents_crc32 == zlib.crc32(codec.read_latents([read_bitstream(data)])[0])


def test_small_files_cannot_ask_for_much(tiny_model_path, monkeypatch) -> None:
    """What a file of some bytes with valid CRCs can make the decoder do (numbers: tests/fuzz/README.md)."""
    codec = l2c.Codec(tiny_model_path, backend="cpu")
    nothing = ops.range_encoder().finish()
    passes = []
    code = codec.latent_stage.code

    def counted(jobs, backend):
        passes.append((backend, len(jobs)))
        return code(jobs, backend)

    monkeypatch.setattr(codec.latent_stage, "code", counted)

    def lie(width: int, height: int, channels: int, tile: int = 1 << 12) -> bytes:
        header = Header(width, height, codec.model.model_id, 1, 500, 8, tile_size=tile)
        return write_bitstream(header, [nothing] * header.tile_count, [channels] * header.tile_count)

    # Every tile ends as it should: that the CRC of all latents is another one is the file's fault.
    with pytest.raises(l2c.BitstreamError, match="do not match the CRC"):
        codec.verify(lie(4096, 4096, 0))
    assert passes == [("cpu", 1)]
    # Two agree that a tile is wrong: the reference, 200 times slower, is not asked, and no other tile is decoded.
    passes.clear()
    with pytest.raises(l2c.BitstreamError, match="latents cannot be decoded"):
        codec.verify(lie(2048, 2048, 12, tile=512))
    assert passes == [("cpu", 16), ("cpu", 1), ("torch", 1)]
    # No channel is used: P does not run. (The CRC lies, so this ends in an error as well.)
    monkeypatch.setattr(CpuBackend, "tile_coder", None)
    with pytest.raises(l2c.BitstreamError, match="do not match the CRC"):
        codec.verify(lie(4096, 4096, 0))
    # One pixel wide: the latents would cover eight times as many pixels.
    with pytest.raises(l2c.LimitError, match="has latents for"):
        codec.verify(lie(1, 1 << 28, 12, 1 << 24))
    with pytest.raises(l2c.LimitError, match="a tile of"):
        codec.verify(lie(1, 1 << 24, 12, 1 << 24))


def test_what_becomes_of_decoded_symbols_is_checked(tiny_model_path, monkeypatch) -> None:
    """The end of a stream vouches for its symbols, not for what is done with them afterwards: that is the CRC's."""
    codec = l2c.Codec(tiny_model_path, backend="cpu")
    data = codec.encode(drawn(40, 40))
    expected = codec.verify(data)
    right = multiscale.IntegerModel.code

    def spoilt(self, jobs, backend="auto", device=None, threads=1):
        results = right(self, jobs, backend, device, threads)
        if backend == "cpu":
            results[0][-1, -1, -1] ^= 1
        return results

    monkeypatch.setattr(multiscale.IntegerModel, "code", spoilt)
    with pytest.warns(L2CWarning, match="torch backend was used"):
        assert codec.verify(data) == expected
    monkeypatch.setattr(codec.latent_stage, "most_again", 1599)  # PyTorch is for small pictures
    with pytest.raises(BitstreamError, match="CRC of the header"):
        codec.verify(data)


def test_a_second_decoding_is_checked_to_its_end(tiny_model_path, monkeypatch) -> None:
    """Two bytes too many are an error of the file whichever way it is decoded."""
    codec = l2c.Codec(tiny_model_path, backend="cpu")
    stream = read_bitstream(codec.encode(drawn(40, 40)))
    longer = [bytes(payload) + b"\0\0" for payload in stream.payloads]
    with pytest.raises(BitstreamError, match="bytes are left"):
        codec.verify(write_bitstream(stream.header, longer, [tile.channels for tile in stream.tiles]))

    def no_memory(*args: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(stepwise.TorchEngine, "step", no_memory)
    with pytest.raises(BitstreamError, match="bytes are left"):
        codec.verify(write_bitstream(stream.header, longer, [tile.channels for tile in stream.tiles]))


def test_wrong_integers_in_the_middle_are_decoded_again(tiny_model_path, drawn_picture, monkeypatch) -> None:
    codec = l2c.Codec(tiny_model_path, backend="cpu")
    data = codec.encode(drawn_picture)
    expected = codec.verify(data)
    break_the_cpu_path(monkeypatch)
    with pytest.warns(L2CWarning, match="torch backend was used"):
        assert codec.verify(data) == expected


def test_batches_are_any_iterables_and_errors_name_the_file(codec) -> None:
    pictures = [drawn(24, 24), drawn(16, 30)]
    files = codec.encode_batch(picture for picture in pictures)
    assert len(files) == 2
    decoded = codec.decode_batch(data for data in files)
    assert [part.shape for part in decoded] == [(24, 24, 3), (16, 30, 3)]
    with pytest.raises(BitstreamError, match=r"^file 2 of 3: "):
        codec.decode_batch([files[0], files[1][:-1], files[0]])
    with pytest.raises(BitstreamError, match=r"^file 3 of 3: .*latents"):
        codec.decode_batch([*files, rewritten(files[0], latent_bits=7)])
    with pytest.raises(BitstreamError, match=r"^file 1 of 2: .*CRC of the header"):
        codec.decode_batch([rewritten(files[0], latents_crc32=1), files[0]])
    with pytest.raises(UnsupportedError, match=r"^file 2 of 2: "):
        codec.decode_batch([files[0], 5])
    with pytest.raises(ImageError, match=r"^file 2 of 2: "):
        codec.encode_batch([pictures[0], b"no picture"])
    with pytest.raises(l2c.RateError, match=r"^file 1 of 2: "):
        codec.encode_batch(pictures, bpp=1e-4)
    with pytest.raises(ModelMismatchError, match=r"^file 2 of 2: "):
        codec.decode_batch([files[0], rewritten(files[1], model_id=b"\xff" * 8)])
    with pytest.raises(BitstreamError, match=r"^(?!file)"):
        codec.decode(files[0][:-1])


def test_a_batch_gives_what_its_pictures_alone_give(codec) -> None:
    """Files and pixels, for pictures of one size whose qualities differ and one that is adapted."""
    pictures, qualities = [drawn(40, 56 - i % 2) for i in range(7)], [10, 30, 50, 70, 90, 50, 30]
    files = [codec.encode(picture, quality=quality) for picture, quality in zip(pictures, qualities)]
    assert codec.encode_batch(pictures, quality=50)[2] == files[2]
    files.append(codec.encode(pictures[0], quality=40, effort=l2c.Effort(1, 0, 1)))
    for alone, together in zip(map(codec.decode, files), codec.decode_batch(files)):
        assert np.array_equal(alone, together)
    detailed = codec.decode_batch_detailed(files)
    assert [part.latents_sha256 for part in detailed] == codec.verify_batch(files) == list(map(codec.verify, files))
    assert all(np.array_equal(part.picture.rgb, codec.decode_detailed(file).picture.rgb)
               for part, file in zip(detailed, files))  # fmt: skip


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", float("nan"), True])
def test_bad_threads(tiny_model_path, threads) -> None:
    with pytest.raises(UnsupportedError, match="threads"):
        l2c.Codec(tiny_model_path, threads=threads)


def test_bad_arguments_of_a_codec(tiny_model_path, monkeypatch) -> None:
    assert l2c.Codec(tiny_model_path, threads=10**10).encode(drawn(8, 8))
    for model in (None, b"x", 3):
        with pytest.raises(UnsupportedError, match="model"):
            l2c.Codec(model)
    with pytest.raises(UnsupportedError, match="limits"):
        l2c.Codec(tiny_model_path, limits=5)
    monkeypatch.setenv("L2C_CPU", "foo")
    with warnings.catch_warnings(), pytest.raises(BackendError, match="foo"):
        warnings.simplefilter("error")
        l2c.Codec(tiny_model_path)


def test_a_device_that_fails_is_named(codec, monkeypatch) -> None:
    def fail(*args: object, **keywords: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMuch more text")

    data = codec.encode(drawn(16, 16))
    monkeypatch.setattr(codec.transform_stage, "synthesise", fail)
    monkeypatch.setattr(codec.transform_stage, "analyse", fail)
    for call in (lambda: codec.decode(data), lambda: codec.decode_detailed(data), lambda: codec.encode(drawn(16, 16))):
        with pytest.raises(BackendError, match=r"the device failed: CUDA out of memory\.$"):
            call()


def test_pickle_and_global_defaults(codec, drawn_picture) -> None:
    data = codec.encode(drawn_picture)
    again = pickle.loads(pickle.dumps(codec))
    assert again.encode(drawn_picture) == data
    error = pickle.loads(pickle.dumps(l2c.RateError("too low", 0.25)))
    assert (str(error), error.least_bpp) == ("too low", 0.25)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        assert codec.encode(drawn_picture) == data
        assert codec.decode(data).shape == drawn_picture.shape
        assert l2c.Codec(codec.model.path).encode(drawn_picture) == data
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_a_default_device_changes_nothing(codec, monkeypatch) -> None:
    """Encoding with every kind of work to every kind of target, and decoding to every kind of output."""
    picture = drawn(24, 40)
    rate = codec.encode_detailed(picture, quality=60).bpp
    everything = l2c.Effort(iterations=1, sets=1, steps=1, tries=2)  # all that levels 8 and 9 do, but less of it
    asked = [{"quality": 60, "effort": effort} for effort in (0, 1)]
    asked += [{"bpp": rate, "effort": effort} for effort in (0, everything)]
    asked += [{"psnr": 24.0}, {"msssim": 0.9}]
    expected = [codec.encode(picture, **options) for options in asked]
    shown = codec.decode(expected[-1])
    fresh = l2c.Codec(codec.model.path)  # which has made nothing yet
    metrics.gaussian_window.cache_clear()
    metrics.band_matrix.cache_clear()
    try:
        torch.set_default_device("meta")
        for options, data in zip(asked, expected):
            assert fresh.encode(picture, **options) == data, options
        assert np.array_equal(fresh.decode(expected[-1]), shown)
        assert np.array_equal(fresh.decode_detailed(expected[-1]).picture.rgb, shown)
        assert np.array_equal(np.asarray(fresh.decode(expected[-1], as_="pil")), shown)
        for mode in ("rgb", "original"):
            tensor = fresh.decode(expected[-1], as_="torch", mode=mode)
            assert tensor.device.type == "cpu" and np.array_equal(tensor.permute(1, 2, 0).numpy(), shown)
        assert fresh.verify(expected[-1]) == codec.verify(expected[-1])
        assert torch.empty(0).device.type == "meta"  # the caller's setting stands
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_default_dtype_changes_nothing(codec, configs, dtype) -> None:
    picture = drawn(48, 64)  # smaller ones show no difference
    rate = 1.1 * codec.encode_detailed(picture, quality=40).bpp
    asked = [{"quality": 60}, {"quality": 60, "effort": 2}, {"bpp": rate, "effort": 1}, {"psnr": 24.0}]
    expected = [codec.encode(picture, **options) for options in asked]
    sizes = [ModelConfig.from_file(path).transform for path in sorted(configs.glob("*.json"))]
    buffers = [dict(transforms.Transform(config).named_buffers()) for config in sizes]
    assert any(any("limit" in name for name in named) for named in buffers)
    try:
        torch.set_default_dtype(dtype)
        fresh = l2c.Codec(codec.model.path)
        for options, data in zip(asked, expected):
            assert fresh.encode(picture, **options) == data, options
        for config, named in zip(sizes, buffers):  # what is computed when a network is made, and not stored
            for name, buffer in transforms.Transform(config).named_buffers():
                assert torch.equal(buffer.double(), named[name].double()), name
    finally:
        torch.set_default_dtype(torch.float32)


def test_parts_below_the_codec_need_no_default_device(codec) -> None:
    """What can be called without a `Codec`: its own device, not PyTorch's default one."""
    model, x = codec.model, torch.rand(1, 3, 200, 200)
    pixels = drawn(40, 56)

    def results() -> tuple:
        metrics.gaussian_window.cache_clear()
        metrics.band_matrix.cache_clear()
        probability = codec.float_probability()
        found = sequential.adapt_sequentially(model, probability, pixels, 500, 4, iterations=2, autocast=False)
        again = multiscale.IntegerModel.from_float(model.integer.to_float())
        shapes = [layer.weight.shape for _, layer in again.layers()]
        return (
            metrics.msssim(x, x * 0.9).tolist(),
            transforms.transform_costs(model.config.transform),
            found.symbols.tobytes(),
            bias_sets.patch_areas(x, 64).tolist(),
            shapes,
        )

    expected = results()
    try:
        torch.set_default_device("meta")
        assert results() == expected
    finally:
        torch.set_default_device(None)


def test_unreached_targets_warn(codec) -> None:
    """One warning for each picture, which names it in a batch; none where the target is met or none was given."""
    picture = drawn(40, 56)
    with pytest.warns(L2CWarning, match="the target was not reached") as caught:
        codec.encode(picture, bpp=500.0, lossless="never")
    assert len(caught) == 1
    with pytest.warns(L2CWarning) as caught:
        codec.encode_batch([picture, picture], psnr=90.0, lossless="never")
    assert [str(w.message).split(":")[0] for w in caught] == ["file 1 of 2", "file 2 of 2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec.encode(picture, quality=50)
        assert not codec.encode_detailed(picture, bpp=500.0, lossless="never").target_reached


@pytest.mark.parametrize("options", [{"psnr": 26.0}, {"msssim": 0.9}, {"psnr": 26.0, "effort": 1}, {"quality": 50}])
def test_arrays_that_cannot_be_written_make_no_warning(codec, options) -> None:
    """np.asarray(PIL image) is read-only; PyTorch warns about tensors on such arrays, once in a process."""
    script = (
        "import sys, warnings, numpy as np; warnings.simplefilter('error'); from PIL import Image; import l2c; "
        "picture = np.asarray(Image.open(sys.argv[2])); assert not picture.flags.writeable; "
        "codec = l2c.Codec(sys.argv[1]); options = eval(sys.argv[3]); "
        "data = codec.encode_detailed(picture, **options).data; "
        "batch = codec.encode_batch_detailed([picture, picture], **options); "
        "assert [encoded.data for encoded in batch] == [data, data]; "
        "codec.decode(bytes(data)); assert not picture.flags.writeable"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.png"
        Image.fromarray(drawn(40, 56)).save(path)
        command = [sys.executable, "-W", "error", "-c", script, str(codec.model.path), str(path), repr(options)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_fast_backend_is_needed() -> None:
    """The golden files and the shipped weights with plain PyTorch for P and the scalar coder."""
    tests = Path(__file__).parent
    chosen = [str(tests / "test_golden.py"), f"{tests / 'test_default_model.py'}::test_quality_is_monotone[mixed]"]
    environment = {**os.environ, "L2C_BACKEND": "torch", "L2C_CPU": "scalar"}
    check = (
        "import sys, pytest, torch, l2c; from l2c import ops; "
        "assert l2c.load_model().integer.choose('auto', torch.device('cpu')) == 'torch'; "
        "assert ops.cpp_extension().cpu() == 'scalar'; sys.exit(pytest.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, "-q", *chosen], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_backend_of_the_environment(codec, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = codec.model.integer.choose
    monkeypatch.setenv("L2C_BACKEND", "reference")
    assert choose("auto", None) == "reference"
    assert choose("torch", None) == "torch"
    monkeypatch.setenv("L2C_BACKEND", "fast")
    with pytest.raises(BackendError, match="'fast'"):
        choose("auto", None)
