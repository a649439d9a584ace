"""Adapting D to a picture: bias changes and conditions in the networks, their search, and the bias-sets stage."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from l2c import objective, transforms
from l2c.adapt.bias_sets import DEFAULT_INDEX, BiasSets, distortion_gradient, predicted_change, try_sets
from l2c.adapt.modulators import adapt_conditions
from l2c.config import ModelConfig
from l2c.errors import ConfigError, TrainingError
from l2c.objective import TERMS, Blend, Needs, terms
from l2c.train import bias_sets
from l2c.train.bias_sets import Patches, band_of, choose_scale, cluster, make_patches, measure_curvature, overfit_biases
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import BiasSetsConfig, DataConfig, TrainConfig
from l2c.train.data import Sampler
from l2c.train.losses import Networks
from l2c.transforms import Adaptation, BlockConfig, PaperConfig, Transform, TransformConfig, num_biases, num_modulators

Scene = tuple[Transform, Tensor, Tensor, Tensor]

FAMILIES = {
    "block": BlockConfig(8, 12, 16, 1, 2, 8, modulator_width=8),
    "coarse": BlockConfig(4, 6, 8, 1, 1, 0, modulator_width=8),
    "paper": PaperConfig(4, 5, 8, modulated=True, modulator_width=8),
    "plain paper": PaperConfig(4, 5, 8),
}


def made(config: TransformConfig) -> Transform:
    """Networks whose convolutions and modulators all matter: some start at nearly nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        transform = Transform(config).eval().requires_grad_(False)
    decoder: Any = transform.decoder
    for layer in (*(mod.fc2 for mod in decoder.mods), getattr(decoder, "last", None), decoder.head):
        if layer is not None:
            layer.weight.mul_(15.0 if config.family == "block" or isinstance(layer, nn.Linear) else 1.0)
    return transform


@pytest.fixture(scope="module")
def scene(drawn_picture: npt.NDArray[np.uint8]) -> Scene:
    """Networks, three pictures [3, 3, 44, 61] (no multiple of s), their latents and conditions."""
    transform = made(FAMILIES["block"])
    picture = torch.from_numpy(drawn_picture[:44, :61]).permute(2, 0, 1).float() / 255
    x = torch.stack((picture, picture.flip(1), picture.roll(20, 2)))
    cond = transforms.condition(torch.tensor([0.003, 0.02, 0.1]), torch.tensor([0.0, 0.5, 1.0]))
    with torch.no_grad():
        z = transform.encoder(transforms.pad_to_multiple(x, 8), cond)[0].round()
    return transform, x, z, cond


def distortion(scene: Scene, adaptation: Adaptation | None = None) -> Tensor:
    transform, x, z, cond = scene
    with torch.no_grad():
        x_hat = transform.decoder(z, cond, adaptation)[:, :, : x.shape[2], : x.shape[3]]
    return objective.distortion(x, x_hat.clamp(0, 1), Blend.of_condition(cond))


def part(scene: Scene, i: int) -> Scene:
    transform, x, z, cond = scene
    return transform, x[i : i + 1], z[i : i + 1], cond[i : i + 1]


def random_biases(transform: Transform, n: int, scale: float) -> Tensor:
    return scale * torch.randn(n, num_biases(transform.decoder), generator=torch.Generator().manual_seed(n))


