"""Reading CompressAI's checkpoints: state dicts of our own networks, named and wrapped as theirs; every error."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn

from l2c.architectures import ARCHITECTURES, LMBDA_MAX, LMBDA_MIN
from l2c.compressai import Checkpoint, assemble, names, read
from l2c.entropy.hyperprior.config import HyperpriorConfig
from l2c.entropy.hyperprior.float_model import HyperpriorModel
from l2c.errors import ConfigError, L2CWarning, ModelMismatchError
from l2c.models import model_id
from l2c.transforms import HyperpriorTransformConfig, Transform, condition
from l2c.transforms.hyperprior import HyperpriorDecoder, HyperpriorEncoder

State = dict[str, Tensor]


def sizes(architecture: str) -> tuple[int, int]:
    return (4, 4) if ARCHITECTURES[architecture].residual else (4, 6)


def weights(architecture: str, seed: int = 0, n: int | None = None, m: int | None = None) -> State:
    """A state dict under the newest names, parameters alone."""
    torch.manual_seed(seed)
    small_n, small_m = sizes(architecture)
    n, m = n or small_n, m or small_m
    transform = Transform(HyperpriorTransformConfig(16, m, architecture, n, (1,)))
    model = HyperpriorModel(HyperpriorConfig(architecture, n, (1,)), m)
    assert isinstance(transform.encoder, HyperpriorEncoder) and isinstance(transform.decoder, HyperpriorDecoder)
    parts: tuple[tuple[str, nn.Module], ...] = (
        ("g_a.", transform.encoder.g_a[0]),
        ("g_s.", transform.decoder.g_s[0]),
        ("", model.level(0)),
    )
    state = {prefix + key: tensor for prefix, part in parts for key, tensor in part.state_dict().items()}
    return {key: tensor + 0.01 * torch.randn_like(tensor) for key, tensor in state.items()}


def with_buffers(state: State) -> State:
    """What CompressAI saves besides."""
    mask = torch.zeros(5, 5)
    mask.view(-1)[:12] = 1.0
    more: State = {
        "entropy_bottleneck._offset": torch.zeros(4, dtype=torch.int32),
        "entropy_bottleneck._quantized_cdf": torch.zeros(4, 9, dtype=torch.int32),
        "entropy_bottleneck._cdf_length": torch.zeros(4, dtype=torch.int32),
        "entropy_bottleneck.target": torch.tensor([-21.4, 0.0, 21.4]),
        "entropy_bottleneck.likelihood_lower_bound.bound": torch.tensor([1e-9]),
    }
    if any(key.startswith("h_s.") for key in state):
        more |= {
            "gaussian_conditional._offset": torch.zeros(64, dtype=torch.int32),
            "gaussian_conditional._quantized_cdf": torch.zeros(64, 9, dtype=torch.int32),
            "gaussian_conditional._cdf_length": torch.zeros(64, dtype=torch.int32),
            "gaussian_conditional.scale_table": torch.ones(64),
            "gaussian_conditional.scale_bound": torch.tensor([0.11]),
            "gaussian_conditional.likelihood_lower_bound.bound": torch.tensor([1e-9]),
            "gaussian_conditional.lower_bound_scale.bound": torch.tensor([0.11]),
        }
    for key in [key for key in state if key.endswith((".beta", ".gamma"))]:
        bound = (1e-6 * key.endswith(".beta") + 2.0**-36) ** 0.5
        more |= {
            f"{key}_reparam.pedestal": torch.tensor([2.0**-36]),
            f"{key}_reparam.lower_bound.bound": torch.tensor([bound]),
        }
    if "context_prediction.weight" in state:
        more["context_prediction.mask"] = mask.expand_as(state["context_prediction.weight"])
    return state | more


def generation_0(state: Mapping[str, Tensor]) -> State:
    """Names of v1.0.0."""
    state = {re.sub(r"^entropy_bottleneck\.(mat|bia|fac)", r"entropy_bottleneck._\1", k): v for k, v in state.items()}
    return {key.replace(".skip.", ".downsample."): tensor for key, tensor in state.items()}


def generation_1(state: Mapping[str, Tensor]) -> State:
    """Names of v1.1 to v1.2.6."""
    one = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}

    def old(key: str) -> str:
        return re.sub(r"bottleneck\.(matrices|biases|factors)\.", lambda found: f"bottleneck.{one[found[1]]}", key)

    return {old(key): tensor for key, tensor in state.items()}


GENERATIONS: dict[str, Callable[[Mapping[str, Tensor]], State]] = {
    "1.0": generation_0,
    "1.1": generation_1,
    "new": dict,
}


def legacy(found: Any) -> bytes:
    """As PyTorch 1.5 saved it."""
    stream = io.BytesIO()
    torch.save(found, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def modern(found: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(found, stream)
    return stream.getvalue()


def assert_equal(found: Checkpoint, state: State) -> None:
    assert set(found.state) == set(state)
    for key, tensor in state.items():
        assert found.state[key].dtype == torch.float32 and torch.equal(found.state[key], tensor), key


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    """None but those that a test expects."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", L2CWarning)
        yield


