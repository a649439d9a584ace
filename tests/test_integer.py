"""The integer model: equal integers everywhere, close to the float model, guarded at load."""

import dataclasses

import numpy as np
import pytest
import torch

import l2c
from l2c import ops
from l2c.config import ModelConfig
from l2c.entropy import multiscale
from l2c.entropy.coder import DecodingJob, EncodingJob
from l2c.entropy.multiscale import MultiscaleConfig, ProbabilityModel
from l2c.entropy.multiscale.backends import stepwise
from l2c.errors import BackendError, BitstreamError, ModelMismatchError
from l2c.format.levels import OperatingPoint
from l2c.ops import arithmetic, reference
from l2c.ops.contract import IntegerLayer
from l2c.transforms import BlockConfig

CONFIG = ModelConfig("p", BlockConfig(8, 10, 8, 1, 1), MultiscaleConfig(3, (3, 7), 3, 24), bits=8)
BACKENDS = ("cpu", "torch", "reference")


def float_model(config: ModelConfig = CONFIG) -> ProbabilityModel:
    torch.manual_seed(0)
    p = config.float_model()
    with torch.no_grad():
        for parameter in p.parameters():
            parameter.mul_(1.7)
    return p


@pytest.fixture(scope="module")
def model() -> multiscale.IntegerModel:
    return multiscale.IntegerModel.from_float(float_model())


