from sllm.clock import ManualClock
from sllm.node.phases import Phase, PhaseKind, Timeline


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


def test_init_is_what_a_start_takes_besides_moving_weights() -> None:
    timeline = Timeline(ManualClock())
    for kind, seconds in (
        (PhaseKind.IMPORT, 100.0),
        (PhaseKind.READ_SSD, 10.0),
        (PhaseKind.WORKER_START, 1.0),
        (PhaseKind.PREPARE, 2.0),
        (PhaseKind.ATTACH, 3.0),
        (PhaseKind.ENGINE_INIT, 4.0),
    ):
        timeline.add(kind, 0.0, seconds)
    assert timeline.init_seconds == 10.0