class TestRead:
    @pytest.mark.parametrize("generation", GENERATIONS)
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_generations(self, architecture: str, generation: str) -> None:
        state = weights(architecture)
        old = GENERATIONS[generation](with_buffers(state))
        if generation != "new":
            assert set(old) != set(with_buffers(state))
        found = read(old, 3, "ms-ssim")
        assert (found.architecture, found.n, found.m) == (architecture, *sizes(architecture))
        assert (found.quality, found.metric, found.source, found.sha256) == (3, "ms-ssim", "a state dict", "")
        assert_equal(found, state)

    @pytest.mark.parametrize("architecture, n, m", [
        ("mbt2018", 6, 9), ("mbt2018", 9, 6), ("mbt2018-mean", 5, 5), ("bmshj2018-hyperprior", 8, 4),
        ("cheng2020-anchor", 6, 6), ("cheng2020-attn", 7, 7),
    ])  # fmt: skip
    def test_other_sizes(self, architecture: str, n: int, m: int) -> None:
        found = read(weights(architecture, n=n, m=m), 1, "mse")
        assert (found.architecture, found.n, found.m) == (architecture, n, m)

    @pytest.mark.parametrize("wrap", [
        lambda state: {"state_dict": state, "epoch": 7, "loss": torch.tensor(1.0), "optimizer": {"state": {}}},
        lambda state: {"network": {f"module.{key}": tensor for key, tensor in state.items()}},
        lambda state: {"model_state_dict": {"network": {f"module.module.{k}": t for k, t in state.items()}}},
        lambda state: {f"_orig_mod.module.{key}": tensor for key, tensor in state.items()},
    ])  # fmt: skip
    @pytest.mark.parametrize("save", [legacy, modern])
    def test_wrappers_and_files(
        self, wrap: Callable[[State], dict[str, Any]], save: Callable[[Any], bytes], tmp_path: Path
    ) -> None:
        state = weights("cheng2020-anchor")
        path = tmp_path / "mine.pth.tar"
        path.write_bytes(save(wrap(generation_0(with_buffers(state)))))
        found = read(path, 2, "mse")
        assert_equal(found, state)
        assert found.source == "mine.pth.tar" and found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_safetensors(self, tmp_path: Path) -> None:
        """Known by its content, not by its name."""
        state = weights("mbt2018")
        path = tmp_path / "mine.bin"
        path.write_bytes(safetensors_save({key: tensor.contiguous() for key, tensor in with_buffers(state).items()}))
        assert_equal(read(str(path), 2, "mse"), state)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor
                 for key, tensor in with_buffers(weights("mbt2018")).items()}  # fmt: skip
        found = read(state, 2, "mse")
        for key, tensor in found.state.items():
            assert tensor.dtype == torch.float32 and torch.equal(tensor, state[key].float())

    def test_is_a_copy(self) -> None:
        state = weights("mbt2018")
        found = read(state, 2, "mse")
        before = found.state["g_a.0.weight"].clone()
        state["g_a.0.weight"].zero_()
        assert torch.equal(found.state["g_a.0.weight"], before)

    def test_parameters_of_modules(self) -> None:
        state = {key: nn.Parameter(tensor) for key, tensor in weights("mbt2018").items()}
        found = read(state, 2, "mse")
        assert not any(tensor.requires_grad for tensor in found.state.values())


