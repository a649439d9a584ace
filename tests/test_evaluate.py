"""Evaluation: figures against independent implementations, peers at equal rates, records that resume, the command."""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from pytorch_msssim import ms_ssim

import l2c
from l2c import cli
from l2c.config import ModelConfig
from l2c.errors import BackendError, UnsupportedError
from l2c.evaluate import ffmpeg, measures, peers, records, run
from l2c.evaluate.curves import bd_rate, plot_time, points
from l2c.evaluate.meta import Overfitter
from l2c.evaluate.peers import PEERS, Peer, RateSearch
from l2c.evaluate.records import Curve, RowFile, from_compressai, load_published, mean_curves, to_compressai, to_csv
from l2c.evaluate.run import Plan, evaluate
from l2c.evaluate.tables import Tables
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import PAPER_ALPHA
from l2c.train.losses import Networks

NAMES = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry")


def photo(name: str, height: int, width: int, top: int = 0) -> np.ndarray:
    """uint8 [height, width, 3] of one of scikit-image's photographs."""
    return np.ascontiguousarray(getattr(skimage.data, name)()[top : top + height, :width])


@pytest.fixture(scope="module")
def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Ten pictures and JPEG files of them at different qualities."""
    result = []
    for k, name in enumerate(NAMES * 2):
        pixels = photo(name, 180 + 7 * k, 190 + 5 * k, 20 * (k // len(NAMES)))
        data = PEERS["jpeg"].encode(pixels, 10 + 8 * k)
        result.append((pixels, PEERS["jpeg"].decode(data, *pixels.shape[:2])))
    return result


class TestMeasures:
    """Against pytorch-msssim, ffmpeg's colour conversion and its own command line."""

    def test_psnr_and_msssim_equal_an_independent_package(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        for original, decoded in pairs:
            x, y = (torch.from_numpy(a.copy()).permute(2, 0, 1)[None].float() for a in (original, decoded))
            got = measures.measure(original, decoded, tuple(measures.FIGURES)[:4])
            assert got["ms-ssim-rgb"] == pytest.approx(float(ms_ssim(x, y, data_range=255)), abs=1e-4)
            luma = [255 * torch.from_numpy(measures.to_ycbcr(a / 255.0)[0])[None, None] for a in (original, decoded)]
            assert got["ms-ssim-y"] == pytest.approx(float(ms_ssim(*luma, data_range=255)), abs=1e-4)
            error = np.mean((original.astype(np.float64) - decoded) ** 2)
            assert got["psnr-rgb"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-4)
            error = float((luma[0] - luma[1]).square().mean())
            assert got["psnr-y"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)

    def test_planes_equal_those_of_zimg(self) -> None:
        pixels = photo("astronaut", 120, 160)
        convert = "zscale=matrix=709:rangein=full:range=full"  # zimg; swscale's own conversion cuts chroma off
        raw = ffmpeg.run_ffmpeg(
            ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "160x120", "-i", "-", "-vf", convert, "-f", "rawvideo",
             "-pix_fmt", "yuv444p", "-"],
            pixels.tobytes(),
        )  # fmt: skip
        theirs = np.frombuffer(raw, np.uint8).reshape(3, 120, 160)
        difference = measures.to_planes(pixels).astype(int) - theirs
        assert np.abs(difference).max() <= 1 and np.abs(difference).mean() < 0.01

    @pytest.mark.parametrize(("bits", "most"), [(8, 2), (10, 0), (12, 0)])
    def test_planes_come_back(self, bits: int, most: int) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3)).astype(np.uint8)
        pixels[:2, :2] = [[[0, 0, 0], [255, 255, 255]], [[255, 0, 0], [0, 0, 255]]]
        planes = measures.to_planes(pixels, bits)
        assert planes[:, 0, 0].tolist() == [0, 1 << (bits - 1), 1 << (bits - 1)]
        assert planes[0, 0, 1] == (1 << bits) - 1
        assert np.abs(measures.from_planes(planes, bits).astype(int) - pixels).max() <= most

    def test_vmaf_equals_the_command_line(self, pairs: list[tuple[np.ndarray, np.ndarray]], tmp_path: Path) -> None:
        for k, (original, decoded) in enumerate(pairs[1:3]):
            files = []
            for name, pixels in (("decoded", decoded), ("original", original)):
                height, width = pixels.shape[:2]
                head = f"YUV4MPEG2 W{width} H{height} F1:1 Ip C444 XCOLORRANGE=FULL\nFRAME\n".encode()
                files.append(tmp_path / f"{name}{k}.y4m")
                files[-1].write_bytes(head + measures.to_planes(pixels).tobytes())
            scores = []
            for graph in ("libvmaf", "libvmaf=model=version=vmaf_v0.6.1neg"):
                done = subprocess.run(
                    [ffmpeg.executable(), "-i", files[0], "-i", files[1], "-lavfi", graph, "-f", "null", "-"],
                    capture_output=True, check=True, text=True,
                )  # fmt: skip
                scores.append(float(done.stderr.split("VMAF score: ")[1].split()[0]))
            assert measures.vmaf(original, decoded) == pytest.approx({"vmaf": scores[0]}, abs=1e-3)
            both = measures.measure(original, decoded, ("vmaf-neg", "vmaf"))
            assert both == pytest.approx({"vmaf": scores[0], "vmaf-neg": scores[1]}, abs=1e-3)
            assert 5.0 < scores[0] < 100.0

    def test_vmaf_neg_gives_nothing_for_contrast(self) -> None:
        original = photo("astronaut", 200, 240)
        stronger = ((original.astype(float) - 128) * 1.15 + 128).clip(0, 255).round().astype(np.uint8)
        found = measures.measure(original, stronger, ("vmaf", "vmaf-neg"))
        assert found["vmaf"] > found["vmaf-neg"] + 2.0

    def test_butteraugli(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        if shutil.which("butteraugli_main") is None:
            pytest.skip("libjxl's butteraugli_main is not at hand")
        distances = [measures.measure(*pairs[k], ("butteraugli",))["butteraugli"] for k in (0, 5)]
        assert distances[0] > distances[1] > 0.0
        assert measures.butteraugli(pairs[0][0], pairs[0][0]) == 0.0

    def test_butteraugli_reads_what_the_program_says(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A program in its place: it sees both pictures, original first, and its 3-norm is taken."""
        pixels = photo("coffee", 20, 30)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BackendError, match="libjxl-devtools"):
            measures.butteraugli(pixels, pixels)
        program = tmp_path / "butteraugli_main"
        code = "import sys; from PIL import Image; a, b = (Image.open(p).getpixel((0, 0))[0] for p in sys.argv[1:3])"
        code += "; print(9.5); print(f'3-norm: {a}.{b}'); assert sys.argv[3:] == ['--pnorm', '3']"
        program.write_text(f"#!{sys.executable}\n{code}\n")
        program.chmod(0o755)
        other = pixels.copy()
        other[0, 0, 0] = 77
        assert measures.butteraugli(pixels, other) == pytest.approx(pixels[0, 0, 0] + 0.77)
        program.write_text(f"#!{sys.executable}\nimport sys; sys.exit('no such thing')\n")
        with pytest.raises(BackendError, match="no such thing"):
            measures.butteraugli(pixels, other)

    def test_more_is_better_in_comparisons(self) -> None:
        assert measures.in_db("butteraugli", 1.5) == -1.5 and measures.in_db("vmaf", 80.0) == 80.0

    def test_a_figure_of_ones_own(self, pairs: list[tuple[np.ndarray, np.ndarray]], monkeypatch) -> None:
        def worst(pair: measures.Pair) -> float:
            return float(np.abs(pair.original.astype(int) - pair.decoded).max())

        monkeypatch.setitem(measures.FIGURES, "worst", measures.Figure("largest error", worst, lambda value: -value, 0))
        original, decoded = pairs[0]
        found = measures.measure(original, decoded, ("worst", "psnr-y"))
        assert list(found) == ["worst", "psnr-y"] and found["worst"] == np.abs(original.astype(int) - decoded).max()
        assert measures.in_db("worst", 3.0) == -3.0
        monkeypatch.setitem(measures.FIGURES, "broken", measures.Figure("broken", lambda pair: pair.nothing))  # type: ignore
        with pytest.raises(BackendError, match="the figure broken fails: AttributeError"):
            measures.measure(original, decoded, ("broken",))
        monkeypatch.setitem(measures.FIGURES, "tensor", measures.Figure("tensor", lambda pair: torch.tensor(2.0)))  # type: ignore
        assert json.dumps(measures.measure(original, decoded, ("tensor",))) == '{"tensor": 2.0}'
        with pytest.raises(UnsupportedError, match="no figure 'best'"):
            measures.measure(original, decoded, ("best",))

    def test_ssimulacra2(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        scores = [measures.ssimulacra2(*pairs[k]) for k in (0, 5)]
        assert scores[0] < scores[1] < 100.0
        assert measures.ssimulacra2(pairs[0][0], pairs[0][0]) == pytest.approx(100.0, abs=0.01)

    def test_bad_requests(self) -> None:
        pixels = photo("coffee", 40, 40)
        with pytest.raises(UnsupportedError, match="cannot be compared"):
            measures.measure(pixels, pixels[:20], ("psnr-rgb",))
        with pytest.raises(UnsupportedError, match="no figure 'vmac'"):
            measures.measure(pixels, pixels, ("vmac",))


class TestPeers:
    """Every peer fits its target; the search is as short as it can be."""

    @pytest.mark.parametrize("name", PEERS)
    def test_fits_and_decodes(self, name: str) -> None:
        pixels = photo("coffee", 97, 131, 100)
        peer = PEERS[name]
        assert peer.describe()
        search = RateSearch(peer, pixels)
        quality, before = 0.0, 0
        for bpp in (0.8, 2.5):
            coded = search.at(bpp)
            assert before < len(coded.data) <= bpp * 97 * 131 / 8
            decoded = peer.decode(coded.data, 97, 131)
            assert decoded.shape == pixels.shape and decoded.dtype == np.uint8
            reached = measures.measure(pixels, decoded, ("psnr-rgb",))["psnr-rgb"]
            assert reached > max(23.0, quality + 2.0)
            quality, before = reached, len(coded.data)

    @pytest.mark.parametrize("name", PEERS)
    def test_both_ends_of_its_settings_work(self, name: str) -> None:
        """Rates far beyond what an easy picture needs lead there."""
        pixels, peer = photo("coffee", 97, 131, 100), PEERS[name]
        high = 57 if name == "vvc" else peer.high  # vvenc fails on some pictures at its finest quantisers
        least, most = (peer.file(pixels, quality) for quality in (peer.low, high))
        assert len(least) < len(most)
        assert peer.picture(least, 97, 131).shape == peer.picture(most, 97, 131).shape == pixels.shape
        flat = RateSearch(peer, np.full((97, 131, 3), 200, np.uint8)).at(24.0)
        assert flat.quality == peer.high or len(flat.data) <= 3 * 97 * 131

    @pytest.mark.parametrize("name", ["hevc", "av1", "vvc"])
    @pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 90)])
    def test_video_coders_keep_the_range(self, name: str, colour: tuple[int, int, int]) -> None:
        pixels = np.full((64, 64, 3), colour, np.uint8)
        decoded = PEERS[name].decode(PEERS[name].encode(pixels, PEERS[name].high - 5), 64, 64)
        assert np.abs(decoded.astype(int) - pixels).max() <= 2

    def test_search_finds_the_largest_fitting_file(self) -> None:
        tried: list[int] = []

        def encode(pixels: np.ndarray, quality: int) -> bytes:
            tried.append(quality)
            return bytes(100 + quality)

        pixels = np.zeros((80, 100, 3), np.uint8)
        search = RateSearch(Peer("counter", 1, 1000, encode, lambda d, h, w: pixels, lambda: ""), pixels)
        assert 199 <= search.at(0.3).quality <= 200  # 300 bytes
        assert len(tried) <= 6
        assert search.at(0.05).quality == 1  # smaller than it can be: the smallest
        assert search.at(9.0).quality == 1000
        assert len(tried) == len(set(tried)) <= 40
        for size in range(101, 1101, 27):
            tried.clear()
            quality = RateSearch(search.peer, pixels).at((size + 0.5) / 1000).quality
            assert 0.995 * (size + 0.5) <= quality + 100 <= size and len(tried) <= 14

    def test_search_in_steps(self) -> None:
        """A size that jumps: the last quality before the jump is found."""
        pixels = np.zeros((80, 100, 3), np.uint8)
        for jump in range(2, 1000, 37):
            count: list[int] = []

            def encode(pixels: np.ndarray, quality: int, jump: int = jump, count: list[int] = count) -> bytes:
                count.append(quality)
                return bytes(100 if quality < jump else 10_000)

            search = RateSearch(Peer("jump", 1, 1000, encode, lambda d, h, w: pixels, lambda: ""), pixels)
            assert search.at(0.5).quality == jump - 1
            assert len(count) <= 24

    def test_mistakes_of_a_peer_are_named(self) -> None:
        pixels = np.zeros((20, 30, 3), np.uint8)

        def peer(**changes: object) -> Peer:
            plain = {"encode": lambda p, q: b"12", "decode": lambda d, h, w: pixels, "describe": lambda: "mine"}
            return Peer("Mine", 1, 9, **{**plain, **changes})  # type: ignore[arg-type]

        assert RateSearch(peer(), pixels).at(1.0).data == b"12"
        with pytest.raises(BackendError, match="peer Mine: ZeroDivisionError"):
            RateSearch(peer(encode=lambda p, q: b"" * (1 // 0)), pixels).at(1.0)
        with pytest.raises(BackendError, match=r"peer Mine: .*encode gives NoneType, not bytes"):
            peer(encode=lambda p, q: None).file(pixels, 3)
        with pytest.raises(BackendError, match=r"decode gives float64 \[20, 30, 3\], not uint8 \[20, 30, 3\]"):
            peer(decode=lambda d, h, w: pixels / 255.0).picture(b"", 20, 30)
        with pytest.raises(BackendError, match=r"decode gives uint8 \[19, 30, 3\]"):
            peer(decode=lambda d, h, w: pixels[1:]).picture(b"", 20, 30)
        with pytest.raises(BackendError, match="peer Mine: RuntimeError: not here"):
            peer(describe=lambda: (_ for _ in ()).throw(RuntimeError("not here"))).described()
        with pytest.raises(UnsupportedError, match="its settings go from 9 to 1"):
            Peer("Mine", 9, 1, peer().encode, peer().decode, peer().describe)

    def test_choice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert peers.choose(["none"]) == {}
        assert list(peers.choose(["webp", "jpeg"])) == ["webp", "jpeg"]
        with pytest.raises(UnsupportedError, match="no peer 'bpg'"):
            peers.choose(["bpg"])

        def missing() -> str:
            raise BackendError("not here")

        monkeypatch.setitem(PEERS, "jxl", Peer("JXL", 1, 2, lambda p, q: b"", lambda d, h, w: d, missing))  # type: ignore
        assert "jxl" not in peers.choose(["all"]) and "jpeg" in peers.choose(["all"])
        with pytest.raises(BackendError, match="not here"):
            peers.choose(["jxl"])

    def test_ffmpeg_failures_are_ours(self) -> None:
        with pytest.raises(BackendError, match="ffmpeg failed"):
            ffmpeg.run_ffmpeg(["-f", "hevc", "-i", "-", "-f", "null", "-"], b"no stream")
        with pytest.raises(BackendError, match="has no libnothing"):
            ffmpeg.require("libnothing")


def row(picture: str, codec: str, target: float, **more: float) -> records.Row:
    return {"picture": picture, "codec": codec, "target": target, "bpp": target * 0.99, "psnr-rgb": 30.0, **more}


class TestRecords:
    """Rows survive a kill; means are over all pictures or not made."""

    def test_rows_survive_a_kill(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        first = RowFile(path)
        first.add(row("a", "jpeg", 0.5))
        first.add(row("b", "jpeg", 0.5))
        whole = path.read_bytes()
        path.write_bytes(whole + whole[:20])
        again = RowFile(path)
        assert again.rows == first.rows and path.read_bytes() == whole
        path.write_bytes(b"{}\n" + whole)
        with pytest.raises(UnsupportedError, match="line 1"):
            RowFile(path)

    def test_means_need_every_picture(self) -> None:
        rows = [
            row("a", "jpeg", 0.5), row("b", "jpeg", 0.5, **{"psnr-rgb": 40.0}), row("a", "jpeg", 1.0),
            row("a", "webp", 0.5, vmaf=80.0), row("b", "webp", 0.5),
        ]  # fmt: skip
        curves = mean_curves(rows, {"webp": ("WebP", "x"), "jpeg": ("JPEG", "y"), "jxl": ("JPEG XL", "z")})
        assert [curve.codec for curve in curves] == ["webp", "jpeg"]
        assert curves[1].targets == [0.5] and curves[1].values["psnr-rgb"] == [35.0]
        assert "vmaf" not in curves[0].values
        lines = to_csv(curves).splitlines()
        assert lines[0].startswith("codec,target_bpp,bpp,psnr-rgb") and lines[2].startswith("jpeg,0.5,0.495,35,")

    def test_compressai_layout(self) -> None:
        rows = [row("a", "l2c", rate, encode_seconds=1.5, decode_seconds=0.5) for rate in (0.5, 0.25)]
        (curve,) = mean_curves(rows, {"l2c": ("L2C", "the model")})
        data = json.loads(json.dumps(to_compressai(curve)))
        assert data["name"] == "L2C" and data["results"]["encoding_time"] == [1.5, 1.5]
        assert data["results"]["bpp"] == [0.2475, 0.495] and data["results"]["psnr-rgb"] == [30.0, 30.0]
        back = from_compressai(data, "l2c")
        assert back.values == curve.values and back.published
        older = {"results": {"bpp": [0.1, 0.2], "psnr": [30, 31], "ms-ssim": [0.9, 0.95], "note": ["a", "b"]}}
        assert from_compressai(older, "old").figures == ["psnr-rgb", "ms-ssim-rgb"]
        for bad in ({}, {"results": {"bpp": 1}}, {"results": {"bpp": ["x"]}}):
            with pytest.raises(UnsupportedError):
                from_compressai(bad, "bad")

    def test_published_curves(self, tmp_path: Path) -> None:
        path = Path(__file__).parents[1] / "records" / "published" / "kodak.json"
        webp, hyper = load_published(path, ["webp", "compressai-bmshj2018-hyperprior_mse_cuda"])
        assert webp.published and len(webp.values["bpp"]) == len(webp.values["psnr-rgb"]) > 5
        assert webp.values["bpp"] == sorted(webp.values["bpp"]) and hyper.values["psnr-rgb"][0] > 25
        (tmp_path / "theirs.json").write_text(
            json.dumps({"name": "T", "results": {"bpp": [0.1, 0.2], "psnr": [30, 31]}})
        )
        (theirs,) = load_published(tmp_path, ["theirs"])
        assert theirs.title == "T" and theirs.values["psnr-rgb"] == [30.0, 31.0]
        with pytest.raises(UnsupportedError, match="no published curves"):
            load_published(tmp_path, ["ours"])
        with pytest.raises(UnsupportedError, match="no codec 'jpge'"):
            load_published(path, ["jpge"])
        with pytest.raises(UnsupportedError, match="no published curves"):
            load_published(tmp_path / "missing.json", ["webp"])


class TestCurves:
    """BD-rates."""

    def curve(self, factor: float, low: float = 30.0) -> Curve:
        rates = [0.1, 0.25, 0.5, 1.0]
        values = {"bpp": [factor * rate for rate in rates], "psnr-rgb": [low, low + 3.1, low + 5.9, low + 9.0]}
        return Curve("a", "A", "", values, rates)

    def test_bd_rate_of_a_scaled_curve(self) -> None:
        assert bd_rate(self.curve(1.0), self.curve(0.9), "psnr-rgb") == pytest.approx(-10.0, abs=1e-6)
        assert bd_rate(self.curve(0.8), self.curve(1.0), "psnr-rgb") == pytest.approx(25.0, abs=1e-6)

    def test_nothing_in_common(self) -> None:
        assert np.isnan(bd_rate(self.curve(1.0), self.curve(1.0, low=50.0), "psnr-rgb"))

    def test_only_where_quality_rises(self) -> None:
        dented = self.curve(0.9)
        dented.values["bpp"].append(1.2)
        dented.values["psnr-rgb"].append(38.0)
        assert bd_rate(self.curve(1.0), dented, "psnr-rgb") == pytest.approx(-10.0, abs=1e-6)

    def test_msssim_in_db(self) -> None:
        curve = Curve("a", "A", "", {"bpp": [1.0, 0.5, 0.5], "ms-ssim-y": [0.99, 0.9, 0.91]}, [0.5, 0.5, 1.0])
        rates, values = points(curve, "ms-ssim-y")
        assert rates == [0.5, 1.0] and values == pytest.approx([10.0, 20.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small photographs."""
    path = tmp_path_factory.mktemp("pictures")
    for name in ("coffee", "chelsea"):
        Image.fromarray(photo(name, 170, 200)).save(path / f"{name}.png")
    return path


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smaller parts of them, for searches: as odd, and large enough for all figures."""
    path = tmp_path_factory.mktemp("crops")
    for name in ("coffee", "chelsea"):
        Image.fromarray(photo(name, 100, 132, 40)).save(path / f"{name}.png")
    return path


SHORT = ["--rates", "0.5", "--peers", "jpeg", "--peers-only", "--figures", "psnr-rgb"]


class TestRun:
    """Whole evaluations."""

    def test_stopped_run_goes_on(self, folder: Path, tmp_path: Path) -> None:
        codec = l2c.Codec()
        plan = Plan(sorted(folder.iterdir()), (0.4, 1.2), ("psnr",), (0,), ("jpeg",), ("psnr-rgb",))
        straight = evaluate(codec, plan, tmp_path / "straight")
        assert (straight.measured, straight.known) == (8, 0)
        begun: list[str] = []

        def stop(what: str) -> None:
            begun.append(what)
            if len(begun) == 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(codec, plan, tmp_path / "stopped", stop)
        resumed: list[str] = []
        outcome = evaluate(codec, plan, tmp_path / "stopped", resumed.append)
        assert (outcome.measured, outcome.known) == (3, 5)
        assert resumed == [*begun[5:], *resumed[1:]] and not set(begun[:5]) & set(resumed)
        for one, other in zip(straight.curves, outcome.curves):
            for name in ("bpp", "psnr-rgb"):
                assert one.values[name] == other.values[name]
        again = evaluate(codec, plan, tmp_path / "stopped")
        assert (again.measured, again.known) == (0, 8)
        rows = (tmp_path / "stopped" / "rows.jsonl").read_text()
        (tmp_path / "stopped" / "rows.jsonl").write_text(rows.replace("model ", "model of yesterday "))
        assert evaluate(codec, plan, tmp_path / "stopped").measured == 4  # those of another model

    def test_a_peer_that_fails_is_told(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def encode(pixels: np.ndarray, quality: int) -> bytes:
            if quality > 40:
                raise RuntimeError("not so fine")
            return PEERS["jpeg"].encode(pixels, quality)

        monkeypatch.setitem(PEERS, "webp", replace(PEERS["jpeg"], title="Coarse", encode=encode))
        plan = Plan(sorted(folder.iterdir()), (0.7, 4.0), ("psnr",), (0,), ("webp", "jpeg"), ("psnr-rgb",))
        outcome = evaluate(l2c.Codec(), plan, tmp_path, peers_only=True)
        assert {where for where, _ in outcome.failures} >= {"coffee, webp, 4 bpp", "chelsea, webp, 4 bpp"}
        assert all(why == "peer Coarse: RuntimeError: not so fine" for _, why in outcome.failures)
        assert sum(row["codec"] == "jpeg" for row in outcome.rows) == 4

    def test_figures_that_a_record_lacks_are_added(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        codec = l2c.Codec()
        plan = Plan(sorted(folder.iterdir()), (0.4, 1.2), ("psnr",), (0,), ("jpeg",), ("psnr-rgb",))
        first = evaluate(codec, plan, tmp_path).rows
        asked: list[tuple[str, ...]] = []

        def counted(original: np.ndarray, decoded: np.ndarray, figures: tuple[str, ...]) -> dict[str, float]:
            asked.append(figures)
            return measures.measure(original, decoded, figures)

        def searched(search: RateSearch, bpp: float) -> None:
            raise AssertionError("a peer's files are known")

        monkeypatch.setattr(run, "measure", counted)
        with monkeypatch.context() as patched:
            patched.setattr(RateSearch, "at", searched)
            more = replace(plan, figures=("psnr-y",))
            outcome = evaluate(codec, more, tmp_path)
        assert (outcome.measured, outcome.known) == (8, 0) and asked == [("psnr-y",)] * 8
        assert [{**row, "psnr-y": None} for row in outcome.rows] == [{**row, "psnr-y": None} for row in first]
        assert outcome.rows == RowFile(tmp_path / "rows.jsonl").rows[8:]
        assert all(row["psnr-y"] > 20.0 for row in outcome.rows)
        assert evaluate(codec, replace(plan, figures=("psnr-y", "psnr-rgb")), tmp_path).measured == 0
        lines = (tmp_path / "rows.jsonl").read_text().splitlines()
        other = [json.dumps(json.loads(line) | {"bytes": 9}) for line in lines]  # not what the codecs give
        (tmp_path / "rows.jsonl").write_text("\n".join(other) + "\n")
        assert evaluate(codec, replace(plan, figures=("psnr-rgb", "ms-ssim-y")), tmp_path).measured == 8
        assert asked[8:] == [("psnr-rgb", "ms-ssim-y")] * 8

    def test_rate_out_of_reach_is_told(self, folder: Path, tmp_path: Path) -> None:
        plan = Plan([folder / "coffee.png"], (0.005, 0.5), ("psnr",), (0,), ("none",), ("psnr-rgb",))
        outcome = evaluate(l2c.Codec(), plan, tmp_path)
        assert [what for what, _ in outcome.failures] == ["coffee, l2c-psnr, 0.005 bpp"]
        assert "least rate" in outcome.failures[0][1]
        assert outcome.curves[0].targets == [0.5]

    def test_lossless_files_are_a_curve_of_their_own(self, tmp_path: Path) -> None:
        letters = np.full((96, 128, 3), 255, np.uint8)
        letters[20:30:2, 10:100:6] = 0
        Image.fromarray(letters).save(tmp_path / "letters.png")
        plan = Plan([tmp_path / "letters.png"], (1.5,), ("psnr",), (0,), ("none",), ("psnr-rgb",))
        plan = replace(plan, lossless=("never", "auto"))
        latents, kept = evaluate(l2c.Codec(), plan, tmp_path / "record").rows
        assert (latents["codec"], kept["codec"]) == ("l2c-psnr", "l2c-psnr-auto")
        assert (latents["lossless"], kept["lossless"]) == (False, True)
        assert kept["bytes"] < latents["bytes"] and latents["psnr-rgb"] < 60.0 <= kept["psnr-rgb"]
        again = evaluate(l2c.Codec(), replace(plan, lossless=("auto",)), tmp_path / "record")
        assert (again.measured, again.known) == (0, 1)
        assert again.curves[0].title == "L2C for PSNR, effort 0, pixels where better"

    @pytest.mark.parametrize(
        "change",
        [{"rates": ()}, {"rates": (0.0,)}, {"rates": (1, 1.0)}, {"rates": (float("nan"),)},
         {"metrics": ("ssim",)}, {"efforts": (10,)}, {"lossless": ("always",)}, {"lossless": ()},
         {"figures": ("vmac",)}, {"figures": ()}, {"pictures": [Path("a/x.png"), Path("b/x.jpg")]}],
    )  # fmt: skip
    def test_impossible_plans(self, change: dict[str, object]) -> None:
        with pytest.raises(UnsupportedError):
            Plan(**({"pictures": [Path("x.png")]} | change))  # type: ignore[arg-type]

    def test_command(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        published = Path(__file__).parents[1] / "records" / "published" / "kodak.json"
        arguments = [
            "eval", str(folder), "-o", str(tmp_path), "--rates", "0.3,0.6,1.2", "--metrics", "psnr", "--efforts", "0,1",
            "--peers", "jpeg,webp", "--figures", "psnr-rgb,ms-ssim-y", "--published", str(published), "--curves", "vtm",
        ]  # fmt: skip
        assert cli.main(arguments) == 0
        shown = capsys.readouterr().out
        assert "BD-rate against JPEG, percent" in shown and "| L2C for PSNR, effort 1 |" in shown
        assert "(published)" in shown and "24 files measured now, 0 known from before" in shown
        (first, *_) = [line for line in shown.splitlines() if line.startswith("| L2C for PSNR, effort 0 |")]
        assert float(first.split("|")[2]) < -20.0
        assert {path.name for path in tmp_path.iterdir()} == {
            "rows.jsonl", "run.json", "results", "results.csv", "report.md", "psnr-rgb.png", "ms-ssim-y.png",
            "time-psnr-rgb.png", "time-ms-ssim-y.png",
        }  # fmt: skip
        assert Image.open(tmp_path / "psnr-rgb.png").width > 400
        names = {path.stem for path in (tmp_path / "results").iterdir()}
        assert names == {"l2c-psnr", "l2c-psnr-effort1", "jpeg", "webp"}
        for line in (tmp_path / "rows.jsonl").read_text().splitlines():
            measured = json.loads(line)
            assert measured["bpp"] <= measured["target"] and measured["within"]

    @pytest.mark.parametrize(
        ("more", "message"),
        [(["--peers", "bpg"], "no peer 'bpg'"), (["--rates", "0.5;1"], "numbers with commas"),
         (["--anchor", "bpg", *SHORT], "anchor 'bpg'"), (["--curves", "vtm", *SHORT], "--published")],
    )  # fmt: skip
    def test_command_errors(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
    ) -> None:
        assert cli.main(["eval", str(folder), "-o", str(tmp_path), *more]) == 1
        assert message in capsys.readouterr().err


class TestTables:
    """The papers' tables on other pictures."""

    def test_command(
        self, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The papers' searches, and shorter ones in their place here.
        assert l2c.Effort(iterations=10) == Tables.overfitting
        assert inspect.signature(Tables.figure_four).parameters["steps"].default == 20
        short = functools.partialmethod(Tables.__init__, overfitting=l2c.Effort(iterations=2))
        monkeypatch.setattr(Tables, "__init__", short)
        monkeypatch.setattr(Tables, "figure_four", functools.partialmethod(Tables.figure_four, 2))
        arguments = [
            "tables",
            str(crops),
            "-o",
            str(tmp_path),
            "--rates",
            "0.3,0.8",
            "--effort",
            "1",
            "--examples",
            "1",
        ]
        assert cli.main([*arguments, "--parts", "I,III,fig4"]) == 0
        text = capsys.readouterr().out
        assert text == (tmp_path / "tables.md").read_text()
        assert re.search(r"\| chelsea \| 0\.(7[89]\d|800) ", text) and "| jpegai03 | 2.031 | 0.9982 | 94.32 |" in text
        assert "coffee |" not in text  # one example
        assert "before and after 2 iterations" in text and "adapted with 2 steps" in text
        (row,) = [line for line in text.splitlines() if line.startswith("| 0.75 ±")]
        cells = [float(cell) for cell in row.split("|")[2:-1]]
        assert cells[0] == 2 and cells[5:] == [0.95, 0.825, 0.9917, 0.9908]
        # Fewer bits, or as many and a better picture.
        assert (cells[2], -cells[4]) < (cells[1], -cells[3]) and abs(cells[4] - cells[3]) < 0.005
        assert 0.73 < cells[1] <= 0.75
        (sets,) = [line for line in text.splitlines() if line.startswith("Content-specific biases")]
        assert "+0.0029 paper" in sets and "(files: 4)" in sets
        assert Image.open(tmp_path / "fig4.png").width > 300
        rows = [json.loads(line) for line in (tmp_path / "tables.jsonl").read_text().splitlines()]
        by_key = {(row["picture"], row["codec"], row["target"]): row for row in rows}
        assert len(by_key) == len(rows)
        adapted = [row for row in rows if row["codec"] == f"tables-psnr-{l2c.Effort(steps=2)}"]
        assert len(adapted) == 4
        for row in adapted:  # at the quality of the plain file, never worse than it
            plain = by_key[row["picture"], "tables-psnr", row["target"]]
            assert plain["quality"] == row["quality"] and row["psnr-rgb"] >= plain["psnr-rgb"] - 1e-6
            assert plain["bpp"] <= row["target"]
        size = (tmp_path / "tables.jsonl").stat().st_size
        assert cli.main([*arguments, "--parts", "I,III,fig4"]) == 0  # nothing is measured again
        assert capsys.readouterr().out == text and (tmp_path / "tables.jsonl").stat().st_size == size

    def test_a_record_of_eval_stays(self, folder: Path, tmp_path: Path) -> None:
        codec, pictures = l2c.Codec(), sorted(folder.iterdir())
        figures = ("ms-ssim-rgb", "ms-ssim-y", "vmaf")
        plan = Plan(pictures, (0.8,), ("psnr",), (0,), ("jpeg",), figures)
        assert evaluate(codec, plan, tmp_path).measured == 4
        kept = {name: (tmp_path / name).read_bytes() for name in ("run.json", "results.csv", "rows.jsonl")}
        begun: list[str] = []
        tables = Tables(codec, pictures, tmp_path, (0.8,), 1, 0, "psnr", begun.append)
        assert re.search(r"\| chelsea \| 0\.(7[89]\d|800) ", tables.table_one())
        assert not begun and {name: (tmp_path / name).read_bytes() for name in kept} == kept

    def test_rates_that_a_picture_does_not_come_to(self, crops: Path, tmp_path: Path) -> None:
        """Left out of the means, and counted; a picture below the least rate and one whose best quality needs less."""
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "flat.png")
        tables = Tables(
            l2c.Codec(), [crops / "coffee.png", tmp_path / "flat.png"], tmp_path / "r", (0.005, 0.6), 2,
            overfitting=l2c.Effort(iterations=1),
        )  # fmt: skip
        text = tables.table_three()
        assert [line.split("|")[2].strip() for line in text.splitlines() if "± 15 %" in line] == ["1"] * 6
        assert "(files: 1)" in text
        assert "0.005" not in text
        text = tables.figure_four(1)
        assert [line.split("|")[3].strip() for line in text.splitlines() if line.startswith("| PSNR")] == ["1"]

    def test_steps_and_time(self, crops: Path, tmp_path: Path) -> None:
        tables = Tables(l2c.Codec(), sorted(crops.iterdir()), tmp_path, examples=1, steps=(1, 2))
        text = tables.figure_five(0.5)
        rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith(("| PSNR", "| MS-SSIM"))]
        assert [(row[0].strip(), int(row[1])) for row in rows] == [
            ("PSNR", 1), ("PSNR", 2), ("MS-SSIM", 1), ("MS-SSIM", 2),
        ]  # fmt: skip
        assert all(int(row[2]) == 1 and float(row[3]) > 0 for row in rows)  # it takes time
        assert Image.open(tmp_path / "fig5.png").width > 300

    def test_two_checkpoints(
        self, folder: Path, tmp_path: Path, tiny_config: ModelConfig, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Table II: the same networks gain the same; rates that a checkpoint learnt are tried, too; rows are kept."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            state = Networks(tiny_config).state_dict()
        paths = [tmp_path / name for name in ("meta.pt", "control.pt", "other.pt")]
        for path, stage in zip(paths, ("meta", "meta", "pretrain")):
            Checkpoint(tiny_config, state, state, stage).save(path)
        crop = torch.from_numpy(photo(NAMES[0], 96, 96)).permute(2, 0, 1).float() / 255.0
        drop = Overfitter(paths[0]).best_drop(crop, 60, 4, 3, (0.01, 0.05))
        assert math.isfinite(drop) and Overfitter(paths[1]).best_drop(crop, 60, 4, 3, (0.01, 0.05)) == drop
        worse = Overfitter(paths[0]).best_drop(crop, 60, 4, 3, (0.05,))
        assert drop >= worse  # the best of both rates
        learnt = {"0": torch.full((3, 1, 1, 1), math.log(0.01 * PAPER_ALPHA))}
        Checkpoint(tiny_config, state, state, "meta", objective=learnt).save(paths[0])
        assert Overfitter(paths[0]).best_drop(crop, 60, 4, 3, (0.05,)) == pytest.approx(drop, rel=1e-3)
        arguments = ["tables", str(folder), "-o", str(tmp_path / "r"), "--parts", "II", "--control", str(paths[2])]
        assert cli.main([*arguments, "--meta", str(paths[0])]) == 1
        assert "of the stage pretrain, not of meta" in capsys.readouterr().err

        assert cli.main([*arguments, "--meta", str(paths[0]), "--crop", "100"]) == 1
        assert "a multiple of 64" in capsys.readouterr().err
        monkeypatch.setattr("l2c.evaluate.tables.PAPER_II", {4: ((0.1, 0.2), 4.58), 5: ((0.05,), 11.37)})
        begun: list[str] = []
        tables = Tables(l2c.Codec(), [folder / "coffee.png"], tmp_path / "r", tell=begun.append, crop=64)
        two = tables.check_two(paths[1], paths[1])
        text = tables.table_two(*two, (60,))
        assert [line.split("|")[5].strip() for line in text.splitlines() if "{" in line] == ["+0.00 %"] * 2
        assert len(begun) == 2  # both are the same file
        again = Tables(l2c.Codec(), tables.pictures, tmp_path / "r", tell=begun.append, crop=64)
        assert again.table_two(*two, (60,)) == text and len(begun) == 2

    @pytest.mark.parametrize(
        ("more", "message"),
        [(["--parts", "IV"], "choose from I, II"), (["--parts", "II"], "--meta and --control"),
         (["--meta", "a.pt", "--control", "b.pt"], "give --parts II"), (["--meta", "a.pt"], "give --parts II"),
         (["--parts", "II", "--control", "a.pt"], "give --parts II"),
         (["--parts", "II", "--meta", "a.pt", "--control", "b.pt"], "a.pt"), (["--examples", "0"], "--examples"),
         (["--metric", "ssim"], "no metric 'ssim'"), (["--rates", "0"], "more than 0")],
    )  # fmt: skip
    def test_errors(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
    ) -> None:
        assert cli.main(["tables", str(folder), "-o", str(tmp_path), *more]) in (1, 2)
        assert message in capsys.readouterr().err


def test_time_plot_has_every_measured_codec(tmp_path: Path) -> None:
    def curve(codec: str, title: str, seconds: float, factor: float, published: bool = False) -> Curve:
        rates = [0.1, 0.25, 0.5, 1.0]
        values = {"bpp": [factor * r for r in rates], "psnr-rgb": [30.0, 33.1, 35.9, 39.0]}
        values["encode_seconds"] = [seconds] * 4
        return Curve(codec, title, "", values, rates, published)

    anchor = curve("jpeg", "JPEG", 0.01, 1.0)
    curves = [anchor, curve("l2c-psnr", "L2C for PSNR, effort 0", 0.5, 0.6), curve("vtm", "VTM", 90.0, 0.4, True)]
    plot_time(curves, anchor, "psnr-rgb", tmp_path / "a.png")
    fewer = (tmp_path / "a.png").read_bytes()
    plot_time([*curves, curve("l2c-psnr-effort4", "L2C for PSNR, effort 4", 4.0, 0.55)], anchor, "psnr-rgb",
              tmp_path / "b.png")  # fmt: skip
    assert (tmp_path / "b.png").read_bytes() != fewer
    plot_time(curves[:2], anchor, "psnr-rgb", tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes() == fewer  # a published time is another machine's


def test_default_rates_are_the_command_s() -> None:
    assert ",".join(f"{rate:g}" for rate in run.DEFAULT_RATES) == "0.06,0.12,0.25,0.5,0.75,1,1.5,2"
