"""Families from outside: the entropy model of tests/factorized.py through training, export, coding and adaptation."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factorized import FactorizedConfig, FactorizedModel, FactorizedTables
from PIL import Image
from skimage import data as skimage_data
from torch import nn

import l2c
from l2c.config import ModelConfig
from l2c.entropy.coder import DecodingJob, EncodingJob
from l2c.errors import ConfigError, ModelMismatchError
from l2c.evaluate.measures import FIGURES as FIGURES_OF_QUALITY
from l2c.evaluate.measures import measure
from l2c.evaluate.peers import PEERS, RateSearch
from l2c.format.levels import OperatingPoint
from l2c.registry import Registry
from l2c.train.config import DataConfig, PretrainConfig, QuantizeConfig, TrainConfig
from l2c.train.export import export
from l2c.train.stages import run_stage
from l2c.transforms import (
    FAMILIES,
    Adaptation,
    BlockConfig,
    Decoder,
    Encoder,
    Transform,
    TransformFamily,
    check_contract,
    condition,
    dequantise,
    num_biases,
)

POINT = OperatingPoint(630, 4, 8)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    transform = BlockConfig(8, 12, 16, 1, 1, 8, mask=False, modulator_width=8)
    return ModelConfig("toy", transform, FactorizedConfig(), lmbda_min=5e-5, lmbda_max=0.3)


def recipe_for(pictures: Path) -> TrainConfig:
    return TrainConfig(
        "model.json", data=DataConfig(train=(str(pictures),), val=(str(pictures),), crop=64, workers=0),
        pretrain=PretrainConfig(lr=1e-3, batch=2, steps=2, warmup=1), val_pictures=1, val_drawn=0, autocast="off",
        quantize=QuantizeConfig(max_loss=0.05),
    )  # fmt: skip


def train(config: ModelConfig, folder: Path) -> l2c.Codec:
    """Two steps of training, exported, and loaded again."""
    (folder / "pictures").mkdir()
    Image.fromarray(skimage_data.astronaut()[:272, :320]).save(folder / "pictures" / "a.png")
    recipe = recipe_for(folder / "pictures")
    assert run_stage("pretrain", recipe, config, folder / "run", None, "cpu")
    export(recipe, config, folder / "run", None, folder / "mine.safetensors", "two steps")
    return l2c.Codec(folder / "mine.safetensors", threads=1)


@pytest.fixture(scope="module")
def codec(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> l2c.Codec:
    return train(config, tmp_path_factory.mktemp("toy"))


def picture() -> np.ndarray:
    return np.ascontiguousarray(skimage_data.astronaut()[100:260, 150:342])


def test_configuration(config: ModelConfig) -> None:
    assert ModelConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="knots is 1"):
        ModelConfig.from_json(config.to_json().replace('"knots": 5', '"knots": 1'))


def test_weights_were_trained(codec: l2c.Codec, config: ModelConfig) -> None:
    untrained = FactorizedTables.from_float(config.float_model())
    trained = codec.model.integer
    assert isinstance(trained, FactorizedTables)
    assert (trained.counts != untrained.counts).any()


@pytest.mark.parametrize("effort", [0, 4])
@pytest.mark.parametrize("target", [{"quality": 60}, {"bpp": 0.7}])
def test_files_decode_exactly(codec: l2c.Codec, effort: int, target: dict[str, float]) -> None:
    coded = codec.encode_detailed(picture(), effort=effort, **target)
    again = l2c.Codec(codec.model.path, threads=1)
    pixels = again.decode(coded.data)
    assert np.array_equal(codec.decode(coded.data), pixels)
    assert np.abs(pixels.astype(int) - picture()).mean() < 20  # 12 of 192 coefficients, D hardly trained
    if "bpp" in target:
        assert 0.98 * 0.7 <= coded.bpp <= 0.7


def test_adaptation_pays(codec: l2c.Codec) -> None:
    """lambda D + bits of the whole file, at one quality."""
    plain, adapted = (codec.encode_detailed(picture(), quality=70, metric="psnr", effort=e) for e in (0, 4))
    cost = []
    for coded in (plain, adapted):
        error = (codec.decode(coded.data).astype(float) - picture()) ** 2
        cost.append(codec.model.config.lmbda(0.7) * error.mean() + coded.bpp)
    assert cost[1] < 0.98 * cost[0]


@pytest.mark.parametrize("b", [8, 5, 2])
def test_estimate_and_coder_agree(codec: l2c.Codec, b: int) -> None:
    point = POINT._replace(bits=b)
    spread = np.random.default_rng(0).normal(1 << (b - 1), 3.0 if b > 3 else 0.6, (12, 20, 30))
    symbols = spread.round().clip(0, (1 << b) - 1).astype(np.uint8)
    job = EncodingJob(20, 30, point, 12, symbols)
    codec.model.integer.code([job])
    reader = DecodingJob(20, 30, point, 12, job.encoder.finish())
    (found,) = codec.model.integer.code([reader])
    reader.decoder.finish()
    assert np.array_equal(found, symbols)
    exact = FactorizedTables.from_tensors(codec.model.integer.to_tensors(), FactorizedConfig(), 12)
    float_form = exact.to_float()
    estimated = float_form.num_bits(*[dequantise(torch.from_numpy(symbols)[None], b)] * 2, torch.tensor([point]))
    assert float(estimated.detach()) == pytest.approx(job.encoder.encoder.ideal_bits, rel=0.05)


def test_terms_are_differences(config: ModelConfig) -> None:
    model = config.float_model()
    assert isinstance(model, FactorizedModel)
    z, header = torch.randint(-127, 127, (1, 12, 4, 5)).float(), torch.tensor([POINT])
    terms = model.terms(z, header)
    assert float(terms.bits) == pytest.approx(model.num_bits(z, z, header).item())
    assert float(model.bit_map(z, header).sum()) == pytest.approx(float(terms.bits), rel=1e-5)
    moved = z.clone()
    moved[0, 3, 2, 1] += 1.0
    change = model.num_bits(moved, moved, header) - terms.bits
    assert float(terms.rise[0, 3, 2, 1]) == pytest.approx(change.item(), abs=1e-2)


def test_damaged_tables_are_refused(codec: l2c.Codec) -> None:
    tensors = codec.model.integer.to_tensors()
    for change in (lambda t: t.flip(2), lambda t: t[:, :, 1:], lambda t: t.int(), lambda t: t * 0):
        with pytest.raises(ModelMismatchError):
            FactorizedTables.from_tensors(
                {"probability.counts": change(tensors["probability.counts"])}, FactorizedConfig(), 12
            )


def blocks_of_page() -> list[str]:
    """The Python of docs/EXTENDING.md."""
    page = Path(__file__).parent.parent / "docs" / "EXTENDING.md"
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_family_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains, codes, and follows changes of D's biases."""
    (source,) = [block for block in blocks_of_page() if "class StridedEncoder" in block]
    (tmp_path / "my_family.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("my_family")
    try:
        mine = {"family": "strided", "s": 8, "c": 24, "width": 16}
        probability = {"num_scales": 2, "channel_groups": [8, 16], "num_mixtures": 2, "width": 16}
        config = ModelConfig.from_json(json.dumps({"name": "mine", "transform": mine, "probability": probability}))
        trained = train(config, tmp_path)
        for options in ({"quality": 50}, {"bpp": 4.0, "effort": 4}):
            data = trained.encode(picture(), **options)
            assert trained.decode(data).shape == picture().shape
        decoder, cond = trained.transform.decoder, condition(torch.tensor([0.01]), torch.tensor([0.5]))
        latents, biases = torch.randn(1, 24, 6, 5).round(), torch.zeros(1, num_biases(decoder))
        biases[:, -192:] = 0.25
        with torch.no_grad():
            plain, changed = decoder(latents, cond), decoder(latents, cond, Adaptation(biases=biases))
        torch.testing.assert_close(changed, plain + 0.25)
    finally:
        FAMILIES.unregister("strided")


def test_the_peer_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = [block for block in blocks_of_page() if "PEERS[" in block]
    monkeypatch.setattr("l2c.evaluate.peers.PEERS", dict(PEERS))
    space: dict[str, Any] = {"__name__": "with_png8"}
    exec(source.replace("main() ", "pass "), space)
    found = RateSearch(space["PEERS"]["png8"], picture()).at(6.0)
    assert 0 < len(found.data) * 8 <= 6.0 * picture()[..., 0].size
    assert space["PEERS"]["png8"].decode(found.data, *picture().shape[:2]).shape == picture().shape


def test_the_figure_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = [block for block in blocks_of_page() if "FIGURES[" in block]
    monkeypatch.setitem(FIGURES_OF_QUALITY, "largest", FIGURES_OF_QUALITY["vmaf"])  # so that it goes afterwards
    exec(source.replace("main() ", "pass "), {"__name__": "with_figure"})
    wrong = picture()
    wrong[3, 4] = 255 - wrong[3, 4]
    assert measure(picture(), wrong, ("largest",))["largest"] > 50.0


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """An installed package with an entry point that loads, and one that does not."""
    info = tmp_path / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[l2c.things]\ngood = plugged:THING\nbad = plugged:NOTHING\n")
    (tmp_path / "plugged.py").write_text("THING = 7\n")
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))
    sys.modules.pop("plugged", None)


