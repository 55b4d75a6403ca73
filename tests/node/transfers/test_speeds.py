from pathlib import Path

import pytest

from sllm.node.transfers.speeds import Speed, measure

MIB = 1 << 20
HALF = 256 * MIB


def _moved(speed: Speed, size: int, seconds: float, times: int = 1) -> None:
    for index in range(times):
        speed.observe(size, 100.0 * index, 100.0 * index + seconds)


def test_a_speed_follows_what_is_observed() -> None:
    speed = Speed(HALF / 1.0)
    _moved(speed, HALF, 3.0)
    assert speed.bytes_per_second == pytest.approx(HALF / 2.0)
    _moved(speed, HALF, 3.0, times=20)
    assert speed.bytes_per_second == pytest.approx(HALF / 3.0, rel=1e-3)


def test_small_transfers_hardly_count() -> None:
    speed = Speed(1e9)
    speed.observe(1 << 10, 0.0, 1e-3)
    assert speed.bytes_per_second > 0.99e9


def test_transfers_that_share_the_link_do_not_make_it_slower() -> None:
    speed = Speed(HALF / 1.0)
    for index in range(40):
        began = 10.0 * index
        speed.observe(HALF, began, began + 1.0)
        speed.observe(HALF, began, began + 2.0)  # it had to wait for the first
    assert speed.bytes_per_second == pytest.approx(HALF / 1.0)


@pytest.mark.parametrize(("size", "seconds"), [(0, 1.0), (MIB, 0.0)])
def test_what_says_nothing_changes_nothing(size: int, seconds: float) -> None:
    speed = Speed(5.0)
    speed.observe(size, 1.0, 1.0 + seconds)
    assert speed.bytes_per_second == 5.0


def test_what_was_never_observed_is_no_faster_than_what_was() -> None:
    source, peers, slow = Speed(HALF / 0.1), Speed(HALF / 0.1), Speed(HALF / 9.0)
    _moved(peers, HALF, 3.0, times=20)
    for one in (source, slow):
        one.expect(peers)
    assert source.bytes_per_second == pytest.approx(HALF / 3.0, rel=1e-3)
    assert slow.bytes_per_second == pytest.approx(HALF / 9.0)
    _moved(source, HALF, 1.0, times=20)
    source.expect(peers)
    assert source.bytes_per_second == pytest.approx(HALF / 1.0, rel=1e-3), "it knows better"


def test_start_values_are_measured_and_leave_nothing(tmp_path: Path) -> None:
    speeds = measure(tmp_path)
    for speed in (speeds.remote_to_ssd, speeds.ssd_to_dram, speeds.dram_to_device):
        assert speed.bytes_per_second > 0
    assert list(tmp_path.iterdir()) == []
