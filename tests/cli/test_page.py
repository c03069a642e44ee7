"""The HTML report is well-formed and self-contained, and escapes all texts."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import dom_of, needs_browser

from asyncmig._core.limits import Rate
from asyncmig.cli.charts import Timeline
from asyncmig.cli.html_report import ReportPage, render
from asyncmig.cli.json_output import Budget
from asyncmig.customers.status import CustomerStatus
from asyncmig.events import Held, MigrationChanged, RequestDone, RequestSent, RunEnded

from .conftest import KEY, SPEED, Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\nb@x.de,B\n"
LATIN = b"Email,Name\na@x.de,Caf\xe9\n"
HOSTILE = "</title><script>alert('1')</script>\"&'\x1b[2J\u202e<img src=http://evil.example/>"
Customers = Callable[..., Path]


def page(customers: int, *, by_key: bool = False, text: str = "plain") -> ReportPage:
    """Return a page with each kind of event. Every fifth customer failed."""
    timeline, rows = Timeline(began=0.0), []
    for n in range(customers):
        name = f"c-{n}{text if n == 0 else ''}"
        for at, step in enumerate(("creating", "uploading", "running", "downloading", "failed")):
            timeline.note(
                MigrationChanged(at=n + at * 60.0, external_id=name, ids={"company": name}, step=step),
                by=name,
            )
            if step == "running":
                timeline.note(
                    RunEnded(
                        at=n + 150.0,
                        ids={"company": name, "run": "r"},
                        status="failed",
                        seconds=1,
                        noticed_within=n,
                    )
                )
        timeline.note(RequestSent(at=n, endpoint=f"POST /{text}", lane="WORK", attempt=1))
        outcome = "delivered" if n % 5 else "failed"
        rows.append(CustomerStatus(external_id=name, name=text, outcome=outcome, error=text, notes=(text,)))
    timeline.note(
        RequestDone(at=1, endpoint=f"POST /{text}", lane="WORK", attempt=1, seconds=1.0, status=429)
    )
    timeline.note(Held(at=1, budget="*" if by_key else f"POST /{text}", until=5, seconds=4, slots=9, burst=9))
    timeline.end(customers + 300.0)
    budget = Budget(requests=customers, refused=1)
    return ReportPage(
        title=text,
        written=text,
        rows=rows,
        timeline=timeline,
        budget=budget,
        by_key=by_key,
        reason=text,
        notes=[text],
    )


def parsed(html: str) -> ElementTree.Element:
    doctype, _, rest = html.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    return ElementTree.fromstring(rest)


def bars(html: str) -> int:
    return len(parsed(html).findall(".//g[@class='bar']"))


@pytest.mark.parametrize("customers", [0, 1, 80, 81, 3000])
@pytest.mark.parametrize("by_key", [False, True])
def test_the_page_has_a_bar_for_each_customer(customers: int, by_key: bool) -> None:
    assert bars(render(page(customers, by_key=by_key))) == customers


def test_a_fleet_without_events_has_a_page() -> None:
    rows = [CustomerStatus(external_id="acme", name="Acme")]
    assert bars(render(ReportPage(title="t", written="w", rows=rows, timeline=Timeline(began=5.0)))) == 1


@pytest.mark.parametrize(("rate", "lines"), [(Rate(), 1), (None, 0)])
def test_a_limit_is_drawn_only_where_endpoints_have_one(rate: Rate | None, lines: int) -> None:
    html = render(dataclasses.replace(page(3), rate=rate))
    assert html.count('class="cap"') == lines
    assert ("The dashed line is the limit: 100 a minute" in html) is (rate is not None)


def test_texts_of_files_and_servers_are_escaped() -> None:
    html = render(page(6, text=HOSTILE))
    tree = parsed(html)
    assert not {element.tag for element in tree.iter()} & {"script", "img", "iframe", "link", "a"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", html)
    assert "alert('1')" in "".join(tree.itertext())
    assert not [name for element in tree.iter() for name in element.attrib if name in ("src", "href")]
    assert not re.search(r"url\(|@import", html)


def test_the_page_contains_counts_and_statistics() -> None:
    text = " ".join("".join(parsed(render(page(10))).itertext()).split())
    for message in (
        "of 10",
        "8 delivered",
        "2 failed",
        "Not finished: plain",
        "1 answered 429",
        "held for 4.0 s",
    ):
        assert message in text
    assert "Half of 10 runs were noticed within 4.5 s" in text


def test_run_and_report_write_the_page(
    cli: Cli, simulator: Simulator, customers: Customers, tmp_path: Path
) -> None:
    long = GOOD + b"".join(b"p%d@x.de,P\n" % n for n in range(20_000))  # its upload takes measurable time
    manifest = customers(acme=long, cafe=LATIN)
    at = ("--speed", SPEED, "--base-url", simulator.base_url)
    result = cli("run", manifest, *at, "--report", tmp_path / "run.html")
    assert result.code == 3, result.err
    assert cli("report", "--report", "journal.html").code == 0
    drawn: set[str | None] = set()
    for name in ("run.html", "journal.html"):
        html = (tmp_path / name).read_text(encoding="utf-8")
        assert bars(html) == 2
        assert "not UTF-8" in html
        assert KEY not in html
        assert "127.0.0.1" not in html
        assert "http:" not in html
        classes = {path.get("class") for path in parsed(html).findall(".//g[@class='bar']/path")}
        assert classes >= {"running", "fell"}
        drawn |= classes
    assert "uploading" in drawn  # in one of the two pages, the upload may have no duration
    assert "POST /companies/{id}/uploads" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_refused_before_any_request(
    cli: Cli, simulator: Simulator, customers: Customers, tmp_path: Path
) -> None:
    manifest = customers(acme=GOOD)
    for place in (tmp_path, tmp_path / "nowhere" / "report.html"):
        result = cli("run", manifest, "--base-url", simulator.base_url, "--report", place)
        assert (result.code, "report" in result.err) == (2, True)
    assert simulator.count() == 0
    assert not list(tmp_path.glob("fleet.db*"))


@needs_browser
def test_a_browser_shows_the_page_without_errors_or_requests(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render(page(30, text=HOSTILE)), encoding="utf-8")
    assert dom_of(tmp_path / "report.html", tmp_path).count(b'class="bar"') == 30


def test_a_preview_that_cannot_be_examined_does_not_fail_the_run(
    cli: Cli,
    simulator: Simulator,
    customers: Customers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_file = Path.is_file

    def forbidden(path: Path) -> bool:
        if path.name == "preview.html":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", forbidden)
    at = ("--speed", SPEED, "--base-url", simulator.base_url)
    result = cli("run", customers(acme=GOOD), *at, "--report", "run.html", "--json")
    assert result.code == 0, result.err
    assert "run.html cannot be written: [Errno 13] Permission denied" in result.err
    assert json.loads(result.out.splitlines()[-1])["type"] == "Ended"
    assert not (tmp_path / "run.html").exists()


def test_requests_are_counted_in_the_window_of_the_given_limits(
    cli: Cli, simulator: Simulator, customers: Customers, tmp_path: Path
) -> None:
    at = ("--speed", SPEED, "--base-url", simulator.base_url, "--limits", "endpoint=50/10m")
    result = cli("run", customers(acme=GOOD), *at, "--report", "run.html")
    assert result.code == 0, result.err
    html = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "Requests in each 10 min" in html
    assert "The dashed line is the limit: 50 in 10 min 00 s for each endpoint" in html
