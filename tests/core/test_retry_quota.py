"""The pauses between probes of a server that is unavailable."""

from asyncmig._core.retry import RetryQuota


def test_the_pause_between_probes_stays_at_its_ceiling_during_a_long_outage() -> None:
    quota = RetryQuota(ceiling=20.0)
    assert {quota.next_probe() for _ in range(3000)} == {1.0, 2.0, 4.0, 8.0, 16.0, 20.0}
