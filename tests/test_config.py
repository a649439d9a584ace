"""Configurations: every shipped one loads, round trips, and mistakes are named."""

import json

import pytest

from l2c.config import ModelConfig
from l2c.errors import ConfigError


def good() -> dict:
    return {
        "name": "x",
        "transform": {"family": "block", "s": 8, "c": 4, "width": 8},
        "probability": {"num_scales": 3, "channel_groups": [1, 3], "num_mixtures": 2, "width": 8},
    }


def test_shipped_configurations_round_trip(configs) -> None:
    files = sorted(configs.glob("*.json"))
    assert {f.stem for f in files} >= {"default", "c8b8", "c6b8", "c3b4", "c1b4"}
    for file in files:
        config = ModelConfig.from_file(file)
        assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nmae": "y"}, "unknown key 'nmae'"),
        ({"name": None}, "model.name: expected str"),
        ({"bits": 9}, "bits is 9"),
        ({"bits": True}, "model.bits: expected int"),
        ({"lmbda_min": 0.5}, "in order"),
        ({"transform": {"family": "block", "s": 8, "c": 4}}, "missing key 'width'"),
        ({"transform": {"family": "block", "s": 7, "c": 4, "width": 8}}, "transform.s is 7"),
        ({"transform": {"family": "vae", "s": 8, "c": 4, "width": 8}}, "transform.family"),
        ({"transform": {"family": "paper", "s": 8, "c": 4, "width": 8}}, "down-sample by 4"),
        ({"transform": {"family": "block", "s": 2, "c": 13, "width": 8}}, "transform.c is 13"),
        ({"transform": []}, "expected a table"),
        ({"probability": {"num_scales": 3, "channel_groups": [1, 2], "num_mixtures": 2, "width": 8}}, "sum to 3"),
        ({"probability": {"num_scales": 3, "channel_groups": "ab", "num_mixtures": 2, "width": 8}}, "a list"),
        ({"probability": {"num_scales": 9, "channel_groups": [4], "num_mixtures": 2, "width": 8}}, "num_scales"),
        (
            {"probability": {"num_scales": 3, "channel_groups": [4], "num_mixtures": 2, "width": 8, "prior": "flat"}},
            "probability.prior",
        ),
    ],
)
def test_mistakes_are_named(change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_json(json.dumps(good() | change))


def test_not_json_and_no_file(tmp_path) -> None:
    with pytest.raises(ConfigError, match="not JSON"):
        ModelConfig.from_json("{")
    with pytest.raises(ConfigError, match="cannot read"):
        ModelConfig.from_file(tmp_path / "none.json")


@pytest.mark.parametrize(
    "transform",
    [
        {"family": "block", "s": 8, "c": 4, "width": 8, "modulated": True},
        {"family": "paper", "s": 4, "c": 4, "width": 8, "encoder_blocks": 1, "decoder_blocks": 2, "fine_width": 0,
         "local_gain": False, "companding": False},
    ],
)  # fmt: skip
def test_files_from_before_families_had_their_own(transform) -> None:
    """They name no family of P, and say of every family what only one of them has."""
    probability = {"num_scales": 3, "channel_groups": [4], "num_mixtures": 2, "width": 8}
    config = ModelConfig.from_json(json.dumps({"name": "old", "transform": transform, "probability": probability}))
    assert config.probability.family == "multiscale" and config.transform.family == transform["family"]
    assert ModelConfig.from_json(config.to_json()) == config
    wrong = transform | {"fine_width": 3, "local_gain": True}
    if transform["family"] == "paper":
        with pytest.raises(ConfigError, match="unknown key 'fine_width'"):
            ModelConfig.from_json(json.dumps({"name": "old", "transform": wrong, "probability": probability}))


def of_compressai(**changes) -> dict:
    sizes = {"family": "hyperprior", "architecture": "mbt2018", "n": 4, "qualities": [2, 4]}
    transform = {**sizes, "s": 16, "c": 6} | {k[2:]: v for k, v in changes.items() if k[:2] == "t_"}
    return good() | {
        "transform": transform,
        "probability": sizes | {k[2:]: v for k, v in changes.items() if k[:2] == "p_"},
        "lmbda_min": 0.0018,
        "lmbda_max": 0.18,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t_architecture": "mbt2019"}, "must be one of bmshj2018-factorized"),
        ({"t_s": 8}, "it is 16"),
        ({"t_c": 0}, r"1\.\.4096"),
        ({"t_n": 0}, r"1\.\.1024"),
        ({"t_qualities": [4, 2]}, "rising"),
        ({"t_qualities": [0, 2]}, "rising"),
        ({"t_qualities": []}, "rising"),
        ({"t_qualities": [2]}, "do not go together"),
        ({"p_qualities": [2, 5]}, "do not go together"),
        ({"p_rounding": "mean"}, "do not go together"),
        ({"t_rounding": "up"}, "must be one of mean, whole"),
        ({"t_modulators": [0, 4]}, "rise within"),
        ({"t_modulators": [1, 1]}, "rise within"),
        ({"t_hidden": 0}, "hidden"),
        ({"t_stored": "int8"}, "float32 or float16"),
        ({"t_architecture": "cheng2020-anchor", "p_architecture": "cheng2020-anchor"}, "N = M"),
        (
            {
                "t_architecture": "bmshj2018-hyperprior",
                "p_architecture": "bmshj2018-hyperprior",
                "t_rounding": "mean",
                "p_rounding": "mean",
            },
            "has no means",
        ),
    ],
)
def test_what_no_codec_of_compressai_is(change, message) -> None:
    assert ModelConfig.from_json(json.dumps(of_compressai())).transform.quality_steps == {2: 143, 4: 429}
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_json(json.dumps(of_compressai(**change)))


def test_qualities_of_ones_own() -> None:
    """Places on the header's scale, what users call them, and CompressAI's lambdas."""
    some = ModelConfig.from_json(json.dumps(of_compressai()))
    assert [some.settled(tenths) for tenths in (0, 143, 286, 287, 1000)] == [143, 143, 143, 429, 429]
    assert [some.shown_quality(tenths) for tenths in (0, 143, 429, 900)] == [2.0, 2.0, 4.0, 4.0]
    assert some.lmbda(0.143) == pytest.approx(0.0035, rel=0.01) and some.lmbda(0.429) == pytest.approx(0.013, rel=0.01)
    all_of_them = ModelConfig.from_json(json.dumps(good()))
    assert all_of_them.settled(287) == 287 and all_of_them.shown_quality(287) == 28.7
