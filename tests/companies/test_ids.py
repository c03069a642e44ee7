"""An id given by the caller cannot direct a request to another route."""

import pytest

from asyncmig import InvalidInput
from asyncmig.testing import Simulator

BAD = [
    "",
    " ",
    ".",
    "..",
    "a/b",
    "../x",
    "a?b",
    "a#b",
    "a%2e",
    "a b",
    "a\nb",
    "a\x85b",
    "x" * 256,
    "https://a.b/c",
]


@pytest.mark.parametrize("given", [*BAD, 7, None], ids=ascii)
async def test_an_invalid_id_is_refused_before_a_request(given: str) -> None:
    simulator = Simulator()
    async with simulator.session() as session:
        company = session.companies.open("c-1")
        for ask in (
            lambda: session.companies.open(given),
            lambda: session.watch("r-1", given),
            lambda: session.watch(given, "c-1"),
            lambda: company.imports.open(given),
            lambda: company.exports.open(given),
        ):
            with pytest.raises(InvalidInput, match=r"company_id|run_id"):
                ask()
        with pytest.raises(InvalidInput, match="sheets"):
            await company.download(to="out", sheets=[given])
    assert simulator.transport.sent == []


@pytest.mark.parametrize("given", ["c-1", "  c-1\n", "https://app.vern.so/x/companies/c-1/imports/r-1?y#z"])
async def test_an_id_may_have_surrounding_spaces_or_be_a_url(given: str) -> None:
    async with Simulator().session() as session:
        assert session.companies.open(given).id == "c-1"
        assert session.watch("https://app.vern.so/x/companies/c-1/imports/r-1?y#z", given).id == "r-1"


async def test_a_path_parameter_cannot_lead_to_another_route() -> None:
    simulator = Simulator()
    async with simulator.session() as session:
        for name in ("..", ".", ""):
            with pytest.raises(InvalidInput, match="another route"):
                await session.request("GET", "/companies/{id}", id=name)
    assert simulator.transport.sent == []