class TestFileNames:
    @pytest.mark.parametrize("name, expected", [
        ("mbt2018-3-22901978.pth.tar", ("mbt2018", "mse", 3, "22901978")),
        ("mbt2018-mean-ms-ssim-8-0cc7b94f.pth.tar", ("mbt2018-mean", "ms-ssim", 8, "0cc7b94f")),
        ("bmshj2018-factorized-prior-1-446d5c7f.pth.tar", ("bmshj2018-factorized", "mse", 1, "446d5c7f")),
        ("bmshj2018-factorized-ms-ssim-6-ee028763.pth.tar", ("bmshj2018-factorized", "ms-ssim", 6, "ee028763")),
        ("bmshj2018-hyperprior-4-de1b779c.pth.tar", ("bmshj2018-hyperprior", "mse", 4, "de1b779c")),
        ("cheng2020-anchor-1-dad2ebff.pth.tar", ("cheng2020-anchor", "mse", 1, "dad2ebff")),
        ("cheng2020_anchor-ms-ssim-5-c0a95e77.pth.tar", ("cheng2020-anchor", "ms-ssim", 5, "c0a95e77")),
        ("cheng2020_attn-mse-6-730501f2.pth.tar", ("cheng2020-attn", "mse", 6, "730501f2")),
        ("mbt2018-3.safetensors", ("mbt2018", "mse", 3, "")),
        ("mbt2018-9-22901978.pth.tar", None),
        ("checkpoint_best_loss.pth.tar", None),
        ("mbt2018-3-22901978.pth.tar.part", None),
        ("my-mbt2018-3.pth", None),
    ])  # fmt: skip
    def test_names(self, name: str, expected: tuple[str, str, int, str] | None) -> None:
        assert names.of_file(name) == (None if expected is None else names.Published(*expected))

    def test_says_quality_and_metric(self, tmp_path: Path) -> None:
        data = modern(weights("mbt2018"))
        digits = hashlib.sha256(data).hexdigest()[:8]
        for name, metric in ((f"mbt2018-3-{digits}.pth.tar", "mse"), (f"mbt2018-ms-ssim-3-{digits}.pth", "ms-ssim")):
            (tmp_path / name).write_bytes(data)
            found = read(tmp_path / name)
            assert (found.quality, found.metric) == (3, metric)
        found = read(tmp_path / name, 5, "mse")  # arguments come first
        assert (found.quality, found.metric) == (5, "mse")

    def test_checks_the_digits(self, tmp_path: Path) -> None:
        path = tmp_path / "mbt2018-3-22901978.pth.tar"
        path.write_bytes(modern(weights("mbt2018")))
        with pytest.warns(L2CWarning, match=r"mbt2018-3-22901978\.pth\.tar: its SHA-256 starts with"):
            assert read(path).quality == 3

    def test_checks_the_architecture(self, tmp_path: Path) -> None:
        (tmp_path / "mbt2018-mean-3.pth").write_bytes(modern(weights("mbt2018")))
        with pytest.raises(ModelMismatchError, match="holds weights of mbt2018, not of what its name says"):
            read(tmp_path / "mbt2018-mean-3.pth")

    def test_neither_says_it(self, tmp_path: Path) -> None:
        (tmp_path / "mine.pth").write_bytes(modern(weights("mbt2018")))
        with pytest.raises(
            ConfigError, match=r"mine\.pth: say of which quality \(1\.\.8\) and metric \(mse or ms-ssim\)"
        ):
            read(tmp_path / "mine.pth")
        with pytest.raises(ConfigError, match=r"a state dict: say of which metric"):
            read(weights("mbt2018"), 3)
        with pytest.raises(ConfigError, match=r"the quality is 9; it must be 1\.\.8"):
            read(weights("mbt2018"), 9, "mse")
        with pytest.raises(ConfigError, match="the metric is 'psnr'; it must be mse or ms-ssim"):
            read(weights("mbt2018"), 3, "psnr")  # type: ignore[arg-type]


