from sllm.clock import ManualClock
from sllm.node.instances.phases import Phase, PhaseKind, Timeline


def test_phases_count_from_the_timelines_making() -> None:
    clock = ManualClock(start=100.0)
    timeline = Timeline(clock)
    clock.advance(1.0)
    with timeline.phase(PhaseKind.WORKER_START):
        clock.advance(2.0)
    timeline.add(PhaseKind.READ_SSD, 100.5, 4.0, size_bytes=8)

    assert timeline.phases == (
        Phase(PhaseKind.READ_SSD, 0.5, 4.0, 8),
        Phase(PhaseKind.WORKER_START, 1.0, 2.0),
    )
    assert timeline.elapsed == 3.0


def test_a_phase_can_be_recorded_once_it_has_ended() -> None:
    clock = ManualClock()
    timeline = Timeline(clock)
    clock.advance(10.0)
    timeline.add_ending_now(PhaseKind.ENGINE_INIT, 1.0)
    timeline.add_ending_now(PhaseKind.ATTACH, 2.0, before=1.0)

    assert timeline.phases == (
        Phase(PhaseKind.ATTACH, 7.0, 2.0),
        Phase(PhaseKind.ENGINE_INIT, 9.0, 1.0),
    )


def test_preparing_runs_beside_the_load_and_attaching_comes_after_both() -> None:
    clock = ManualClock()
    timeline = Timeline(clock)
    timeline.add(PhaseKind.READ_SSD, 0.0, 2.0)
    timeline.add(PhaseKind.WORKER_START, 0.25, 1.0)  # the source was looked at before
    timeline.add(PhaseKind.PREPARE, 1.25, 2.0)
    clock.advance(7.5)
    timeline.add_ending_now(PhaseKind.ENGINE_INIT, 4.0)

    assert timeline.prepare_seconds == 3.25
    assert timeline.attach_seconds == 4.25


def test_what_is_read_last_is_what_attaching_waits_for() -> None:
    clock = ManualClock()
    timeline = Timeline(clock)
    timeline.add(PhaseKind.READ_SSD, 0.0, 5.0)
    timeline.add(PhaseKind.WORKER_START, 0.0, 1.0)
    clock.advance(6.0)

    assert timeline.attach_seconds == 1.0