def test_entry_points(package: Path) -> None:
    things: Registry[int] = Registry("thing", "l2c.things")
    things.register("own", 1)
    assert (things["own"], things["good"], list(things)) == (1, 7, ["bad", "good", "own"])
    with pytest.raises(ConfigError, match=r"the thing 'bad' \(plugged:NOTHING\) does not load"):
        things["bad"]
    with pytest.raises(ConfigError, match="no thing is called 'other'; there are bad, good, own"):
        things["other"]
    with pytest.raises(ConfigError, match="another thing called 'own'"):
        things.register("own", 2)


class TestContract:
    """Mistakes in a family of networks, each named."""

    @pytest.fixture
    def networks(self) -> Transform:
        torch.manual_seed(0)
        return Transform(BlockConfig(8, 12, 8, 1, 1, 4, modulator_width=4))

    def test_families_that_come_with_the_project(self, configs: Path) -> None:
        for path in sorted(configs.rglob("*.json")):
            if path.parent.name != "train":
                check_contract(Transform(ModelConfig.from_file(path).transform))

    @pytest.mark.parametrize(
        "part, change, message",
        [
            ("encoder", lambda y, tau: y, "the encoder returns Tensor; expected"),
            (
                "encoder",
                lambda y, tau: (y[:, 1:], tau),
                r"latents of torch.float32 \[2, 11, 3, 5\]; expected .*\[2, 12, 3",
            ),
            ("encoder", lambda y, tau: (y.half(), tau), "latents of torch.float16"),
            ("encoder", lambda y, tau: (y * float("nan"), tau), "latents that are not finite"),
            ("encoder", lambda y, tau: (y, tau + 1.0), r"importance maps beyond 0\.\.1"),
            ("encoder", lambda y, tau: (y, None), "importance map where `importance` is None, or the reverse"),
            ("decoder", lambda x: x[:, :, 1:], r"pictures of torch.float32 \[2, 3, 23, 40\]; expected .*\[2, 3, 24"),
            ("decoder", lambda x: x.double(), "pictures of torch.float64"),
        ],
    )
    def test_what_comes_out(self, networks: Transform, part: str, change: Any, message: str, monkeypatch) -> None:
        network = getattr(networks, part)
        plain = network.forward

        def changed(*arguments: Any) -> Any:
            result = plain(*arguments)
            return change(*result) if part == "encoder" else change(result)

        monkeypatch.setattr(network, "forward", changed)
        with pytest.raises(ConfigError, match=f"networks 'block': .*{message}"):
            check_contract(networks)

    @pytest.mark.parametrize("part", ["encoder", "decoder"])
    def test_halos(self, networks: Transform, part: str) -> None:
        getattr(networks, part).receptive_halo_px //= 2
        with pytest.raises(ConfigError, match=f"the {part} sees further than its receptive_halo_px"):
            check_contract(networks)

    def test_attributes(self, networks: Transform) -> None:
        mods, networks.decoder.mods = networks.decoder.mods, networks.decoder.mods[:1]
        with pytest.raises(ConfigError, match="the decoder fails"):
            check_contract(networks)
        del networks.decoder.mods
        with pytest.raises(ConfigError, match="the decoder has no attribute 'mods'"):
            check_contract(networks)
        networks.decoder.mods = mods
        networks.encoder = nn.Identity()
        with pytest.raises(ConfigError, match="the encoder is a Identity, no Encoder"):
            check_contract(networks)

    def test_a_convolution_beside_the_adapter(self, networks: Transform) -> None:
        networks.decoder.add_module("extra", nn.Conv2d(12, 12, 1))  # its biases are counted, and nobody adds to them
        with pytest.raises(ConfigError, match=r"convolutions with .* biases, but changes of .* of them have an effect"):
            check_contract(networks)

    def test_training_and_export_ask(
        self, config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same family, sound in training and broken afterwards."""
        family = FAMILIES["block"]

        def short_sighted(sizes: BlockConfig) -> tuple[Encoder, Decoder]:
            encoder, decoder = family.build(sizes)
            decoder.receptive_halo_px = 0
            return encoder, decoder

        broken = TransformFamily(family.config, short_sighted)
        exported = train(config, tmp_path)
        recipe = recipe_for(tmp_path / "pictures")
        FAMILIES.unregister("block")
        FAMILIES.register("block", broken)
        try:
            with pytest.raises(ConfigError, match="the decoder sees further than its receptive_halo_px of 0"):
                run_stage("pretrain", recipe, config, tmp_path / "other", None, "cpu")
            with pytest.raises(ConfigError, match="the decoder sees further"):
                export(recipe, config, tmp_path / "run", None, tmp_path / "other.safetensors", "")
        finally:
            FAMILIES.unregister("block")
            FAMILIES.register("block", family)
        assert exported.model.path.exists() and not (tmp_path / "other.safetensors").exists()

    def test_names_of_families(self) -> None:
        with pytest.raises(ConfigError, match="'other': its configurations say that the family is 'block'"):
            FAMILIES.register("other", FAMILIES["block"])
