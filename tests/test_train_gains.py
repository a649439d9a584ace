"""Gains calibrated by the loss of rounded latents."""

from dataclasses import replace

import pytest
import skimage.data
import torch

from l2c import transforms
from l2c.config import ModelConfig
from l2c.errors import ConfigError
from l2c.train import gains
from l2c.train.config import GainsConfig, LossConfig
from l2c.train.losses import Conditions, Networks
from l2c.train.pretrain import PretrainObjective
from l2c.train.validation import coded, drawn_pictures
from l2c.transforms import PaperConfig
from l2c.transforms.block import gains_of

SETTINGS = GainsConfig(sweeps=2, lmbdas=(0.001, 0.01, 0.1))


@pytest.fixture(params=[False, True], ids=["two gains", "companding"])
def nets(request: pytest.FixtureRequest, tiny_config: ModelConfig) -> Networks:
    """A block transform and nothing behind it, whose gains are 2.7 times too large for an untrained P."""
    transform = replace(tiny_config.transform, mask=False, companding=request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = Networks(replace(tiny_config, transform=transform)).eval().requires_grad_(False)
    for layer in (made.transform.encoder.head, made.transform.decoder.head, made.transform.decoder.last):
        layer.weight.zero_()
        layer.bias.zero_()
    for gain in gains_of(made.transform.encoder, made.transform.decoder):
        gain.fc2.bias += 1.0
    return made


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    photo = torch.from_numpy(skimage.data.astronaut()[:128, 128:256].copy())
    return (photo.permute(2, 0, 1)[None].float() / 255.0).contiguous()


def test_search_finds_coarser_steps_and_leaves_the_networks(nets: Networks, x: torch.Tensor) -> None:
    kept = {key: value.clone() for key, value in nets.state_dict().items()}
    offset, before, after = gains.search(nets, x, 300, 0, SETTINGS)
    assert all(torch.equal(value, kept[key]) for key, value in nets.state_dict().items())
    assert after < 0.9 * before and float(offset.mean()) < -0.1
    assert len({*offset[:3].tolist()}) == 1 and len({*offset[8:].tolist()}) == 1  # a group's channels move together
    with gains._changed(gains_of(nets.transform.encoder, nets.transform.decoder), offset):
        assert float(coded(nets, x, 300, 0)[2].mean()) == pytest.approx(after, rel=1e-6)


def test_solve_reaches_what_was_found(nets: Networks) -> None:
    (gain, *_) = gains_of(nets.transform.encoder, nets.transform.decoder)
    log_lmbdas = torch.tensor(SETTINGS.lmbdas).log()
    rising, mus = torch.tensor([-0.4, -0.2, 0.1])[:, None], torch.tensor([0.0, 0.1, 0.2])[None]
    offsets = (rising + mus)[:, :, None] * torch.linspace(0.5, 1.0, 12)
    cond = transforms.condition(torch.tensor(SETTINGS.lmbdas).repeat_interleave(3), torch.tensor([0.0, 0.5, 1.0] * 3))
    before = gain.logarithm(cond)
    left = gains.solve(gain, log_lmbdas, offsets)
    found = (gain.logarithm(cond) - before)[:, :, 0, 0].view(3, 3, 12)
    assert 0.0 < left < 0.03
    torch.testing.assert_close(found, offsets, rtol=0.0, atol=0.1)
    assert gains.solve(gain, log_lmbdas, torch.zeros(3, 3, 12)) == 0.0
    assert torch.equal(gain.logarithm(cond)[:, :, 0, 0].view(3, 3, 12) - before[:, :, 0, 0].view(3, 3, 12), found)


def test_calibrate_lowers_the_loss(nets: Networks, x: torch.Tensor) -> None:
    conditions = [(quality, mu) for quality in (100, 500, 900) for mu in (0, 4, 8)]
    before = [float(coded(nets, x, *condition)[2].mean().log()) for condition in conditions]
    assert gains.calibrate(nets, x, SETTINGS).endswith(" % of the loss where it was measured")
    after = [float(coded(nets, x, *condition)[2].mean().log()) for condition in conditions]
    assert sum(after) < sum(before) - 0.05 * len(conditions)


@pytest.mark.parametrize("fixed", [True, False])
def test_pretraining_leaves_fixed_gains(nets: Networks, x: torch.Tensor, fixed: bool) -> None:
    nets.requires_grad_(True)
    objective = PretrainObjective(nets, LossConfig(), None, fixed)
    cond = Conditions(torch.tensor([500]), torch.tensor([4]), torch.tensor([8]))
    grid = nets.transform.encoder(x, cond.vector(nets.config))[0].shape
    objective.loss(x, cond, torch.zeros(grid)).total.mean().backward()
    found = gains_of(nets.transform.encoder, nets.transform.decoder)
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    ids = {id(p) for gain in found for p in gain.parameters()}
    held = {name for name, p in objective.named_parameters() if id(p) in ids}
    assert held and all((gain.fc2.bias.grad is None) == fixed for gain in found)
    assert trained == {name for name, _ in objective.named_parameters()} - (held if fixed else set())


def test_pictures_to_calibrate_on_are_none_of_validation() -> None:
    shown, held = (drawn_pictures(4, 64, salt=salt) for salt in (1, 0))
    assert not any(torch.equal(a, b) for a in shown for b in held)


def test_what_has_no_gains_and_settings_that_say_nothing(tiny_config: ModelConfig, nets: Networks, x) -> None:
    with pytest.raises(ConfigError, match="only networks of the family block"):
        paper = transforms.Transform(PaperConfig(4, 12, 16))
        gains_of(paper.encoder, paper.decoder)
    with pytest.raises(ConfigError, match="only networks of the family block"):
        PretrainObjective(Networks(replace(tiny_config, transform=PaperConfig(4, 12, 16))), LossConfig(), None, True)
    with pytest.raises(ConfigError, match="fewer than two"):
        gains.calibrate(nets, x, replace(SETTINGS, lmbdas=(1e-9, 1e-8)))
    for wrong in ({"lmbdas": (0.1,)}, {"lmbdas": (0.1, 0.01)}, {"step": 0.0}, {"sweeps": 0}, {"pictures": 0}):
        with pytest.raises(ConfigError, match="gains"):
            GainsConfig(**wrong)
