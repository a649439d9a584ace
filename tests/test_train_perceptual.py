"""VGG16's features from a file of torchvision's layout (random values here), and the distance on them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.train.perceptual import VGG16Features, load_vgg16, perceptual_distance


def torchvision_layers() -> nn.Sequential:
    """`features` up to ReLU 4-3, in the order of torchvision's `vgg16`."""
    conv = lambda a, b: nn.Conv2d(a, b, kernel_size=3, padding=1)  # noqa: E731
    relu, pool = (lambda: nn.ReLU(inplace=True)), (lambda: nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(
        conv(3, 64), relu(), conv(64, 64), relu(), pool(),
        conv(64, 128), relu(), conv(128, 128), relu(), pool(),
        conv(128, 256), relu(), conv(256, 256), relu(), conv(256, 256), relu(), pool(),
        conv(256, 512), relu(), conv(512, 512), relu(), conv(512, 512), relu(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        layers = torchvision_layers()
    for parameter in layers.parameters():
        if parameter.dim() == 4:  # so that activations neither vanish nor grow
            parameter.data.mul_(6**0.5)
    return layers.requires_grad_(False)


@pytest.fixture(scope="module")
def state(plain: nn.Sequential) -> dict[str, Tensor]:
    """A state dict as torchvision's, with entries after ReLU 4-3 (small here: they are not looked at)."""
    entries = {f"features.{name}": value for name, value in plain.state_dict().items()}
    return {**entries, "features.24.weight": torch.ones(2), "classifier.0.weight": torch.full((3, 3), torch.nan)}


@pytest.fixture(scope="module")
def features(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> VGG16Features:
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.pth"
    torch.save(state, path)
    return load_vgg16(path)


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand((2, 3, 17, 22), generator=generator)
    return x, (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def plain_features(plain: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    h = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    found = []
    for i, layer in enumerate(plain):
        h = layer(h)
        if i in (8, 22):
            found.append(h.clone())
    return found[0], found[1]


def test_features_are_those_of_torchvisions_order(
    features: VGG16Features, plain: nn.Sequential, pictures: tuple[Tensor, Tensor]
) -> None:
    x = pictures[0]
    before = x.clone()
    relu2_2, relu4_3 = features(x)
    expected = plain_features(plain, x)
    assert (relu2_2.shape, relu4_3.shape) == ((2, 128, 8, 11), (2, 512, 2, 2))
    assert relu2_2.min() == relu4_3.min() == 0 and relu4_3.max() > 0.1
    assert torch.equal(relu2_2, expected[0]) and torch.equal(relu4_3, expected[1])
    assert torch.equal(x, before)


def test_names_and_frozen(features: VGG16Features, state: dict[str, Tensor]) -> None:
    convolutions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)
    assert list(features.state_dict()) == [f"features.{i}.{part}" for i in convolutions for part in ("weight", "bias")]
    assert all(torch.equal(value, state[name]) for name, value in features.state_dict().items())
    assert not any(p.requires_grad for p in features.parameters())
    assert not any(p.requires_grad for p in VGG16Features().parameters())


@pytest.mark.parametrize("how", ["old.pth", "half.pt", "vgg16.safetensors"])
def test_file_formats(how: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / how
    if how == "old.pth":  # the format of the file that torchvision has been handing out
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif how == "half.pt":
        torch.save({name: value.half() for name, value in state.items()}, path)
    else:
        save_file(state, path)
    generator = torch.get_rng_state()
    loaded = load_vgg16(str(path))
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].half().float() if how == "half.pt" else state[name])


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def changed(name: str, change: Callable[[Tensor], object]) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: {**state, name: change(state[name])}


def with_nan(value: Tensor) -> Tensor:
    value = value.clone()
    value.view(-1)[-1] = torch.nan
    return value


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("features.21.bias"), "features.21.bias is missing"),
        (without("features.0.weight"), "features.0.weight is missing"),
        (lambda state: {}, "features.0.weight is missing"),  # the first problem
        (changed("features.7.weight", lambda w: w[:, :64]), r"features.7.weight has shape \[128, 64, 3, 3\]"),
        (changed("features.5.bias", lambda b: b[None]), r"features.5.bias has shape \[1, 128\], VGG16's is \[128\]"),
        (changed("features.10.bias", lambda b: b.long()), "features.10.bias is no floating-point tensor"),
        (changed("features.12.weight", with_nan), "features.12.weight has values that are not finite"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_wrong_entries(
    spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    suffix: str,
    state: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    path = tmp_path / f"wrong{suffix}"
    spoiled = spoil(state)
    if suffix == ".pt":
        torch.save(spoiled, path)
    else:
        save_file({name: value.contiguous() for name, value in spoiled.items()}, path)
    with pytest.raises(ConfigError, match=rf"wrong\{suffix}: {message}"):
        load_vgg16(path)


class Harmful:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return sys.exit, ("code of the file was run",)


@pytest.mark.parametrize("name", ["cut.pth", "noise.pt", "empty.pth", "cut.safetensors", "noise.safetensors"])
def test_unreadable_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    whole = {"features.0.weight": torch.zeros(64, 3, 3, 3)}
    (save_file if path.suffix == ".safetensors" else torch.save)(whole, path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-50], "noise": b"\x93noise" * 99, "empty": b""}[path.stem])
    with pytest.raises(ConfigError, match=f"{name}: not readable: ."):
        load_vgg16(path)


def test_not_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "list.pt"
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ConfigError, match=r"list\.pt: holds a list, not a state dict"):
        load_vgg16(path)
    torch.save({"features.0.weight": "text"}, path)
    with pytest.raises(ConfigError, match=r"list\.pt: features\.0\.weight is no floating-point tensor"):
        load_vgg16(path)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "harmful.pth"
    torch.save({"features.0.weight": Harmful()}, path)
    with pytest.raises(ConfigError, match=r"harmful\.pth: not readable"):
        load_vgg16(path)


def test_no_such_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(ConfigError, match=f"{path}: there is no such file"):
            load_vgg16(path)
    torch.save(state, tmp_path / "vgg16.bin")
    with pytest.raises(ConfigError, match=r"vgg16\.bin: the name ends in none of .pth, .pt, .safetensors"):
        load_vgg16(tmp_path / "vgg16.bin")


def test_distance_is_the_mean_difference_of_each_picture(
    features: VGG16Features, plain: nn.Sequential, pictures: tuple[Tensor, Tensor]
) -> None:
    x, x_hat = pictures
    distance = perceptual_distance(features, x, x_hat)
    assert (distance.shape, distance.dtype) == ((2,), torch.float32)
    for i in range(2):
        a, b = (plain_features(plain, p[i : i + 1]) for p in (x, x_hat))
        expected = (a[0] - b[0]).abs().mean() + (a[1] - b[1]).abs().mean()
        torch.testing.assert_close(distance[i], expected)
        assert expected > 0.01
    assert torch.equal(perceptual_distance(features, x, x.clone()), torch.zeros(2))


def test_gradient_flows_to_x_hat_only(features: VGG16Features, pictures: tuple[Tensor, Tensor]) -> None:
    x, x_hat = (p.clone().requires_grad_() for p in pictures)
    distance = perceptual_distance(features, x, x_hat)
    distance[1].backward()
    assert x.grad is None and all(p.grad is None for p in features.parameters())
    assert x_hat.grad is not None and x_hat.grad[0].abs().max() == 0
    assert x_hat.grad[1].isfinite().all() and x_hat.grad[1].abs().max() > 0
    smaller = x_hat.detach() - 1e-3 * x_hat.grad / x_hat.grad.norm()
    assert perceptual_distance(features, x, smaller)[1] < distance[1]


def test_float32_under_autocast_and_from_other_types(features: VGG16Features, pictures: tuple[Tensor, Tensor]) -> None:
    x, x_hat = pictures
    expected = perceptual_distance(features, x, x_hat)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(perceptual_distance(features, x, x_hat), expected)
    assert torch.equal(perceptual_distance(features, x.double(), x_hat.double()), expected)
    low = x_hat.bfloat16().requires_grad_()
    found = perceptual_distance(features, x, low)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, perceptual_distance(features, x, low.detach().float()))
    found.sum().backward()
    assert low.grad is not None and low.grad.abs().max() > 0


def test_shapes_that_are_refused(features: VGG16Features) -> None:
    for shape in ((1, 3, 15, 16), (1, 3, 16, 15)):
        with pytest.raises(ValueError, match="at least 16 pixels"):
            perceptual_distance(features, torch.zeros(shape), torch.zeros(shape))
    assert perceptual_distance(features, torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)) == 0
    for a, b in (((1, 3, 16, 16), (2, 3, 16, 16)), ((1, 1, 16, 16),) * 2, ((3, 16, 16),) * 2):
        with pytest.raises(ValueError, match="of one shape"):
            perceptual_distance(features, torch.zeros(a), torch.zeros(b))
