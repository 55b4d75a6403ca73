from pathlib import Path

import pytest

from sllm.node.links import Speed, measure

GIB = 1 << 30


def test_a_speed_follows_what_is_observed() -> None:
    speed = Speed(100.0)
    speed.observe(GIB, GIB / 300.0)
    assert speed.bytes_per_second == pytest.approx(200.0)
    for _ in range(20):
        speed.observe(GIB, GIB / 300.0)
    assert speed.bytes_per_second == pytest.approx(300.0, rel=1e-3)


def test_small_transfers_hardly_count() -> None:
    speed = Speed(1e9)
    speed.observe(1 << 20, 1.0)
    assert speed.bytes_per_second > 0.99e9


@pytest.mark.parametrize(("size", "seconds"), [(0, 1.0), (GIB, 0.0)])
def test_what_says_nothing_changes_nothing(size: int, seconds: float) -> None:
    speed = Speed(5.0)
    speed.observe(size, seconds)
    assert speed.bytes_per_second == 5.0


def test_start_values_are_measured_and_leave_nothing(tmp_path: Path) -> None:
    speeds = measure(tmp_path)
    for speed in (speeds.remote_to_ssd, speeds.ssd_to_dram, speeds.dram_to_device):
        assert speed.bytes_per_second > 0
    assert list(tmp_path.iterdir()) == []
