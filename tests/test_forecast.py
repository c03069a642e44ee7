"""Forecasts of the remaining time: a bound that no client can beat, and an estimate from completed imports."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncmig import Limits, Rate, generations
from asyncmig.customers.status import RemainingWork
from asyncmig.jobs.plan import Forecast, earliest_end, forecast

CREATE, UPLOAD, START = "POST /companies", "POST /companies/{id}/uploads", "POST /companies/{id}/imports"
READ, DOWNLOAD = "GET /companies/{id}/imports/{run_id}", "GET /companies/{id}/export.csv"


def fastest_end(count: int, limit: int, window: float) -> float:
    """Return when the last of `count` requests is sent, if each is sent as soon as a sliding window allows it."""
    sent: list[float] = []
    for _ in range(count):
        sent.append(sent[-limit] + window if len(sent) >= limit else 0.0)
    return sent[-1] if sent else 0.0


@given(st.integers(0, 500), st.integers(1, 120))
def test_the_earliest_end_is_the_end_of_the_fastest_client(count: int, limit: int) -> None:
    assert earliest_end({"GET /x": count}, limits=Limits(endpoint=Rate(limit))) == fastest_end(
        count, limit, 60.0
    )


def test_requests_to_all_endpoints_count_in_a_budget_of_the_key() -> None:
    requests = {"GET /x": 60, "GET /y": 60}
    assert earliest_end(requests, limits=Limits.PER_ENDPOINT) == 0.0
    assert earliest_end(requests, limits=Limits.PER_KEY) == 60.0


@pytest.mark.parametrize(
    ("step", "left"),
    [
        ("waiting", {CREATE: 1, UPLOAD: 3, START: 1, READ: 1, DOWNLOAD: 1}),
        ("uploading", {UPLOAD: 3, START: 1, READ: 1, DOWNLOAD: 1}),
        ("starting", {START: 1, READ: 1, DOWNLOAD: 1}),
        ("running", {READ: 1, DOWNLOAD: 1}),
        ("downloading", {DOWNLOAD: 1}),
    ],
)
def test_each_step_has_fewer_remaining_requests(step: str, left: dict[str, int]) -> None:
    assert dict(generations.find("companies").requests_left(RemainingWork(step=step, files=3))) == left


def predicted(*under_way: RemainingWork, longest: float | None, concurrency: int = 500) -> Forecast:
    return forecast(under_way, longest, limits=Limits.PER_ENDPOINT, concurrency=concurrency)


def test_a_forecast_is_a_bound_until_an_import_has_ended() -> None:
    many = [RemainingWork(files=2)] * 150
    assert predicted(*many, longest=None) == Forecast(120.0, is_bound=True)  # 300 uploads
    assert predicted(longest=None) == Forecast(0.0, is_bound=False)


def test_a_forecast_expects_imports_to_take_as_long_as_the_longest_one() -> None:
    assert predicted(RemainingWork(step="running", age=20.0), longest=90.0) == Forecast(70.0, is_bound=False)
    assert predicted(*[RemainingWork(files=2)] * 150, longest=90.0).seconds == 60.0 + 60.0 + 90.0
    assert predicted(*[RemainingWork()] * 10, longest=90.0, concurrency=2).seconds == 5 * 90.0


def test_a_forecast_is_a_bound_while_an_import_takes_longer_than_the_longest_one() -> None:
    assert predicted(RemainingWork(step="running", age=50.0), longest=10.0).is_bound
