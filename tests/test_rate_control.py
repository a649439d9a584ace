"""The quality search on synthetic rate curves."""

import math

import numpy as np
import pytest

from l2c.rate_control import MAX_PROBES, MetricSearch, QualitySearch


def run(search: QualitySearch, size_of) -> None:
    for _ in range(40):
        quality = search.next_quality
        if quality is None:
            return
        assert 0 <= quality <= 1000
        assert quality not in search.sizes
        search.report(quality, size_of(quality))
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("target", [3_000, 10_000, 50_000, 200_000])
@pytest.mark.parametrize("bend", [0.7, 1.0, 1.6])
def test_target_is_met_in_few_probes(target: int, bend: float) -> None:
    def size_of(q: int) -> int:
        return int(2_000 * math.exp(5.0 * (q / 1000) ** bend))

    search = QualitySearch(target, 400_000, [(0, 0.05), (500, 0.5), (1000, 4.0)])
    run(search, size_of)
    assert search.best is not None
    assert 0.98 * target <= search.sizes[search.best] <= target
    assert len(search.sizes) <= MAX_PROBES


def test_without_a_curve() -> None:
    search = QualitySearch(9_000, 400_000, [])
    run(search, lambda q: int(1_000 * math.exp(q / 250)))
    assert search.best is not None
    assert 0.97 * 9_000 <= search.sizes[search.best] <= 9_000


def test_below_the_least_rate() -> None:
    search = QualitySearch(10, 400_000, [(0, 0.05), (1000, 4.0)])
    run(search, lambda q: 500 + q)
    assert search.best is None
    assert search.sizes[0] == 500


def test_above_the_best_quality() -> None:
    search = QualitySearch(1e9, 400_000, [(0, 0.05), (1000, 4.0)])
    run(search, lambda q: 500 + q)
    assert search.best == 1000
    assert len(search.sizes) <= 3


def test_the_highest_quality_counts_where_it_fits() -> None:
    """Of flat pictures it may take fewer bytes than a lower one."""
    search = QualitySearch(1_024, 4_096, [(0, 0.05), (1000, 4.0)])
    run(search, lambda q: 73 if q > 900 else 77)
    assert search.sizes[min(search.sizes)] == 77 and search.best == 1000


def test_ripples_do_not_trap_it() -> None:
    search = QualitySearch(9_000, 400_000, [(0, 0.05), (1000, 4.0)])
    run(search, lambda q: int(1_000 * math.exp(q / 250)) + (37 * q) % 90)
    assert search.best is not None
    assert 0.96 * 9_000 <= search.sizes[search.best] <= 9_000


def test_coarse_steps() -> None:
    """One quality step can jump over the tolerance: the search ends at neighbours."""
    search = QualitySearch(1_500, 1_000, [(0, 0.05), (1000, 4.0)])
    run(search, lambda q: 1_000 if q < 613 else 2_000)
    assert search.best is not None
    assert search.sizes[search.best] == 1_000


# A screenshot, line art, a flat picture: (quality, bpp) with logarithms linear in between; steps of a size as well.
STEEP = {
    "screenshot": [(0, 0.045), (300, 0.06), (500, 1.2), (570, 1.9), (600, 2.4), (1000, 5.0)],
    "late": [(0, 0.02), (900, 0.03), (1000, 6.0)],
    "early": [(0, 0.3), (40, 4.0), (1000, 7.0)],
    "flat": [(0, 0.01), (1000, 0.011)],
    "halftone": [(0, 0.5), (200, 0.6), (220, 5.0), (1000, 8.0)],
}


