"""No download replaces an input file, no file outside of the root is read, and no second spec is ignored."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from asyncmig import Delivered, Failed, Fleet, InvalidInput, MemoryJournal, Outcome, Spec, migrate
from asyncmig.customers.paths import Inputs, keys_of
from asyncmig.events import MigrationChanged
from asyncmig.simulator import World

from .conftest import CLEAN, SOURCE, OpenSession

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]


def placed(path: Path, external_id: str = "acme") -> Spec:
    """Write a file, and return the spec of a customer with this file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CLEAN, encoding="utf-8")
    return Spec(external_id=external_id, name=external_id, source=SOURCE, files=(path,))


async def outcomes_of(open_session: OpenSession, specs: list[Spec], to: Path) -> dict[str, Outcome]:
    async with (
        open_session() as session,
        Fleet(session, journal=MemoryJournal(), to=to, decide="approve") as fleet,
    ):
        return {outcome.external_id: outcome async for outcome in fleet.run(specs)}


@pytest.mark.parametrize("by", ["fleet", "migrate"])
@pytest.mark.parametrize("link", ["none", "file", "folder", "relative"])
async def test_an_input_file_in_the_output_folder_is_refused(
    open_session: OpenSession,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
    link: str,
) -> None:
    to = tmp_path / "out"
    spec = placed(to / "acme" / "Contacts.csv")
    if link == "file":
        (tmp_path / "link.csv").symlink_to(spec.files[0])
        spec = msgspec.structs.replace(spec, files=(tmp_path / "link.csv",))
    if link == "folder":
        (tmp_path / "link").symlink_to(to)
        to = tmp_path / "link"
    if link == "relative":
        monkeypatch.chdir(tmp_path / "out" / "acme")
        to = Path("..")
    if by == "fleet":
        outcome = (await outcomes_of(open_session, [spec], to))["acme"]
    else:
        async with open_session() as session:
            outcome = await migrate(session, spec, journal=MemoryJournal(), to=to / "acme")
    assert isinstance(outcome, Failed)
    assert "where sheets are delivered" in outcome.error
    assert str(spec.files[0]) in outcome.error
    assert spec.files[0].read_text(encoding="utf-8") == CLEAN
    assert world.ledger.requests.total() == 0


