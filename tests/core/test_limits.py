"""`Limits` as a value and as a text."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncmig import InvalidInput, Limits, Rate
from asyncmig._core.endpoint import Endpoint, Repeat
from asyncmig._core.limits import charged
from asyncmig.simulator.server import limits as simulator


def endpoint(*budgets: str) -> Endpoint:
    return Endpoint(name="x", method="GET", template="/x", repeat=Repeat.ALWAYS, budgets=budgets)


DOCUMENTED = "reads=30/60s,writes=10/60s,jobs=5/1h,agent=5/1h,create=1/1h,generate=1/1h,runs=3"


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("per-endpoint", Limits.PER_ENDPOINT),
        (" Per-Key ", Limits.PER_KEY),
        ("by-class", Limits.BY_CLASS),
        ("per-minute", Limits.PER_MINUTE),
        (DOCUMENTED, Limits.BY_CLASS),
        (DOCUMENTED.replace(",", " , ").replace("5/1h", "5/h"), Limits.BY_CLASS),
        ("agent=50/1h,runs=5", Limits.BY_CLASS.changed(agent=Rate(50, 3600.0), runs=5)),
        ("runs=5", Limits.BY_CLASS.changed(runs=5)),
        ("endpoint=60/m", Limits(endpoint=Rate(60, 60.0))),
        ("key=60/60s", Limits(key=Rate(60, 60.0))),
    ],
)
def test_a_text_is_parsed_and_formatted(text: str, limits: Limits) -> None:
    assert Limits.parse(text) == limits
    assert Limits.parse(str(limits)) == limits
    assert hash(Limits.parse(text)) == hash(limits)
    assert pickle.loads(pickle.dumps(limits)) == limits


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "reads",
        "reads=",
        "read=30/60s",
        "reads=0/60s",
        "reads=1/60s,reads=2/60s",
        "runs=0",
        "runs=x",
    ],
)
def test_an_invalid_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Limits.parse(text)
    assert (refused.value.field, refused.value.value) == ("limits", text)


@pytest.mark.parametrize("budgets", [{"reads": 30}, {"reads": (30, 60)}, [("reads", Rate())]])
def test_budgets_must_be_rates(budgets: object) -> None:
    with pytest.raises(InvalidInput, match="budgets"):
        Limits(budgets=budgets)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rate", [(0, 60.0), (-1, 60.0), (1, 0.0), (1, float("inf")), (1, float("nan")), (True, 60.0)]
)
def test_an_invalid_rate_is_refused(rate: tuple[int, float]) -> None:
    with pytest.raises(InvalidInput):
        Rate(*rate)


def test_an_endpoint_charges_those_of_its_budgets_that_the_limits_define() -> None:
    assert set(charged(Limits.BY_CLASS, endpoint("agent", "generate"))) == {"agent", "generate"}
    assert charged(Limits.BY_CLASS, endpoint()) == {"GET /x": Rate()}
    assert charged(Limits.PER_ENDPOINT, endpoint("agent", "generate")) == {"GET /x": Rate()}
    assert charged(Limits.PER_KEY, endpoint("agent", "generate")) == {"*": Rate()}
    assert set(charged(Limits(budgets={"agent": Rate()}), endpoint("agent", "generate"))) == {"agent"}


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["by-class", "per-minute", "PER-KEY ", "per-endpoint", "runs=3", "runs=0", "runs=", "runs=\u0663"]
        ),
        st.builds(
            "{}{}={}{}/{}{}".format,
            st.sampled_from(["reads", "agent", "endpoint", "key", "runs", "read", "", "generate"]),
            st.sampled_from(["", " "]),
            st.sampled_from(["", " "]),
            st.sampled_from(["0", "1", "50", "-1", "1.5", ""]),
            st.sampled_from(["", "0", "1", "60", ".5", "1e3", "\u0661"]),
            st.sampled_from(["", "s", "H", "m", "d", " "]),
        ),
        st.text("=,/ ars0159", max_size=8),
    ),
    max_size=4,
).map(",".join)


@settings(max_examples=300)
@given(TEXTS)
def test_the_simulator_parses_each_text_like_the_client(text: str) -> None:
    try:
        ours = Limits.parse(text)
    except InvalidInput:
        with pytest.raises(ValueError, match=r"\S"):
            simulator.Limits.parse(text)
        return
    theirs = simulator.Limits.parse(text)
    assert {name: (rate.limit, rate.window) for name, rate in ours.budgets.items()} == dict(theirs.rates)
    assert (ours.endpoint.limit, ours.endpoint.window) == theirs.endpoint
    assert (None if ours.key is None else (ours.key.limit, ours.key.window)) == theirs.key
    assert ours.runs == theirs.runs
