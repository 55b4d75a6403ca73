"""What requests teach."""

from sllm.control.requests.service_times import Served, ServiceTimes


def _served(seconds: float) -> Served:
    return Served(0.5, seconds, 20)


def test_nothing_is_expected_of_what_has_served_nothing() -> None:
    service_times = ServiceTimes()
    assert service_times.expectation("m") is None


def test_the_mean_follows_what_requests_take_now() -> None:
    service_times = ServiceTimes()
    for seconds in (2.0, 2.0, 4.0):
        service_times.served("m", _served(seconds))
    expected = service_times.expectation("m")
    assert expected is not None
    assert 2.0 < expected.seconds < 3.0
    assert expected.first_token_seconds == 0.5
    service_times.forget("m")
    assert service_times.expectation("m") is None


def test_what_ending_an_instance_takes_is_learned() -> None:
    service_times = ServiceTimes()
    for seconds in (1.0, 1.0, 2.0):
        service_times.stopped(seconds)
    assert 1.0 < service_times.stop_seconds < 2.0