async def test_an_input_file_in_the_folder_of_another_customer_is_not_replaced(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    mine = placed(tmp_path / "out" / "bolt" / "Contacts.csv", "acme")
    outcomes = await outcomes_of(open_session, [mine, customer("bolt"), customer("cora")], tmp_path / "out")
    assert isinstance(outcomes["acme"], Failed)
    assert isinstance(outcomes["cora"], Delivered)
    assert isinstance(outcomes["bolt"], Failed)
    assert "is an input file: it was not replaced" in outcomes["bolt"].error
    assert mine.files[0].read_text(encoding="utf-8") == CLEAN


@pytest.mark.parametrize("how", ["moved", "linked", "hard-linked"])
async def test_an_input_file_moved_to_the_output_folder_is_not_replaced(
    open_session: OpenSession, customer: Customer, tmp_path: Path, how: str
) -> None:
    spec, target = customer(), tmp_path / "out" / "Contacts.csv"
    source = spec.files[0]

    def move_file(event: object) -> None:
        if isinstance(event, MigrationChanged) and event.step == "downloading":
            target.parent.mkdir()
            if how == "moved":
                source.rename(target)
            elif how == "linked":
                target.symlink_to(source)
            else:
                os.link(source, target)

    async with open_session() as session:
        with session.events.subscribe(move_file):
            outcome = await migrate(session, spec, journal=MemoryJournal(), to=tmp_path / "out")
    assert isinstance(outcome, Failed)
    assert outcome.step == "downloading"
    assert target.read_text(encoding="utf-8") == CLEAN
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_is_protected_until_the_last_of_two_overlapping_runs_ends(tmp_path: Path) -> None:
    inputs, (path,) = Inputs(), placed(tmp_path / "a.csv").files
    first, second = inputs.holding(keys_of([path])), inputs.holding(keys_of([path]))
    with first:
        second.__enter__()
        assert inputs.keys_of([path]) == keys_of([path])
    with pytest.raises(InvalidInput, match="is an input file"):
        inputs.check(path)
    second.__exit__(None, None, None)
    inputs.check(path)
    assert inputs.keys_of([path]) is None


@pytest.mark.parametrize("by", ["upload", "start"])
async def test_a_company_does_not_replace_the_files_that_it_uploaded(
    open_session: OpenSession, tmp_path: Path, by: str
) -> None:
    spec = placed(tmp_path / "Contacts.csv")
    async with open_session() as session:
        company = await session.companies.create(name="A", source=SOURCE, external_id="acme")
        file = await company.upload(spec.files[0]) if by == "upload" else spec.files[0]
        run = await company.imports.start(files=[file])
        await run.wait()
        with pytest.raises(InvalidInput, match="is an input file"):
            await company.download(to=tmp_path)
        assert spec.files[0].read_text(encoding="utf-8") == CLEAN
        assert await company.download(to=tmp_path / "out")
        assert await company.download(to=tmp_path / "out")  # sheets of an earlier download are replaced


async def test_sheets_of_an_earlier_delivery_are_replaced(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    journal, spec = MemoryJournal(), customer()
    async with open_session() as session:
        first = await migrate(session, spec, journal=journal, to=tmp_path / "out")
        assert isinstance(first, Delivered)
        again = await migrate(session, spec, journal=journal, to=tmp_path / "out", row_filter="all")
    assert isinstance(again, Delivered)


async def test_two_specs_of_one_customer_are_refused_before_a_request(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    one, other = customer("acme"), placed(tmp_path / "other.csv", "acme")
    async with (
        open_session() as session,
        Fleet(session, journal=MemoryJournal(), to=tmp_path / "out") as fleet,
    ):
        for specs in ([one, customer("bolt"), other], [one, one]):
            with pytest.raises(InvalidInput, match="external_id='acme'"):
                _ = [outcome async for outcome in fleet.run(specs)]
    assert world.ledger.requests.total() == 0


async def test_another_spec_of_a_running_customer_is_refused(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    one, other = customer("acme"), placed(tmp_path / "other.csv", "acme")
    async with (
        open_session() as session,
        Fleet(session, journal=MemoryJournal(), to=tmp_path / "out") as fleet,
    ):
        running = fleet.submit(one)
        assert fleet.submit(customer("acme")) is running
        with pytest.raises(InvalidInput, match="external_id='acme'"):
            fleet.submit(other)
        with pytest.raises(InvalidInput, match="external_id='acme'"):
            _ = [outcome async for outcome in fleet.run([customer("bolt"), other])]
        assert isinstance(await running, Delivered)
        late = await fleet.submit(other)
    assert late.notes  # its files differ from the imported ones
    assert world.ledger.requests["POST /companies"] == 1


@pytest.mark.parametrize("by", ["fleet", "migrate", "validate"])
@pytest.mark.parametrize("path", ["outside", "dots", "link", "linked folder", "the root"])
async def test_a_file_outside_of_the_root_is_refused(
    open_session: OpenSession, world: World, tmp_path: Path, by: str, path: str
) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-2"
    spec = placed(outside / "contacts.csv")
    root.mkdir()
    (root / "link.csv").symlink_to(spec.files[0])
    (root / "folder").symlink_to(outside)
    file = {
        "outside": spec.files[0],
        "dots": root / ".." / "root-2" / "contacts.csv",
        "link": root / "link.csv",
        "linked folder": root / "folder" / "contacts.csv",
        "the root": root,
    }[path]
    spec = msgspec.structs.replace(spec, files=(file,))
    if by == "validate":
        with pytest.raises(InvalidInput, match="lies outside of"):
            spec.validate(root=root)
        return
    async with open_session() as session:
        if by == "fleet":
            async with Fleet(session, journal=MemoryJournal(), to=tmp_path / "out", root=root) as fleet:
                outcome = await fleet.submit(spec)
        else:
            outcome = await migrate(
                session, spec, journal=MemoryJournal(), to=tmp_path / "out", root=str(root)
            )
    assert isinstance(outcome, Failed)
    assert "lies outside of" in outcome.error
    assert world.ledger.requests.total() == 0


@pytest.mark.parametrize("link", [False, True])
async def test_a_file_below_the_root_is_migrated(
    open_session: OpenSession, tmp_path: Path, link: bool
) -> None:
    spec, root = placed(tmp_path / "in" / "acme" / "contacts.csv"), tmp_path / "in"
    if link:
        (tmp_path / "to-in").symlink_to(root)
        root = tmp_path / "to-in"
    async with (
        open_session() as session,
        Fleet(session, journal=MemoryJournal(), to=tmp_path / "out", root=root) as fleet,
    ):
        assert isinstance(await fleet.submit(spec), Delivered)


async def test_a_link_out_of_the_root_that_replaces_a_file_is_not_followed(
    open_session: OpenSession, world: World, customer: Customer, tmp_path: Path
) -> None:
    spec, secret = customer("acme"), placed(tmp_path / "secret.csv").files[0]

    def swap(event: object) -> None:
        if isinstance(event, MigrationChanged) and event.step == "uploading":
            spec.files[0].unlink()
            spec.files[0].symlink_to(secret)

    async with (
        open_session() as session,
        Fleet(session, journal=MemoryJournal(), to=tmp_path / "out", root=tmp_path / "in") as fleet,
    ):
        with session.events.subscribe(swap):
            outcome = await fleet.submit(spec)
    assert isinstance(outcome, Failed)
    assert "lies outside of" in outcome.error
    assert world.ledger.requests["POST /companies/{id}/uploads"] == 0


async def test_a_root_that_is_not_a_folder_is_an_error(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    async with (
        open_session() as session,
        Fleet(session, journal=MemoryJournal(), root=tmp_path / "none") as fleet,
    ):
        outcome = await fleet.submit(customer())
    assert isinstance(outcome, Failed)
    assert "root=" in outcome.error