class TestRefused:
    def test_all_that_is_wrong(self) -> None:
        """One error names everything."""
        state: dict[str, Any] = with_buffers(weights("mbt2018"))
        del state["g_s.4.bias"], state["h_a.2.weight"]
        state["g_a.9.weight"] = torch.zeros(3)
        state["h_s.0.bias"] = torch.zeros(7)
        state["h_s.2.bias"] = torch.zeros(9, dtype=torch.int64)
        state["entropy_parameters.0.bias"][2] = float("nan")
        state["entropy_parameters.2.bias"][1] = float("inf")
        state["g_a.1.beta_reparam.pedestal"] = torch.tensor([0.5])
        state["epoch"] = 12
        state["entropy_bottleneck._matrix0"] = state["entropy_bottleneck.matrices.0"]
        with pytest.raises(ModelMismatchError) as caught:
            read(state, 1, "mse")
        message = str(caught.value)
        assert message.startswith("a state dict is no mbt2018 with N = 4 and M = 6; ")
        for part in (
            "missing: g_s.4.bias, h_a.2.weight",
            "unexpected: g_a.9.weight",
            "of another shape: h_s.0.bias ([7] instead of [6])",
            "no floating numbers: h_s.2.bias (torch.int64)",
            "not finite: entropy_parameters.0.bias, entropy_parameters.2.bias",
            "a constant of another value: g_a.1.beta_reparam.pedestal",
            "no tensor: epoch (int)",
            "there twice: entropy_bottleneck.matrices.0",
        ):
            assert part in message, part

    def test_overflow_of_doubles(self) -> None:
        state = {key: tensor.double() for key, tensor in weights("mbt2018").items()}
        state["g_a.0.bias"][0] = 1e300
        with pytest.raises(ModelMismatchError, match=r"not finite: g_a\.0\.bias"):
            read(state, 1, "mse")

    @pytest.mark.parametrize("key", ["context_prediction.mask", "gaussian_conditional.scale_bound",
                                     "gaussian_conditional.lower_bound_scale.bound"])  # fmt: skip
    def test_other_constants(self, key: str) -> None:
        state = with_buffers(weights("mbt2018"))
        state[key] = torch.full_like(state[key], 0.2)
        with pytest.raises(ModelMismatchError, match=f"a constant of another value: {key}"):
            read(state, 1, "mse")
        state[key] = torch.zeros(3)
        with pytest.raises(ModelMismatchError, match=f"a constant of another value: {key}"):
            read(state, 1, "mse")

    def test_of_none_of_them(self) -> None:
        relu = {key: tensor for key, tensor in weights("bmshj2018-factorized").items() if ".beta" not in key}
        with pytest.raises(ModelMismatchError, match=r"no bmshj2018-factorized .* missing: g_a\.1\.beta"):
            read(relu, 1, "mse")
        with pytest.raises(ModelMismatchError, match=r"of none of bmshj2018-factorized, .*: it holds conv\.weight"):
            read({"conv.weight": torch.zeros(3, 3)}, 1, "mse")
        with pytest.raises(ModelMismatchError, match="it holds no tensors"):
            read({}, 1, "mse")

    def test_too_deep(self) -> None:
        deep: dict[str, Any] = weights("mbt2018")
        for _ in range(5):
            deep = {"state_dict": deep}
        with pytest.raises(ModelMismatchError, match="no state dict"):
            read(deep, 1, "mse")

    @pytest.mark.parametrize("shape", [(1, 3, 5, 5), (5000, 3, 5, 5), (0, 3, 5, 5), (4,), ()])
    def test_absurd_sizes(self, shape: tuple[int, ...]) -> None:
        for key in ("g_a.0.weight", "g_a.6.weight"):
            state = weights("mbt2018")
            state[key] = torch.zeros(()).expand(shape)
            with pytest.raises(ModelMismatchError):
                read(state, 1, "mse")

    def test_huge_without_data(self) -> None:
        """A tensor may say that it is larger than the file: nothing of that size is made."""
        state = weights("mbt2018")
        for key in ("g_a.0.weight", "g_a.6.weight", "g_a.0.bias"):
            state[key] = torch.zeros(1).expand(1 << 40, *state[key].shape[1:])
        with pytest.raises(ModelMismatchError):
            read(state, 1, "mse")

    def test_sparse_and_meta(self) -> None:
        state = weights("mbt2018")
        state["g_a.0.bias"], state["g_a.2.bias"] = state["g_a.0.bias"].to_sparse(), state["g_a.2.bias"].to("meta")
        with pytest.raises(ModelMismatchError, match=r"no floating numbers: g_a\.0\.bias .*g_a\.2\.bias"):
            read(state, 1, "mse")