@pytest.mark.parametrize("name", STEEP)
@pytest.mark.parametrize("target", [0.05, 0.1, 0.5, 1.0, 2.0, 3.0, 5.5])
@pytest.mark.parametrize("overhead", [0, 9_000])
def test_steep_curves(name: str, target: float, overhead: int) -> None:
    """What users got: quality 0 where quality 57 fits, since the search had run out of probes above the target."""
    pixels, points = 400_000, STEEP[name]
    qualities, logs = [q for q, _ in points], [math.log(bpp * pixels / 8) for _, bpp in points]

    def size_of(q: int) -> int:
        return overhead + int(math.exp(np.interp(q, qualities, logs)))

    wanted = target * pixels / 8 + overhead
    search = QualitySearch(wanted, pixels, [(0, 0.03), (500, 0.5), (1000, 3.0)], overhead=overhead)
    run(search, size_of)
    fitting = [q for q in range(1001) if size_of(q) <= wanted]
    if not fitting:
        assert search.best is None and 0 in search.sizes
        return
    assert search.best is not None
    ideal = size_of(max(fitting))
    assert search.sizes[search.best] >= min(0.98 * wanted, size_of(max(fitting) - 1), ideal)
    assert search.sizes[search.best] == max(size for size in search.sizes.values() if size <= wanted)
    assert len(search.sizes) <= 2 * MAX_PROBES


def test_overhead_does_not_bend_the_curve() -> None:
    """With half of the file metadata, a search that knows it needs no more probes than without."""

    def size_of(q: int) -> int:
        return int(math.exp(7.0 + 4.0 * q / 1000))

    curve = [(q, 8 * size_of(q) / 400_000) for q in range(0, 1001, 100)]
    probes = []
    for overhead in (0, 20_000):
        search = QualitySearch(20_000 + overhead, 400_000, curve, overhead=overhead)
        run(search, lambda q, overhead=overhead: size_of(q) + overhead)
        assert search.best is not None and search.sizes[search.best] >= 0.98 * (20_000 + overhead)
        probes.append(len(search.sizes))
    assert probes[1] <= probes[0] <= 2


@pytest.mark.parametrize("target", [30.0, 34.0, 35.8, 36.2, 40.0])
@pytest.mark.parametrize("peak", [400, 700, 850, 960])
def test_a_figure_that_falls_again(target: float, peak: int) -> None:
    """Latents that meet their limits: the best quality is not the highest."""

    def figure(q: int) -> float:
        return 36.24 - 14.0 * (peak - q) / peak if q < peak else 36.24 - 12.0 * (q - peak) / 1000

    search = MetricSearch(target)
    while (quality := search.next_quality) is not None:
        assert quality not in search.values and 0 <= quality <= 1000
        search.report(quality, figure(quality), int(1000 * math.exp(quality / 250)))
    assert len(search.values) <= MAX_PROBES + 4
    if target > 36.24:
        assert figure(search.best) > 36.24 - 0.35
    elif target <= 36.24 - 0.4:
        assert target <= figure(search.best) <= target + 0.6
        assert search.best <= peak + 20  # the smaller of the two files


@pytest.mark.parametrize("target", [25.0, 31.3, 38.0])
def test_the_least_quality_that_reaches_a_figure(target: float) -> None:
    def figure(q: int) -> float:
        return 22 + 20 * (q / 1000) ** 0.8

    search = MetricSearch(target)
    while (quality := search.next_quality) is not None:
        assert quality not in search.values
        search.report(quality, figure(quality), int(1000 * math.exp(quality / 250)))
    assert len(search.values) <= MAX_PROBES
    assert target <= figure(search.best) <= target + 0.1
    assert 0.02 <= search.bits_per_db() <= 0.5


def test_a_figure_out_of_reach() -> None:
    search = MetricSearch(50.0)
    while (quality := search.next_quality) is not None:
        search.report(quality, 20 + quality / 100, 100 + quality)
    assert search.best == 1000
    search = MetricSearch(1.0)
    while (quality := search.next_quality) is not None:
        search.report(quality, 20 + quality / 100, 100 + quality)
    assert search.best == 0


def test_a_search_towards_another_target_has_probes_of_its_own() -> None:
    def size_of(q: int) -> int:
        return int(2_000 * math.exp(5.0 * (q / 1000) ** 0.4 + 0.02 * math.sin(q)))

    first = QualitySearch(30_000, 400_000, [(0, 0.05), (500, 0.5), (1000, 4.0)])
    run(first, size_of)
    for target in (90_000, 60_000, 120_000, 40_000):
        other = first.towards(target, 0.01)
        run(other, size_of)
        assert other.best is not None and 0.97 * target <= other.sizes[other.best] <= target
    assert len(first.sizes) > MAX_PROBES and first.sizes is other.sizes
