"""The commands with the API generation "migrations": run, review, status, show, watch, report, retry, adopt."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import dom_of, needs_browser

from asyncmig.simulator import RunDurations
from asyncmig.simulator.migrations import Block, Question, Script, World

from .conftest import KEY, SPEED, Accounts, Cli, Result, Simulator
from .terminal import Terminal

GOOD = b"Email,First Name,Last Name,Phone\na@x.de,A,One,1\nb@x.de,B,Two,2\n"
FLAWED = GOOD + b"not an address,C,Three,3\nd@x.de,D,,4\n"
CURRENCY = Question(text="Which currency have the amounts?", options=("EUR", "US Dollar"), allow_custom=False)
CREDENTIALS = {"token": {"type": "string", "secret": True}}
Customers = Callable[..., Path]
Runs = Callable[..., Result]


def script(*blocks: Block, **fails: str) -> Script:
    return Script(blocks={"generate": blocks}, fails=fails)


def asks(*questions: Question) -> Script:
    return script(Block(questions=questions))


@pytest.fixture
def run(cli: Cli, customers: Customers) -> Runs:
    """Run customers that have one file each: `run(world, "--decide", "approve", acme=GOOD)`."""

    def begin(world: World, *options: str, **files: bytes) -> Result:
        limits = "per-endpoint" if not world.limits.by_class else "agent=60/60s,create=60/60s,generate=60/60s"
        at = ("--base-url", world.base_url, "--speed", SPEED, "--api", "migrations", "--limits", limits)
        return cli("run", customers(**files), *at, *options)

    return begin


def statuses(cli: Cli) -> dict[str, dict[str, object]]:
    return {line["external_id"]: line for line in map(json.loads, cli("status", "--json").out.splitlines())}


def test_run_delivers_flagged_rows_with_a_warning_and_exits_0(
    account: Accounts, run: Runs, cli: Cli, tmp_path: Path
) -> None:
    result = run(account(), "--decide", "approve", acme=GOOD, bolt=FLAWED)
    assert result.code == 0, result.out + result.err
    assert "warning    1 file of 1 customer contains rows with a bad cell" in result.out
    report = json.loads((tmp_path / "out/report.json").read_bytes())
    flagged = {
        each["external_id"]: [file["flagged"] for file in each["files"]] for each in report["customers"]
    }
    assert flagged == {"acme": ["none"], "bolt": ["included"]}
    assert {each["api"] for each in report["customers"]} == {"migrations"}
    assert {each["replaced_existing_data"] for each in report["customers"]} == {False}
    assert sorted(path.name for path in (tmp_path / "out/bolt").iterdir()) == [
        *("contacts.csv", "log.json", "log.md", "preview.html", "preview.json"),
    ]
    assert "with flagged rows" in cli("show", "bolt").out


def test_review_shows_parked_customers_with_the_commands_that_decide_and_exits_5(
    account: Accounts, run: Runs, cli: Cli
) -> None:
    scripts = {"acme": asks(CURRENCY, Question(text="Why?")), "cafe": script(Block(credentials=CREDENTIALS))}
    result = run(account(scripts=scripts), acme=GOOD, bolt=FLAWED, cafe=GOOD)
    assert result.code == 5
    assert "acme, cafe wait for a person and each keep one of the account's run slots" in result.out
    assert "Or, to import each preview without a flagged cell:" in result.out
    known = statuses(cli)
    assert [known[name]["holds_run_slot"] for name in ("acme", "bolt", "cafe")] == [True, False, True]
    assert "acme, cafe wait for a person" in cli("status").out
    shown = cli("review")
    assert shown.code == 5
    for message in (
        "Which currency have the amounts?\n      1) EUR\n      2) US Dollar\n",
        "asyncmig review acme --answer q1=EUR --answer q2=TEXT\n",
        "asyncmig review acme --cancel\n",
        "Contacts: 4 rows in the sample, 2 flagged cells",
        "out/bolt/preview.html",
        "asyncmig review bolt --approve\n",
        "asyncmig review bolt --change MESSAGE\n",
        "fields: token",
        "asyncmig review cafe --credentials VARIABLE\n",
    ):
        assert message in shown.out
    lines = {line["external_id"]: line for line in map(json.loads, cli("review", "--json").out.splitlines())}
    assert [lines[name]["attention"]["kind"] for name in ("acme", "bolt", "cafe")] == [
        *("questions", "preview", "credentials"),
    ]


def test_review_options_decide_parked_customers_up_to_the_delivery(
    account: Accounts, run: Runs, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = {"acme": asks(CURRENCY, Question(text="Why?")), "cafe": script(Block(credentials=CREDENTIALS))}
    world = account(scripts=scripts)
    assert run(world, acme=GOOD, bolt=FLAWED, cafe=GOOD).code == 5
    assert cli("review", "acme", "--answer", "q1=2", "--answer", "q2=Because").code == 0
    assert world.answers("acme") == {CURRENCY.text: "US Dollar", "Why?": "Because"}
    assert cli("review", "bolt", "--change", "drop bad rows").code == 0
    monkeypatch.setenv("CAFE", "s3cret-token")
    sent = cli("review", "cafe", "--credentials", "CAFE")
    assert sent.code == 0, sent.err
    assert "s3cret" not in sent.out + sent.err
    result = run(world, acme=GOOD, bolt=FLAWED, cafe=GOOD)
    assert result.code == 5
    shown = cli("review", "acme", "bolt", "cafe", "--approve", "--wait")
    assert shown.code == 0, shown.out + shown.err
    assert [each["outcome"] for each in statuses(cli).values()] == ["delivered"] * 3
    assert str(world.verdict(1e6)) == "no faults"
    assert not [path for path in Path().rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]


def test_review_accepts_the_number_of_an_option_and_its_label_in_any_case(
    account: Accounts, run: Runs, cli: Cli
) -> None:
    world = account(scripts={name: asks(CURRENCY) for name in ("acme", "bolt", "cafe")})
    assert run(world, acme=GOOD, bolt=GOOD, cafe=GOOD).code == 5
    for name, given in (("acme", "1"), ("bolt", " us dollar"), ("cafe", "EUR")):
        assert cli("review", name, "--answer", f"q1={given}").code == 0
    given = [world.answers(name)[CURRENCY.text] for name in ("acme", "bolt", "cafe")]
    assert given == ["EUR", "US Dollar", "EUR"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("acme", "--approve"), "the run asks questions. Give one of --answer, --cancel, --reject"),
        (("acme", "--change", "x"), "the run asks questions"),
        (("acme", "--answer", "q1=GBP"), "is not one of"),
        (("acme", "--answer", "q9=EUR"), "--answer 'q9' is not a question of this run"),
        (("bolt", "--answer", "q1=EUR"), "waits for the approval of its preview"),
        (("bolt", "--approve", "--cancel"), "cannot be combined with"),
        (("cafe", "--credentials", "NOT_SET"), "this environment variable is not set"),
        (("cafe", "--credentials", "sk-s3cret!"), "must be the name of an environment variable"),
    ],
)
def test_review_exits_2_and_does_not_send_a_decision_of_the_wrong_kind(
    account: Accounts, run: Runs, cli: Cli, arguments: tuple[str, ...], message: str
) -> None:
    scripts = {"acme": asks(CURRENCY), "cafe": script(Block(credentials=CREDENTIALS))}
    world = account(scripts=scripts)
    run(world, acme=GOOD, bolt=GOOD, cafe=GOOD)
    before = [entry.endpoint for entry in world.ledger.entries if entry.method != "GET"]
    result = cli("review", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "s3cret" not in result.err
    assert [entry.endpoint for entry in world.ledger.entries if entry.method != "GET"] == before


def test_answer_rules_answer_questions_and_a_question_without_a_rule_parks(
    account: Accounts, run: Runs, tmp_path: Path
) -> None:
    (tmp_path / "answers.toml").write_text('[[answer]]\nquestion = "currency"\nchoose = "us DOLLAR"\n')
    world = account(scripts={"acme": asks(CURRENCY), "bolt": asks(CURRENCY, Question(text="Which country?"))})
    result = run(world, "--answers", "answers.toml", "--decide", "approve", acme=GOOD, bolt=GOOD)
    assert result.code == 5
    assert world.answers("acme") == {CURRENCY.text: "US Dollar"}
    assert world.answers("bolt") == {}
    assert "no rule matches this question" in result.out
    assert "Which country?" in result.out


def test_review_in_a_terminal_sends_answers_changes_and_credentials(
    account: Accounts, run: Runs, tmp_path: Path, cli: Cli
) -> None:
    scripts = {"acme": asks(CURRENCY, Question(text="Why?")), "cafe": script(Block(credentials=CREDENTIALS))}
    world = account(scripts=scripts)
    assert run(world, acme=GOOD, bolt=FLAWED, cafe=GOOD).code == 5
    with Terminal(["review"], tmp_path, VERN_API_KEY=KEY) as terminal:
        terminal.wait_for("[1 of 3] acme")
        terminal.wait_for("[a]nswer, [x] cancel, [s]kip, [q]uit: ")
        terminal.type("a\n")
        terminal.wait_for("q1 (1 to 2, Enter goes back): ")
        terminal.type("3\n")
        terminal.wait_for("There is no '3'.")
        terminal.type("2\n")
        terminal.wait_for("q2 (your own text, Enter goes back): ")
        terminal.type("Because\n")
        terminal.wait_for("acme: answered.")
        terminal.wait_for("[a]pprove, [c]hange this, [x] cancel, [s]kip, [q]uit: ")
        terminal.type("c\n")
        terminal.wait_for("What to change")
        terminal.type("drop bad rows\n")
        terminal.wait_for("bolt: the change is requested.")
        terminal.wait_for("[e]nter them, [v]ariable, [x] cancel, [s]kip, [q]uit: ")
        terminal.type("e\n")
        terminal.wait_for("token (not shown): ")
        terminal.type("s3cret-token\n")
        terminal.wait_for("cafe: the credentials are sent.")
        assert terminal.end() == 0
    assert "s3cret" not in terminal.raw
    assert world.answers("acme") == {CURRENCY.text: "US Dollar", "Why?": "Because"}
    assert "The next run of the command continues the decided customers." in terminal.text


def test_review_cancel_makes_the_customer_failed_and_retry_starts_a_new_run(
    account: Accounts, run: Runs, cli: Cli
) -> None:
    world = account(scripts={"acme": asks(CURRENCY)})
    assert run(world, acme=GOOD).code == 5
    canceled = cli("review", "acme", "--cancel")
    assert canceled.code == 0
    assert "records the customers of canceled and rejected runs as failed" in canceled.err
    assert "The server continues" not in canceled.err
    assert [run.status for run in world.migration("acme").runs] == ["canceled"]
    assert run(world, acme=GOOD).code == 3
    assert cli("retry").code == 5  # the agent asks again
    assert len(world.migration("acme").runs) == 2


def test_watch_follows_a_run_of_either_generation(account: Accounts, run: Runs, cli: Cli) -> None:
    world = account(pace=RunDurations(queued=0.5, base=120.0, per_row=0.0, sigma=0.0))
    assert run(world, "--max-duration", "60s", acme=GOOD).code == 75
    result = cli("watch")
    assert re.search(r"awaiting_approval +acme", result.out), result.out + result.err


@needs_browser
def test_report_links_to_previews_with_the_flags_that_the_server_sent(
    account: Accounts, run: Runs, cli: Cli, tmp_path: Path
) -> None:
    world = account()
    assert run(world, "--report", "run.html", acme=GOOD, bolt=FLAWED).code == 5
    assert cli("report", "--report", "journal.html").code == 0
    for name in ("run.html", "journal.html"):
        assert b'href="out/bolt/preview.html"' in dom_of(tmp_path / name, tmp_path)
    sent = json.loads((tmp_path / "out/bolt/preview.json").read_bytes())["invalid_cells"]
    assert dom_of(tmp_path / "out/bolt/preview.html", tmp_path).count(b'class="flag"') == sent == 2


def test_retry_takes_the_generation_from_the_journal(account: Accounts, run: Runs, cli: Cli) -> None:
    world = account(scripts={"acme": script(generate="The file is password-protected")})
    result = run(world, "--decide", "approve", acme=GOOD)
    assert (result.code, "The file is password-protected" in result.out) == (3, True)
    assert cli("retry").code == 0


def test_a_journal_can_contain_customers_of_both_generations(
    account: Accounts, run: Runs, cli: Cli, customers: Customers, simulator: Simulator
) -> None:
    world = account(scripts={"acme": asks(CURRENCY)})
    assert run(world, acme=GOOD).code == 5
    flawed = b"Email,Name\na@x.de,A\na@x.de,B\nno,C\n"
    at = ("--base-url", simulator.base_url, "--speed", SPEED)
    assert cli("run", customers(bolt=flawed), *at).code == 5
    assert {name: each["api"] for name, each in statuses(cli).items()} == {
        "acme": "migrations",
        "bolt": "companies",
    }
    shown = cli("review").out
    assert "asyncmig review acme --answer q1=EUR" in shown
    assert "asyncmig review bolt --approve --allow-destructive" in shown
    assert cli("review", "acme", "--answer", "q1=1", "--base-url", world.base_url).code == 0
    refused = cli("run", customers(acme=GOOD), *at)
    assert "migrations" in refused.out + refused.err


def test_adopt_records_the_id_of_a_migration(account: Accounts, run: Runs, cli: Cli) -> None:
    world = account()
    assert run(world, acme=GOOD).code == 5
    (migration,) = world.migrations
    assert cli("journal", "forget", "acme", "--force").code == 0
    linked = cli("adopt", "acme", migration, "--api", "migrations", "--json")
    assert json.loads(linked.out)["ids"] == {"migration": migration}
    assert run(world, "--decide", "approve", acme=GOOD).code == 0
    assert str(world.verdict(1e6)) == "no faults"


def test_doctor_and_plan_use_the_limits_of_the_generation(
    account: Accounts, run: Runs, cli: Cli, customers: Customers
) -> None:
    world = account(plan=False)
    at = ("--api", "migrations", "--base-url", world.base_url, "--speed", SPEED)
    before = cli("doctor", *at)
    assert "answers like the API generation migrations" in before.out
    assert "?    plan              was not checked" in before.out
    for line in ("budget reads      30/60s", "budget generate   1/1h", "run slots         3"):
        assert f"ok   {line}\n" in before.out
    assert run(world, acme=GOOD).code == 4
    after = cli("doctor", *at)
    assert after.code == 4
    assert "the server answered 403 to the start of runs of 1 customer" in after.out
    planned = cli(
        "run", customers(acme=GOOD, bolt=GOOD), "--api", "migrations", "--plan", "--journal", "new.db"
    )
    assert re.search(r"2 +POST /migrations +create 1/1h, writes 10/60s", planned.out)
    assert "At the documented limits, the last request can be sent after 1 h 00 min" in planned.out


def test_budgets_and_run_slots_are_shown_by_name_after_a_run(
    account: Accounts, cli: Cli, customers: Customers, tmp_path: Path
) -> None:
    world = account()
    at = ("--base-url", world.base_url, "--speed", SPEED, "--api", "migrations")
    limits = ("--limits", "agent=60/1h,create=60/1h,generate=60/1h")
    result = cli("run", customers(acme=GOOD), *at, *limits, "--decide", "approve", "--report", "run.html")
    assert result.code == 0, result.err
    budget = json.loads((tmp_path / "out/report.json").read_bytes())["budget"]
    assert budget["limits"]["create"] == {
        "limit": 60,
        "window": 3600.0,
        "believed": 60,
        "burst": 60,
        "used": 1,
        "requests": 1,
        "refused": 0,
    }
    table = re.sub("<[^>]+>", " ", (tmp_path / "run.html").read_text(encoding="utf-8"))
    assert re.search(r"create +60/1h +1 +1 +0 ", table)
    assert "The dashed line is the limit" not in table
    assert re.search(r"run slots +3 +0 +0 ", table)
    shown = cli("status").out
    assert re.search(r"^ *60/1h +1 +1 +0 +create$", shown, re.MULTILINE)
    assert re.search(r"^ +3 +0 +0 +run slots$", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 80
    budgets = {
        each["budget"]: each
        for each in map(json.loads, cli("status", "--budgets", "--json").out.splitlines())
    }
    assert budgets["create"] == {
        "schema": 2,
        "budget": "create",
        "limit": 60,
        "window": 3600.0,
        "used": 1,
        "requests": 1,
        "refused": 0,
        "is_assumed": False,
    }
    assert (budgets["runs"]["limit"], budgets["runs"]["used"], budgets["runs"]["window"]) == (3, 0, None)
    checked = cli("doctor", *at, *limits).out
    assert "budget create     60/1h; the last run sent 1 request, 0 answered 429\n" in checked
    assert "run slots         3; at the end of the last run, 0 of 3 were taken\n" in checked
    (tmp_path / "out/report.json").unlink()
    assert re.search(r"^ *60/1h +1 +create$", cli("status").out, re.MULTILINE)  # from the send log
    settings = tmp_path / "fleet.db.last"
    settings.write_text(settings.read_text().replace('"migrations"', '"another"'), encoding="utf-8")
    unknown = cli("status")
    assert unknown.code == 0
    assert "the use of budgets is not shown" in unknown.err
    assert "1 delivered" in unknown.out


def test_run_exits_4_after_a_403_and_starts_no_more_runs(account: Accounts, run: Runs) -> None:
    world = account(plan=False)
    result = run(world, acme=GOOD, bolt=GOOD)
    assert result.code == 4
    assert "The account may not start runs: the server answered 403" in result.out
    assert not world.migrations


def test_run_exits_75_when_runs_that_wait_for_a_person_hold_every_run_slot(
    account: Accounts, run: Runs, cli: Cli
) -> None:
    names = ("acme", "bolt", "cafe", "dora")
    world = account(
        "agent=60/60s,create=60/60s,generate=60/60s", scripts={name: asks(CURRENCY) for name in names}
    )
    result = run(world, **dict.fromkeys(names, GOOD))
    assert result.code == 75, result.out + result.err
    known = statuses(cli)
    waiting = sorted(name for name, each in known.items() if each["holds_run_slot"])
    assert len(waiting) == 3
    assert [each["pending_reason"] for each in known.values() if each["outcome"] == "pending"] == [
        "no_run_slot"
    ]
    table = result.out.partition("imported")[0]
    assert (
        "every run slot of the account is held by a run that waits for a person: answer or cancel one ("
        in table
    )
    assert not [each for each in world.migrations if each in table]
    for name in waiting:
        assert name in result.out
        assert name in cli("status").out


def test_cancel_blocked_after_cancels_a_blocked_run(account: Accounts, run: Runs, cli: Cli) -> None:
    world = account(scripts={"acme": asks(CURRENCY)})
    result = run(world, "--cancel-blocked-after", "30s", acme=GOOD)
    assert result.code == 5, result.out + result.err
    assert [each.status for each in world.migration("acme").runs] == ["canceled"]
    assert not statuses(cli)["acme"]["holds_run_slot"]
    assert "to release the run slot" in " ".join(statuses(cli)["acme"]["notes"])
