"""Frozen files: they decode to the latents they always had, and encoding those latents gives the same bytes again.

A difference here is a change of the format or of what an encoder writes: it needs a new format version.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import l2c
from l2c.codec.latent_stage import Latents
from l2c.errors import L2CError
from l2c.format.bitstream import read_bitstream

GOLDEN = Path(__file__).parent / "golden"
BAD = Path(__file__).parent / "bad"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="module", params=["cpu", "torch", "reference"])
def codec(request) -> l2c.Codec:
    return l2c.Codec(GOLDEN / "golden.safetensors", backend=request.param)


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_file(codec, name: str) -> None:
    data = (GOLDEN / f"{name}.l2c").read_bytes()
    assert len(data) == EXPECTED[name]["size"]
    assert codec.verify(data) == EXPECTED[name]["latents_sha256"]
    stream = read_bitstream(data)
    header = stream.header
    part = Latents(codec.read_latents([stream])[0], header.point)
    ((_, payloads, used),) = codec.latent_stage.write([(header.height, header.width)], [part], header.tile_size)
    assert payloads == [bytes(p) for p in stream.payloads]
    assert used == [tile.channels for tile in stream.tiles]


def test_golden_pixels() -> None:
    """Pixels come from float32: within one level of the ones stored."""
    pixels = l2c.Codec(GOLDEN / "golden.safetensors").decode((GOLDEN / "rgb.l2c").read_bytes())
    stored = np.load(GOLDEN / "rgb.npy")
    assert np.abs(pixels.astype(int) - stored).max() <= 1


@pytest.mark.parametrize("path", sorted(BAD.iterdir()), ids=lambda p: p.stem)
def test_bad_file(path: Path) -> None:
    with pytest.raises(L2CError) as caught:
        l2c.Codec(GOLDEN / "golden.safetensors").decode(path.read_bytes())
    assert len(str(caught.value).splitlines()) == 1