class TestAdaptation:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_added_biases_are_those_of_the_convolutions(self, family: str) -> None:
        """Each picture of a batch, against a copy of D whose biases were changed in the order its layers ran."""
        transform = made(FAMILIES[family])
        z = torch.randn(2, transform.config.c, 4, 5, generator=torch.Generator().manual_seed(1)) * 9
        cond = transforms.condition(torch.tensor([0.003, 0.1]), torch.tensor([0.0, 1.0]))
        biases = random_biases(transform, 2, 0.3)
        got = transform.decoder(z, cond, Adaptation(biases=biases))
        assert not torch.allclose(got, transform.decoder(z, cond), atol=1e-2)
        for i in range(2):
            changed = copy.deepcopy(transform.decoder)
            ran: list[nn.Conv2d] = []
            for module in changed.modules():
                if isinstance(module, nn.Conv2d) and module.bias is not None:
                    module.register_forward_hook(lambda layer, *_, ran=ran: ran.append(layer))
            changed(z, cond)
            order = tuple(ran)
            rest = biases[i]
            for layer in order:
                assert layer.bias is not None
                layer.bias.add_(rest[: layer.out_channels])
                rest = rest[layer.out_channels :]
            assert len(rest) == 0 and len(order) == len(set(order))
            torch.testing.assert_close(got[i], changed(z, cond)[i], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_no_change_is_no_change(self, family: str) -> None:
        transform = made(FAMILIES[family])
        z = torch.randn(2, transform.config.c, 4, 5, generator=torch.Generator().manual_seed(1))
        cond = transforms.condition(torch.tensor([0.003, 0.1]), torch.tensor([0.0, 1.0]))
        plain = transform.decoder(z, cond)
        same = Adaptation(cond[:, None].repeat(1, num_modulators(transform), 1), random_biases(transform, 2, 0.0))
        assert torch.equal(plain, transform.decoder(z, cond, same))
        assert torch.equal(plain, transform.decoder(z, cond, Adaptation()))

    @pytest.mark.parametrize("family", ["block", "coarse", "paper"])
    def test_conditions(self, family: str) -> None:
        """Every one of the K counts, per picture, and in place of the picture's own."""
        transform = made(FAMILIES[family])
        z = torch.randn(2, transform.config.c, 4, 5, generator=torch.Generator().manual_seed(1)) * 9
        cond = transforms.condition(torch.tensor([0.003, 0.1]), torch.tensor([0.0, 1.0]))
        other = transforms.condition(torch.tensor([0.05, 0.05]), torch.tensor([0.0, 1.0]))
        k = num_modulators(transform)
        outputs = [transform.decoder(z, cond)]
        for layer in range(k):
            conditions = cond[:, None].repeat(1, k, 1)
            conditions[0, layer] = other[0]
            outputs.append(transform.decoder(z, cond, Adaptation(conditions)))
            assert torch.equal(outputs[-1][1], outputs[0][1])
        for i, first in enumerate(outputs):
            assert all(not torch.allclose(first[0], second[0], atol=1e-4) for second in outputs[:i])

    def test_each_picture_of_a_batch_has_its_own(self, scene: Scene) -> None:
        transform, _, z, cond = scene
        k = num_modulators(transform)
        conditions = cond[:, None] + 0.3 * torch.randn(3, k, 2, generator=torch.Generator().manual_seed(2))
        biases = random_biases(transform, 3, 0.1)
        together = transform.decoder(z, cond, Adaptation(conditions, biases))
        for i in range(3):
            alone = Adaptation(conditions[i : i + 1], biases[i : i + 1])
            torch.testing.assert_close(
                together[i : i + 1], transform.decoder(z[i : i + 1], cond[i : i + 1], alone), rtol=1e-4, atol=1e-5
            )

    def test_num_biases_of_the_paper(self, configs: Path) -> None:
        """12 + 4 * 192 + 5 * 192 at 192 channels."""
        with torch.device("meta"):
            transform = Transform(ModelConfig.from_file(configs / "c8b8.json").transform)
        assert transform.config.width == 192 and transform.config.c == 8
        assert num_biases(transform.decoder) == 1740


class TestAdaptConditions:
    def test_improves_and_reproduces(self, scene: Scene) -> None:
        transform, cond = scene[0], scene[3]
        conditions, before, after = adapt_conditions(*scene, num_steps=4)
        assert conditions.shape == (3, num_modulators(transform), 2)
        torch.testing.assert_close(before, distortion(scene))
        torch.testing.assert_close(after, distortion(scene, Adaptation(conditions)))
        assert bool((after < 0.999 * before).all())
        assert torch.equal(conditions[..., 0].half().float(), conditions[..., 0])
        assert torch.equal(conditions[..., 1], cond[:, 1:].expand(-1, conditions.shape[1]))
        assert bool((conditions[:, 0, 0] != conditions[:, 1, 0]).any())  # each modulator moves by itself

    def test_more_steps_are_never_worse(self, scene: Scene) -> None:
        results = [adapt_conditions(*scene, num_steps=n)[2] for n in (1, 2, 5)]
        assert bool((results[1] <= results[0]).all()) and bool((results[2] <= results[1]).all())
        assert bool((results[2] < results[0]).any())

    def test_first_step_is_the_best_of_the_step_sizes(self, scene: Scene) -> None:
        """OML 5.2, with the gradient of log D."""
        transform, x, z, cond = scene
        leaf = cond[:, None, :1].repeat(1, num_modulators(transform), 1).requires_grad_()
        mix = cond[:, None, 1:].expand(-1, leaf.shape[1], -1)
        x_hat = transform.decoder(z, cond, Adaptation(torch.cat((leaf, mix), dim=2)))[:, :, :44, :61].clamp(0, 1)
        objective.distortion(x, x_hat, Blend.of_condition(cond)).log().sum().backward()
        assert leaf.grad is not None
        values = []
        for size in (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0):
            moved = (leaf.detach() - size * leaf.grad).clamp(-100, 100).half().float()
            values.append(distortion(scene, Adaptation(torch.cat((moved, mix), dim=2))))
        expected = torch.minimum(torch.stack(values).amin(dim=0), distortion(scene))
        torch.testing.assert_close(adapt_conditions(*scene, num_steps=1)[2], expected)

    def test_a_batch_is_its_pictures(self, scene: Scene) -> None:
        _, _, after = adapt_conditions(*scene, num_steps=3)
        alone = torch.cat([adapt_conditions(*part(scene, i), num_steps=3)[2] for i in range(3)])
        torch.testing.assert_close(after, alone, rtol=1e-3, atol=0.0)

    def test_a_perfect_picture_is_left_alone(self, scene: Scene) -> None:
        """Its log D has no gradient: nothing improves, and nothing is NaN."""
        transform, _, z, cond = scene
        cond = torch.cat((cond[:, :1], torch.zeros(3, 1)), dim=1)
        x = transform.decoder(z, cond).clamp(0, 1)
        conditions, before, after = adapt_conditions(transform, x, z, cond, num_steps=3)
        assert not before.any() and not after.any()
        assert torch.equal(conditions, cond[:, None].expand_as(conditions))

    def test_modulators_without_effect(self, scene: Scene) -> None:
        transform = copy.deepcopy(scene[0])
        for mod in transform.decoder.mods:
            nn.init.zeros_(mod.fc2.weight)  # type: ignore[union-attr, arg-type]
        conditions, before, after = adapt_conditions(transform, *scene[1:], num_steps=2)
        assert torch.equal(before, after)
        assert torch.equal(conditions, scene[3][:, None].expand_as(conditions))


CONFIG = BiasSetsConfig(patch=64, patches=6, iterations=4, lr=0.02, batch=2, sets=2, curvature_patches=3)


class TestOverfitBiases:
    def test_improves_and_reproduces(self, scene: Scene) -> None:
        biases, before, after = overfit_biases(*scene, CONFIG)
        assert biases.shape == (3, num_biases(scene[0].decoder))
        torch.testing.assert_close(before, distortion(scene))
        torch.testing.assert_close(after, distortion(scene, Adaptation(biases=biases)))
        assert bool((after < 0.99 * before).all())

    def test_the_best_iterate_is_kept(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def watched(*arguments: Any) -> Any:
            seen.append(objective.distortion(*arguments))
            return seen[-1]

        monkeypatch.setattr(bias_sets, "distortion", watched)
        biases, before, after = overfit_biases(*scene, replace(CONFIG, lr=3.0, iterations=8))
        values = torch.stack([value.detach() for value in seen])
        assert len(values) == 9 and torch.equal(values[0], before)
        assert torch.equal(values.amin(dim=0), after)
        assert bool((values[-1] > after).any())  # the last one is not the best
        torch.testing.assert_close(after, distortion(scene, Adaptation(biases=biases)))

    def test_never_worse(self, scene: Scene) -> None:
        biases, before, after = overfit_biases(*scene, replace(CONFIG, lr=50.0))
        assert torch.equal(before, after) and not biases.any()

    @pytest.mark.parametrize("family, channels", [("block", 48), ("coarse", 48), ("paper", 12)])
    def test_without_the_last_layer(self, scene: Scene, family: str, channels: int) -> None:
        transform = made(FAMILIES[family])
        x = scene[1][:, :, :40, :56]
        with torch.no_grad():
            z = transform.encoder(x, scene[3])[0].round()
        biases = overfit_biases(transform, x, z, scene[3], replace(CONFIG, last_layer=False))[0]
        assert not biases[:, -channels:].any() and biases[:, :-channels].any(dim=1).all()
        assert overfit_biases(transform, x, z, scene[3], CONFIG)[0][:, -channels:].any(dim=1).all()

    def test_a_batch_is_its_patches(self, scene: Scene) -> None:
        together = overfit_biases(*scene, CONFIG)
        for i in range(3):
            alone = overfit_biases(*part(scene, i), CONFIG)
            torch.testing.assert_close(together[2][i : i + 1], alone[2], rtol=1e-3, atol=0.0)


class TestCluster:
    def patches(self, biases: Tensor, quality: Tensor) -> Patches:
        zero = torch.zeros(len(biases))
        return Patches(biases, quality, torch.zeros_like(quality), zero, zero, count=len(biases))

    def test_planted_clusters_of_each_band(self) -> None:
        source = torch.Generator().manual_seed(3)
        centres = 10 * torch.randn(2, 3, 7, generator=source)  # [band, cluster, biases]
        band = torch.arange(60) % 2
        which = torch.randint(0, 3, (60,), generator=source)
        biases = centres[band, which] + 0.01 * torch.randn(60, 7, generator=source)
        quality = torch.where(band == 0, 500, 501)  # 1001 qualities: 0..500 and 501..1000
        tables = cluster(self.patches(biases, quality), replace(CONFIG, patches=60, sets=3, bands=2), seed=0)
        assert tables.shape == (2, 3, 7) and tables.dtype == torch.float32
        for b in range(2):
            distance, nearest = torch.cdist(centres[b], tables[b]).min(dim=1)
            assert distance.max() < 0.02 and sorted(nearest.tolist()) == [0, 1, 2]

    @pytest.mark.parametrize("bands", [1, 3, 16])
    def test_bands_are_those_of_the_codec(self, bands: int) -> None:
        """One set a band, made of the qualities for which `BiasSets.band` names it."""
        quality = torch.arange(1001)
        config = replace(CONFIG, patches=1001, sets=1, bands=bands)
        tables = cluster(self.patches(quality[:, None].float(), quality), config, seed=0)
        sets = BiasSets(tables, torch.zeros(bands, 1, len(TERMS)))
        of = torch.tensor([sets.band(q, 1000) for q in range(1001)])
        expected = torch.stack([quality[of == b].float().mean() for b in range(bands)])
        torch.testing.assert_close(tables[:, 0, 0], expected, rtol=1e-4, atol=0.0)

    def test_without_scikit_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
        with pytest.raises(ConfigError, match="scikit-learn"):
            cluster(self.patches(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64)), CONFIG, seed=0)


@pytest.fixture(scope="module")
def values(scene: Scene) -> Tensor:
    """Small sets float32 [2, 5, B]."""
    sets = torch.stack([random_biases(scene[0], 5, 0.004)] * 2)
    return sets * torch.tensor([1.0, -0.5])[:, None, None]


class TestChoosingSets:
    def test_curvature(self, scene: Scene, values: Tensor) -> None:
        """D(set) - D(0) - dD/dt at t = 0 along t * set: the mean over all patches, of every term."""
        transform, x, z, cond = scene
        batches = [(x[:2], z[:2], cond[:2]), (x[2:], z[2:], cond[2:])]
        curvature = torch.stack([measure_curvature(transform, band, iter(batches)) for band in values])
        assert curvature.shape == (2, 5, len(TERMS))
        for band, k, term in ((0, 0, 0), (0, 3, 4), (1, 2, 1), (1, 4, 3), (1, 1, 2), (0, 2, 5)):

            def along(t: Tensor, biases: Tensor = values[band, k], term: int = term) -> Tensor:
                adaptation = Adaptation(biases=(t * biases).expand(3, -1))
                x_hat = transform.decoder(z, cond, adaptation)[:, :, :44, :61].clamp(0, 1)
                return terms(x, x_hat, Needs(range(3), range(3)))[:, term].mean()

            t = torch.zeros((), requires_grad=True)
            start = along(t)
            start.backward()
            assert t.grad is not None
            with torch.no_grad():
                end = along(torch.ones(()))
            expected = end - start.detach() - t.grad
            torch.testing.assert_close(curvature[band, k, term], expected, rtol=0.02, atol=2e-5 * start.item())

    def test_gradient(self, scene: Scene) -> None:
        value, gradient = distortion_gradient(*scene)
        torch.testing.assert_close(value, distortion(scene))
        # a short step: MS-SSIM of luma is near zero on these pictures, where its powers bend most
        step = random_biases(scene[0], 3, 3e-4)
        up, down = (distortion(scene, Adaptation(biases=sign * step)) for sign in (1, -1))
        torch.testing.assert_close((gradient * step).sum(dim=1), (up - down) / 2, rtol=0.03, atol=1.5e-3)

    def test_the_prediction_ranks_small_sets_as_they_are(self, scene: Scene, values: Tensor) -> None:
        transform, cond = scene[0], scene[3]
        for i in range(3):  # one patch each, so that the mean curvature is its own
            own = part(scene, i)[1:]
            curvature = torch.stack([measure_curvature(transform, band, iter([own])) for band in values])
            before, gradient = distortion_gradient(*part(scene, i))
            for band in range(2):
                predicted = predicted_change(
                    gradient, BiasSets(values, curvature), band, Blend.of_condition(cond[i : i + 1])
                )
                tried = [distortion(part(scene, i), Adaptation(biases=v[None])) for v in values[band]]
                actual = torch.stack(tried, dim=1) - before[:, None]
                assert predicted.shape == (1, 5)
                torch.testing.assert_close(predicted, actual, rtol=0.02, atol=0.02 * actual.abs().max().item())
                assert torch.equal(predicted.argsort(), actual.argsort())

    def test_try_sets(self, scene: Scene, values: Tensor) -> None:
        found = overfit_biases(*scene, CONFIG)[0]
        table = torch.cat((values[0], found, found + 30.0))[None]  # 5 random, each patch's own, 3 that harm
        sets = BiasSets(table, torch.zeros(1, 11, len(TERMS)))
        everything = torch.arange(11).expand(3, -1)
        all_values = torch.stack([distortion(scene, Adaptation(biases=v.expand(3, -1))) for v in table[0]], dim=1)
        best, least = try_sets(*scene, sets, 0, everything)
        assert torch.equal(best, all_values.argmin(dim=1)) and best.dtype == torch.int64
        torch.testing.assert_close(least, all_values.amin(dim=1))
        few = torch.tensor([[8, 3], [1, 9], [4, 0]])
        best, least = try_sets(*scene, sets, 0, few)
        chosen = all_values.gather(1, few)
        wins = chosen.amin(dim=1) < distortion(scene)
        expected = torch.where(wins, few.gather(1, chosen.argmin(dim=1, keepdim=True))[:, 0], DEFAULT_INDEX)
        assert torch.equal(best, expected)
        torch.testing.assert_close(least, torch.minimum(chosen.amin(dim=1), distortion(scene)))

    def test_default_where_no_set_helps(self, scene: Scene) -> None:
        sets = BiasSets(torch.full((2, 3, num_biases(scene[0].decoder)), 5.0), torch.zeros(2, 3, len(TERMS)))
        best, least = try_sets(*scene, sets, 1, torch.tensor([[0, 1, 2]] * 3))
        assert best.tolist() == [DEFAULT_INDEX] * 3
        torch.testing.assert_close(least, distortion(scene))


class TestChooseScale:
    @pytest.mark.parametrize("factor", [1.0, 4.0, 16.0])
    def test_sets_that_go_too_far_are_drawn_in(self, scene: Scene, factor: float) -> None:
        """Pictures that D makes with a small set; the table holds it many times as long."""
        transform, x, z, cond = scene
        torch.manual_seed(1)
        own = 0.02 * torch.randn(3, num_biases(transform.decoder))
        with torch.no_grad():
            made_so = transform.decoder(z, cond, Adaptation(biases=own))[:, :, : x.shape[2], : x.shape[3]].clamp(0, 1)
        curvature = measure_curvature(transform, own, iter([(made_so, z, cond)]))
        scale, saved = choose_scale(transform, factor * own, factor**2 * curvature, [(made_so, z, cond)])
        assert scale == 1.0 / factor
        assert saved > 0.5

    def test_sets_without_use(self, scene: Scene) -> None:
        transform, _, z, cond = scene
        with torch.no_grad():
            exact = transform.decoder(z, cond).clamp(0, 1)
        torch.manual_seed(1)
        values = torch.randn(3, num_biases(transform.decoder))
        _, gain = choose_scale(transform, values, torch.ones(3, len(TERMS)), [(exact, z, cond)])
        assert gain == pytest.approx(0.0, abs=1e-6)


class TestBiasSetsFile:
    @pytest.fixture
    def tensors(self, scene: Scene) -> dict[str, Tensor]:
        return BiasSets(torch.randn(2, 5, num_biases(scene[0].decoder)), torch.randn(2, 5, len(TERMS))).to_tensors()

    def test_round_trip(self, scene: Scene, tensors: dict[str, Tensor]) -> None:
        assert tensors["bias_sets.values"].dtype == torch.float16
        sets = BiasSets.from_tensors(tensors, scene[0])
        assert sets is not None and sets.values.dtype == torch.float32
        assert all(torch.equal(tensors[k], v) for k, v in sets.to_tensors().items())
        assert BiasSets.from_tensors({"other": torch.zeros(1)}, scene[0]) is None
        assert [sets.band(q, 1000) for q in (0, 500, 501, 1000)] == [0, 0, 1, 1]

    def test_curvature_of_older_models(self, scene: Scene, tensors: dict[str, Tensor]) -> None:
        """Two columns, for squared error and MS-SSIM of RGB: what they say counts for luma and chroma, too."""
        old = tensors["bias_sets.curvature"][:, :, [0, 4]]
        sets = BiasSets.from_tensors(tensors | {"bias_sets.curvature": old}, scene[0])
        assert sets is not None and torch.equal(sets.curvature[:, :, :5], old[:, :, [0, 0, 0, 1, 1]])
        assert not sets.curvature[:, :, 5].any()

    def test_curvature_from_before_blue_and_yellow(self, scene: Scene, tensors: dict[str, Tensor]) -> None:
        old = tensors["bias_sets.curvature"][:, :, :5]
        sets = BiasSets.from_tensors(tensors | {"bias_sets.curvature": old}, scene[0])
        assert sets is not None and torch.equal(sets.curvature, torch.nn.functional.pad(old, (0, 1)))

    @pytest.mark.parametrize(
        "name, change, message",
        [
            ("values", lambda v: v[:, :, :-1], "do not fit"),
            ("values", lambda v: v[0], "do not fit"),
            ("values", lambda v: v[:0], "do not fit"),
            ("values", lambda v: v.repeat(1, 52, 1)[:, :256], "do not fit"),
            ("values", lambda v: v.repeat(9, 1, 1)[:17], "do not fit"),
            ("curvature", lambda v: None, "no curvature"),
            ("curvature", lambda v: v[:, :4], "no curvature"),
            ("curvature", lambda v: v[..., 0], "no curvature"),
            ("curvature", lambda v: v[..., :3], "no curvature"),
            ("values", lambda v: v * float("nan"), "not finite"),
            ("curvature", lambda v: v / 0.0, "not finite"),
        ],
    )
    def test_sets_that_do_not_fit(
        self, scene: Scene, tensors: dict[str, Tensor], name: str, change: Any, message: str
    ) -> None:
        changed = change(tensors.pop(f"bias_sets.{name}"))
        if changed is not None:
            tensors[f"bias_sets.{name}"] = changed
        with pytest.raises(ConfigError, match=message):
            BiasSets.from_tensors(tensors, scene[0])


class TestStage:
    @pytest.fixture
    def recipe(self, tmp_path: Path, drawn_picture: npt.NDArray[np.uint8]) -> TrainConfig:
        folder = tmp_path / "pictures"
        folder.mkdir()
        for i in range(3):
            Image.fromarray(np.roll(drawn_picture, 23 * i, axis=1)).resize((96, 80)).save(folder / f"{i}.png")
        return TrainConfig("model.json", data=DataConfig(train=(str(folder),)), bias_sets=replace(CONFIG, patches=5))

    @pytest.fixture
    def start(self, tiny_config: ModelConfig) -> Checkpoint:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            nets, average = Networks(tiny_config), Networks(tiny_config)
        entry = {"stage": "modulators"}
        return Checkpoint(tiny_config, nets.state_dict(), average.state_dict(), "modulators", 9, entry=entry)

    def run(self, recipe: TrainConfig, folder: Path, start: Checkpoint) -> Checkpoint:
        folder.mkdir(exist_ok=True)
        bias_sets.run(recipe, start.config, folder, start, "run mark", torch.device("cpu"), "the command")
        return Checkpoint.load(folder / "checkpoint.pt")

    def test_what_it_leaves(self, recipe: TrainConfig, start: Checkpoint, tmp_path: Path) -> None:
        """Sets overfitted to the averaged networks, which themselves stay as they were."""
        left = self.run(recipe, tmp_path / "run", start)
        for key in start.nets:
            assert torch.equal(left.nets[key], start.average[key])
            assert torch.equal(left.average[key], start.average[key])
        assert left.stage == "bias-sets" and left.parent == "run mark"
        assert [entry["stage"] for entry in left.past()] == ["modulators", "bias-sets"]
        transform = start.networks(start.config)[1].transform.requires_grad_(False)
        sets = BiasSets.from_tensors(left.bias_sets, transform)
        assert sets is not None and sets.values.shape == (1, 2, num_biases(transform.decoder))
        patches = Checkpoint.load(tmp_path / "run" / "patches.pt").objective
        assert bool((patches["after"] < patches["before"]).any())
        # The first patch again, by itself.
        sampler = Sampler(recipe.data, recipe.data.train, 64, recipe.seed)
        x8, cond = make_patches(recipe, 8, sampler, [0])
        assert patches["quality"][0] == cond.quality[0] and patches["mu"][0] == cond.mu[0] == 8
        x, vector = x8.float() / 255, cond.vector(start.config)
        with torch.no_grad():
            y, tau = transform.encoder(x, vector)
            assert tau is not None
            z = (y * transforms.importance_mask(tau, 12)).round().clamp(-128, 127)
        mine = (transform, x, z, vector)
        torch.testing.assert_close(distortion(mine)[0], patches["before"][0], rtol=1e-4, atol=0.0)
        adapted = distortion(mine, Adaptation(biases=patches["biases"][:1]))
        torch.testing.assert_close(adapted[0], patches["after"][0], rtol=1e-4, atol=0.0)

    def test_goes_on_after_an_interruption(
        self, recipe: TrainConfig, start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        straight = self.run(recipe, tmp_path / "straight", start)
        calls = []

        def watched(*arguments: Any) -> Any:
            calls.append(len(arguments[1]))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return overfit_biases(*arguments)

        monkeypatch.setattr(bias_sets, "overfit_biases", watched)
        with pytest.raises(KeyboardInterrupt):
            self.run(replace(recipe, save_minutes=0.0), tmp_path / "broken", start)
        assert not (tmp_path / "broken" / "checkpoint.pt").exists()
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)  # must not make the stored patches look like another network's
        try:
            resumed = self.run(recipe, tmp_path / "broken", start)
        finally:
            torch.set_num_threads(threads)
        assert calls == [2, 2, 1, 1]  # patches 0..3 were not overfitted again
        for key, value in straight.bias_sets.items():
            torch.testing.assert_close(resumed.bias_sets[key], value, rtol=1e-3, atol=1e-3)
        both = [Checkpoint.load(tmp_path / name / "patches.pt").objective for name in ("straight", "broken")]
        for key, value in both[0].items():
            assert torch.equal(value[:4], both[1][key][:4]), key
            torch.testing.assert_close(value, both[1][key], rtol=1e-3, atol=1e-3)

    def test_patches_of_all_bands_and_bits(self, recipe: TrainConfig) -> None:
        """Number i lies in band i mod bands, whatever their number; all bits of the model are used."""
        for bands in (1, 3, 7):
            config = replace(recipe, bias_sets=replace(recipe.bias_sets, bands=bands, patches=2 * bands))
            sampler = Sampler(recipe.data, recipe.data.train, 64, recipe.seed)
            cond = make_patches(config, 4, sampler, range(40))[1]
            assert (cond.b == 4).all()
            assert [band_of(int(q), bands) for q in cond.quality] == [i % bands for i in range(40)]

    def test_patches_of_one_rate(self, recipe: TrainConfig) -> None:
        """A model that was trained at one quality gets sets for that one."""
        config = replace(recipe, bias_sets=replace(recipe.bias_sets, quality_min=43, quality_max=44))
        sampler = Sampler(recipe.data, recipe.data.train, 64, recipe.seed)
        assert set(make_patches(config, 4, sampler, range(12))[1].quality.tolist()) == {43, 44}

    def test_bits_of_the_model(self, recipe: TrainConfig, start: Checkpoint, tmp_path: Path, monkeypatch) -> None:
        start = replace(start, config=replace(start.config, bits=4))
        seen = []
        monkeypatch.setattr(bias_sets, "overfit_biases", lambda *a: seen.append(a[2]) or overfit_biases(*a))
        self.run(recipe, tmp_path / "run", start)
        assert all(bool((z == 16 * (z / 16).round()).all()) for z in seen) and any(bool(z.any()) for z in seen)

    def test_more_patches_keep_those_that_are_there(
        self, recipe: TrainConfig, start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self.run(recipe, tmp_path / "run", start)
        calls = []
        monkeypatch.setattr(bias_sets, "overfit_biases", lambda *a: calls.append(len(a[1])) or overfit_biases(*a))
        more = replace(recipe, bias_sets=replace(recipe.bias_sets, patches=8))
        second = self.run(more, tmp_path / "run", start)
        assert sum(calls) == 3 and (first.step, second.step) == (5, 8)

    def test_networks_of_another_recipe(self, recipe: TrainConfig, start: Checkpoint, tmp_path: Path) -> None:
        other = replace(start.config, transform=replace(start.config.transform, width=24))
        with pytest.raises(TrainingError, match="of another architecture"):
            bias_sets.run(recipe, other, tmp_path / "run", start, "", torch.device("cpu"), "")

    @pytest.mark.parametrize("what", ["settings", "networks"])
    def test_patches_of_another_run_are_not_taken(
        self, recipe: TrainConfig, start: Checkpoint, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = replace(recipe, bias_sets=replace(recipe.bias_sets, iterations=1))
        self.run(recipe, tmp_path / "run", start)
        calls = []
        monkeypatch.setattr(
            bias_sets,
            "overfit_biases",
            lambda *a: calls.append(len(a[1])) or overfit_biases(*a),  # type: ignore[func-returns-value]
        )
        self.run(recipe, tmp_path / "run", start)
        assert calls == []
        if what == "settings":
            recipe = replace(recipe, bias_sets=replace(recipe.bias_sets, iterations=2))
        else:
            start.average["transform.decoder.first.bias"][0] += 1e-6
        self.run(recipe, tmp_path / "run", start)
        assert calls == [2, 2, 1]