def some_symbols(height: int, width: int, seed: int = 0, b: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = np.array([40, 20, 10, 6, 4, 3, 2, 1, 0.6, 0.3])[:, None, None] / (1 << (8 - b))
    z = np.rint(rng.normal(size=(10, height, width)) * spread) + (1 << (b - 1))
    return z.clip(0, (1 << b) - 1).astype(np.uint8)


def encode(
    model: multiscale.IntegerModel,
    pictures: list[np.ndarray],
    backend: str,
    b: int = 8,
    used: int = 10,
    threads: int = 1,
):
    jobs = [EncodingJob(p.shape[1], p.shape[2], OperatingPoint(420, 3, b), used, p) for p in pictures]
    model.code(jobs, backend, threads=threads)
    return [job.encoder.finish() for job in jobs]


def decode(
    model: multiscale.IntegerModel,
    files: list[bytes],
    sizes,
    backend: str,
    b: int = 8,
    used: int = 10,
    threads: int = 1,
):
    jobs = [DecodingJob(h, w, OperatingPoint(420, 3, b), used, f) for (h, w), f in zip(sizes, files)]
    symbols = model.code(jobs, backend, threads=threads)
    for job in jobs:
        job.decoder.finish()
    return symbols


def test_backends_agree_on_every_small_size_alone_and_batched(model) -> None:
    """All latent sizes 1..9 x 1..9 (pictures up to 72 pixels at s = 8), three encoders, three decoders, batches."""
    sizes = [(h, w) for h in range(1, 10) for w in range(1, 10)]
    pictures = [some_symbols(h, w, seed=h * 10 + w) for h, w in sizes]
    files = {backend: encode(model, pictures, backend, threads=2) for backend in BACKENDS}
    assert files["cpu"] == files["torch"] == files["reference"]
    alone = [encode(model, [p], "cpu")[0] for p in pictures]
    assert alone == files["cpu"]
    assert [encode(model, [p], "torch")[0] for p in pictures[::7]] == alone[::7]
    for backend in BACKENDS:
        for symbols, original in zip(decode(model, alone, sizes, backend, threads=2), pictures):
            assert np.array_equal(symbols, original)


@pytest.mark.parametrize("b", range(1, 9))
def test_every_b(model, b: int) -> None:
    pictures = [some_symbols(11, 7, seed=b, b=b)]
    files = [encode(model, pictures, backend, b)[0] for backend in BACKENDS]
    assert files[0] == files[1] == files[2]
    assert np.array_equal(decode(model, files[:1], [(11, 7)], "torch", b)[0], pictures[0])


@pytest.mark.parametrize("used", [0, 1, 3, 4, 9, 10])
def test_unused_channels_are_neither_computed_nor_coded(model, used: int) -> None:
    picture = some_symbols(6, 9)
    picture[used:] = 128
    files = [encode(model, [picture], backend, used=used)[0] for backend in BACKENDS]
    assert files[0] == files[1] == files[2]
    for backend in BACKENDS:
        assert np.array_equal(decode(model, files[:1], [(6, 9)], backend, used=used)[0], picture)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_bytes(model, threads: int) -> None:
    picture = some_symbols(33, 47)
    assert encode(model, [picture], "cpu", threads=threads) == encode(model, [picture], "torch")


def test_uniform_prior_round_trip() -> None:
    config = dataclasses.replace(CONFIG, probability=dataclasses.replace(CONFIG.probability, prior="uniform"))
    uniform = multiscale.IntegerModel.from_float(float_model(config))
    picture = some_symbols(12, 9)
    files = [encode(uniform, [picture], backend)[0] for backend in BACKENDS]
    assert files[0] == files[1] == files[2]
    assert np.array_equal(decode(uniform, files[:1], [(12, 9)], "cpu")[0], picture)


def test_integer_rate_is_close_to_the_float_rate(model) -> None:
    picture = some_symbols(32, 48)
    z = torch.from_numpy(picture).float()[None] - 128.0
    with torch.no_grad():
        expected = float(float_model().num_bits(z, z, torch.tensor([[420, 3, 8]])))
    actual = 8 * len(encode(model, [picture], "cpu")[0])
    assert actual == pytest.approx(expected, rel=0.01)


def test_payload_is_within_half_a_percent_of_the_ideal(model) -> None:
    picture = some_symbols(48, 64)
    job = EncodingJob(48, 64, OperatingPoint(420, 3, 8), 10, picture)
    model.code([job])
    ideal = job.encoder.encoder.ideal_bits
    payload = job.encoder.finish()
    lanes = 1 << payload[0]
    assert ideal <= 8 * len(payload) <= ideal * 1.005 + 8 * (6 * lanes + 1)


def test_torch_backend_ignores_global_settings(model) -> None:
    """Inside autocast, with reduced-precision flags set and gradients on, the same bytes come out; flags survive."""
    picture = some_symbols(20, 24)
    expected = encode(model, [picture], "reference")
    before = torch.get_float32_matmul_precision()
    places = [getattr(torch.backends.mkldnn, "matmul", None), torch.backends.cuda.matmul]
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
            assert encode(model, [picture], "torch") == expected
            assert encode(model, [picture], "cpu") == expected
        assert torch.get_float32_matmul_precision() == "medium"
        with torch.backends.mkldnn.flags(enabled=True, allow_tf32=False):
            assert encode(model, [picture], "torch") == expected
            assert torch.backends.mkldnn.enabled
        for place in places:
            if hasattr(place, "fp32_precision"):
                place.fp32_precision = "tf32"  # PyTorch's newer interface, which cannot be mixed with the older
                assert encode(model, [picture], "torch") == expected
                assert place.fp32_precision == "tf32"
    finally:
        for place in places:
            if hasattr(place, "fp32_precision"):
                place.fp32_precision = "none"
        torch.set_float32_matmul_precision(before)
        torch.use_deterministic_algorithms(False)


def test_torch_backend_leaves_settings_alone(model, monkeypatch) -> None:
    """They are the process's: a caller's own models in other threads would see them change."""
    seen = []
    conv2d = stepwise.F.conv2d

    def spy(x, *args, **kwargs):
        seen.append((x.dtype, torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision()))
        return conv2d(x, *args, **kwargs)

    monkeypatch.setattr(stepwise.F, "conv2d", spy)
    expected = (torch.float64, torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision())
    encode(model, [some_symbols(20, 24)], "torch")
    assert set(seen) == {expected}


def test_exact_products_of_a_gpu() -> None:
    """The settings themselves, since there may be no GPU."""
    places = [getattr(torch.backends.mkldnn, "matmul", None), torch.backends.cuda.matmul]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with arithmetic.exact_products(torch.device("cuda")):
            newer = [p.fp32_precision for p in places if hasattr(p, "fp32_precision")]
            assert set(newer) == {"ieee"} if newer else torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.enabled
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.enabled
    finally:
        torch.set_float32_matmul_precision(before)


def test_cpu_paths_give_the_same_bytes(tiny_model_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """L2C_CPU = scalar, avx2, avx512, neon, as far as this machine has them; it is read at every call."""
    n = np.arange(75 * 93 * 3, dtype=np.int64).reshape(75, 93, 3)
    x = ((n * 2654435761 >> 7) % 37 + n // 200).clip(0, 255).astype(np.uint8)
    outputs = {}
    for name in ("scalar", "avx2", "avx512", "neon"):
        monkeypatch.setenv("L2C_CPU", name)
        try:
            assert ops.cpp_extension().cpu() == name
        except BackendError:
            assert name != "scalar"
            with pytest.raises(BackendError, match=name):
                l2c.Codec(tiny_model_path).encode(x, quality=60)
            continue
        codec = l2c.Codec(tiny_model_path)
        data = codec.encode(x, quality=60)
        outputs[name] = data, codec.verify(data)
    assert "scalar" in outputs
    assert len(set(outputs.values())) == 1


def test_requantise_is_one_float32_product_rounded_half_even() -> None:
    rng = np.random.default_rng(0)
    total = rng.integers(-(2**24) + 1, 2**24, (50, 40, 40))
    multiplier = np.exp2(rng.uniform(-22, 3, 50)).astype(np.float32)
    expected = np.rint(total.astype(np.float32) * multiplier[:, None, None]).astype(np.int64)
    assert np.array_equal(reference.requantise(total, multiplier), expected)
    ties = np.array([[[1, 3, 5, -1, -3, 2]]])
    assert reference.requantise(ties, np.array([0.5], np.float32)).tolist() == [[[0, 2, 2, 0, -2, 1]]]


def test_sums_stay_below_2_to_the_24() -> None:
    p = float_model()
    with torch.no_grad():
        p.steps[0].w2.weight.fill_(1.0)  # every weight quantises to 127: the worst case
        p.steps[0].w2.bias.fill_(3e4)
    for _, layer in multiscale.IntegerModel.from_float(p).layers():
        size = np.abs(layer.weight.astype(np.int64)).sum(axis=(1, 2, 3)) * 255 + np.abs(layer.bias.astype(np.int64))
        assert size.max() < 1 << 24


def test_known_answer_catches_other_integers(model) -> None:
    answer = model.known_answer("reference")
    for backend in BACKENDS:
        model.check(answer, backend)
    step = model.steps[2]
    weight = step.w3.weight.copy()
    weight[0, 0, 1, 1] ^= 1
    changed = IntegerLayer(weight, step.w3.bias, step.w3.multiplier)
    steps = (*model.steps[:2], dataclasses.replace(step, w3=changed), *model.steps[3:])
    other = multiscale.IntegerModel(CONFIG.probability, CONFIG.transform.c, steps, model.prior, model.tables)
    with pytest.raises(BackendError, match="known answer"):
        other.check(answer, "cpu")


def test_tensors_round_trip_and_are_checked(model) -> None:
    tensors = model.to_tensors()
    again = multiscale.IntegerModel.from_tensors(tensors, CONFIG.probability, CONFIG.transform.c)
    assert again.known_answer("cpu") == model.known_answer("reference")
    missing = {k: v for k, v in tensors.items() if k != "probability.steps.1.w2.bias"}
    with pytest.raises(ModelMismatchError, match="lack"):
        multiscale.IntegerModel.from_tensors(missing, CONFIG.probability, CONFIG.transform.c)
    unsafe = dict(tensors)
    unsafe["probability.steps.0.w1.bias"] = torch.full_like(tensors["probability.steps.0.w1.bias"], 1 << 24)
    with pytest.raises(ModelMismatchError, match="2\\^24"):
        multiscale.IntegerModel.from_tensors(unsafe, CONFIG.probability, CONFIG.transform.c)


def test_float_again_gives_the_same_integers(model) -> None:
    again = multiscale.IntegerModel.from_float(model.to_float())
    for (name, first), (_, second) in zip(model.layers(), again.layers()):
        assert np.array_equal(first.weight, second.weight), name
        np.testing.assert_allclose(first.multiplier, second.multiplier, rtol=1e-6)
        assert np.abs(first.bias - second.bias).max() <= 1, name


def test_mixture_params_cpu_equals_reference(model) -> None:
    rng = np.random.default_rng(3)
    for k, g, n in ((1, 1, 1), (3, 7, 33), (5, 2, 100), (8, 3, 17)):
        raw = rng.integers(-32768, 32768, (n, 3 * k * g)).astype(np.int16)
        raw[:, : k * g] = rng.integers(-140, 140, (n, k * g))
        raw[0] = 0
        args = (raw, k, g, model.tables.exp, model.tables.inv_scale)
        for ours, plain in zip(
            ops.mixture_params(*args, backend="cpu"), ops.mixture_params(*args, backend="reference")
        ):
            assert ours.dtype == plain.dtype
            assert np.array_equal(ours, plain)


def test_wrong_stream_is_refused(model) -> None:
    data = encode(model, [some_symbols(9, 9)], "cpu")[0]
    with pytest.raises(BitstreamError):
        decode(model, [data[:-2]], [(9, 9)], "cpu")
    with pytest.raises(BitstreamError):
        decode(model, [data], [(9, 10)], "cpu")


def test_unknown_backend_is_an_error(model) -> None:
    with pytest.raises(BackendError, match="no integer backend"):
        model.code([], "quantum")