class Harmful:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class TestFiles:
    @pytest.mark.parametrize("save", [legacy, modern])
    def test_objects(self, save: Callable[[Any], bytes], tmp_path: Path) -> None:
        path, sign = tmp_path / "bad.pth.tar", tmp_path / "ran"
        path.write_bytes(save({"state_dict": weights("mbt2018"), "more": Harmful(sign)}))
        with pytest.raises(ModelMismatchError, match=r"bad\.pth\.tar holds objects \(.*\) besides weights"):
            read(path, 1, "mse")
        path.write_bytes(save(nn.Linear(2, 2)))
        with pytest.raises(ModelMismatchError, match=r"objects \(torch\.nn\.modules\.linear\.Linear\) besides weights"):
            read(path, 1, "mse")
        assert not sign.exists()

    @pytest.mark.parametrize("save", [legacy, modern, safetensors_save])
    def test_truncated(self, save: Callable[[Any], bytes], tmp_path: Path) -> None:
        data = save(weights("bmshj2018-factorized"))
        path = tmp_path / "short.pth"
        for length in (0, 1, 8, 9, 10, 100, 500, len(data) // 2, len(data) - 9, len(data) - 1):
            path.write_bytes(data[:length])
            with pytest.raises(ModelMismatchError, match=r"short\.pth"):
                read(path, 1, "mse")

    def test_damaged(self, tmp_path: Path) -> None:
        """Whatever a byte becomes: weights, or an error of ours."""
        path, data = tmp_path / "damaged.pth", bytearray(legacy(weights("bmshj2018-factorized")))
        generator = torch.Generator().manual_seed(0)
        places = torch.randint(0, 2000, (60,), generator=generator).tolist()
        for place, value in zip(places, torch.randint(0, 256, (60,), generator=generator).tolist()):
            kept, data[place] = data[place], value
            path.write_bytes(data)
            try:
                read(path, 1, "mse")
            except ModelMismatchError as error:
                assert "damaged.pth" in str(error)
            data[place] = kept

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelMismatchError, match=r"none\.pth cannot be read: No such file"):
            read(tmp_path / "none.pth")
        with pytest.raises(ModelMismatchError, match="cannot be read"):
            read(tmp_path)
        (tmp_path / "list.pth").write_bytes(modern([torch.zeros(1)]))
        with pytest.raises(ModelMismatchError, match=r"list\.pth holds a list, no state dict"):
            read(tmp_path / "list.pth", 1, "mse")
        (tmp_path / "text.pth").write_text("<html>404</html>")
        with pytest.raises(ModelMismatchError, match="damaged or no checkpoint of PyTorch"):
            read(tmp_path / "text.pth", 1, "mse")

    def test_large_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither those nor small archives that unpack to large ones are taken."""
        path, bomb = tmp_path / "large.pth", tmp_path / "bomb.pth"
        path.write_bytes(modern(weights("bmshj2018-factorized")))
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(1 << 20))
        monkeypatch.setattr("l2c.compressai.checkpoints.MAX_FILE_BYTES", bomb.stat().st_size)
        with pytest.raises(ModelMismatchError, match=r"large\.pth has 0 MiB; no checkpoint has more"):
            read(path, 1, "mse")
        with pytest.raises(ModelMismatchError, match=r"bomb\.pth unpacks to 1 MiB"):
            read(bomb, 1, "mse")

    def test_safetensors_header(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.safetensors"
        path.write_bytes(struct.pack("<Q", 20) + b'{"a": {"dtype": 1}}  ')
        with pytest.raises(ModelMismatchError, match="damaged safetensors file"):
            read(path, 1, "mse")


class TestAssemble:
    def checkpoints(self, *qualities: int, architecture: str = "mbt2018") -> list[Checkpoint]:
        return [read(weights(architecture, seed=quality), quality, "mse") for quality in qualities]

    def test_one_model(self) -> None:
        """Each quality's weights are where its pictures find them."""
        config, transform, probability = assemble(self.checkpoints(4, 1, 2), "three", stored="float16")
        assert config.name == "three" and (config.lmbda_min, config.lmbda_max) == (LMBDA_MIN, LMBDA_MAX)
        assert config.transform == HyperpriorTransformConfig(16, 6, "mbt2018", 4, (1, 2, 4), stored="float16")
        assert config.probability == HyperpriorConfig("mbt2018", 4, (1, 2, 4))
        assert not transform.training and not probability.training
        x, y = torch.rand(1, 3, 32, 32), torch.randint(-5, 6, (1, 6, 2, 2)).float()
        for quality, tenths in ((1, 0), (2, 143), (4, 429)):
            _, alone, alone_p = assemble(self.checkpoints(quality), "one")
            cond = condition(torch.tensor([config.lmbda(tenths / 1000)]), torch.zeros(1))
            header = torch.tensor([[tenths, 0, 8]])
            with torch.no_grad():
                assert torch.equal(transform.encoder(x, cond)[0], alone.encoder(x, cond)[0])
                assert torch.equal(transform.decoder(y, cond), alone.decoder(y, cond))
                assert torch.equal(probability.num_bits(y, y, header), alone_p.num_bits(y, y, header))

    def test_shared_decoder(self) -> None:
        """Starts as the highest quality's."""
        _, transform, _ = assemble(self.checkpoints(3, 1), "two", shared_decoder=True, modulators=(1,), hidden=8)
        assert len(transform.decoder.g_s) == 1 and len(transform.decoder.mods) == 1
        for key, tensor in weights("mbt2018", seed=3).items():
            if key.startswith("g_s."):
                assert torch.equal(transform.decoder.g_s[0].state_dict()[key[4:]], tensor)

    def test_is_reproducible(self) -> None:
        """Equal checkpoints give equal models, whatever random numbers were drawn before, and draw none."""
        ids = []
        for seed in (1, 2):
            checkpoints = self.checkpoints(1, 2)
            torch.manual_seed(seed)
            before = torch.random.get_rng_state()
            config, transform, _ = assemble(checkpoints, "same")
            assert torch.equal(before, torch.random.get_rng_state())
            ids.append(model_id(config.to_json(), transform.state_dict()))
        assert ids[0] == ids[1]

    def test_refused(self) -> None:
        one = self.checkpoints(1)
        with pytest.raises(ConfigError, match="at least one checkpoint"):
            assemble([], "none")
        with pytest.raises(ConfigError, match="quality 1 is there twice"):
            assemble([*one, *one], "twice")
        with pytest.raises(
            ConfigError, match=r"of one architecture: quality 1 .* has mbt2018, quality 2 .* mbt2018-mean"
        ):
            assemble([*self.checkpoints(2, architecture="mbt2018-mean"), *one], "mixed")
        with pytest.raises(ConfigError, match=r"of one metric: quality 1 .* has mse, quality 2 .* has ms-ssim"):
            assemble([*one, read(weights("mbt2018"), 2, "ms-ssim")], "mixed")
        with pytest.raises(ConfigError, match=r"of one \(N, M\): quality 1 .* has \(4, 6\), quality 2 .* has \(4, 9\)"):
            assemble([*one, read(weights("mbt2018", m=9), 2, "mse")], "mixed")
