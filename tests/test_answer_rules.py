"""Rules that answer the questions of a run: what a file of rules may contain, and how questions are answered."""

import pytest

from asyncmig.customers.answer_rules import (
    AnswerRule,
    answers_by_rules,
    parse_answer_rules,
    read_answer_rules,
)
from asyncmig.customers.options import MigrationOptions
from asyncmig.customers.questions import Custom, Option, Question
from asyncmig.errors import InvalidInput
from asyncmig.generations import check_options, find

FILE = """\ufeff
[[answer]]
question = "date format"
choose = "day FIRST "
[[answer]]
question = "currency"
source = "HubSpot"
text = "EUR"
[[answer]]
question = "(?i)currency"
choose = "USD"
"""


def question_of(prompt, *labels, name="q1", custom=False):
    options = tuple(Option(id=f"o{number}", label=label) for number, label in enumerate(labels))
    return Question(id=name, prompt=prompt, options=options, allow_custom=custom)


@pytest.mark.parametrize(
    ("question", "source", "answer"),
    [
        (question_of("Which date format has Created?", "Month first", "Day first"), None, "Day first"),
        (question_of("Which date format has Created?", "  DAY FIRST"), None, "  DAY FIRST"),
        (question_of("Which date format has Created?"), None, Custom("day FIRST ")),
        (question_of("Which currency?", "usd", "Other", custom=True), "hubspot ", Custom("EUR")),
        (question_of("Which currency?", "eur", "usd"), "HubSpot", "eur"),
        (question_of("Which currency?", "usd", "eur"), "Pipedrive", "usd"),
        (question_of("Which currency?", "usd", "eur"), None, "usd"),
        (question_of("CURRENCY", "USD", "usd"), "", "USD"),
    ],
)
def test_the_first_rule_that_matches_gives_the_answer(question, source, answer):
    rules = parse_answer_rules(FILE)
    assert answers_by_rules(rules, [question], source=source) == {"q1": answer}


@pytest.mark.parametrize(
    ("questions", "reason"),
    [
        ([question_of("Which country?", "DE")], "no rule matches"),
        (
            [question_of("date format?", "Day first"), question_of("Which country?", "DE", name="q2")],
            "no rule matches",
        ),
        (
            [question_of("date format?", "Year first", custom=True)],
            "is not among its options, .'Year first'",
        ),
        ([question_of("CURRENCY?", "Usd", "usd")], "several of its options"),
        ([question_of("currency?", "GBP")], "takes only its options"),
        (
            [question_of("date format?", "Day first"), question_of("date format?", "Day first")],
            "several questions",
        ),
        ([question_of(None)], "no rule matches"),
        ([], "no question"),
    ],
)
def test_questions_are_refused_unless_the_rules_answer_all_of_them(questions, reason):
    with pytest.raises(InvalidInput, match=reason):
        answers_by_rules(parse_answer_rules(FILE), questions, source="HubSpot")


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ('[[answer]]\nquestion = "("\nchoose = "a"', ["entry 1: question='('", "not a regular expression"]),
        ('[[answer]]\nquestion = "a"', ["entry 1: choose=None", "is missing"]),
        ('[[answer]]\nquestion = "a"\nchoose = "b"\ntext = "c"', ["entry 1: text='c'", "choose='b'"]),
        ('[[answer]]\nchoose = "b"', ["entry 1: question=None: is missing"]),
        ('[[answer]]\nquestion = "a"\nchoose = 3', ["entry 1: choose=3: must be a string"]),
        ('[[answer]]\nquestion = "a"\nchoose = " "', ["entry 1: choose=' ': is empty"]),
        ('[[answer]]\nquestion = ""\nchoose = "b"', ["entry 1: question='': is empty"]),
        ('[[answer]]\nquestion = "a"\nchose = "b"', ["entry 1: chose='b': is unknown"]),
        (
            '[[answer]]\nquestion="a"\ntext="b"\n[[answer]]\nquestion="a"\n[[answer]]\nx=1',
            ["entry 2", "entry 3"],
        ),
        ('answer = "yes"', ["answer: must be tables"]),
        ("answer = [1]", ["entry 1: answers=1"]),
        ('[[answers]]\nquestion = "a"\nchoose = "b"', ["answers: is unknown"]),
        ("", ["has no rule"]),
        ("[[answer]]\nquestion = a", ["is not TOML", "line 2"]),
    ],
)
def test_faults_name_the_file_the_entry_the_field_and_the_value(tmp_path, text, faults):
    place = tmp_path / "answers.toml"
    place.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput) as caught:
        read_answer_rules(place)
    message = str(caught.value)
    assert str(place) in message
    for fault in faults:
        assert fault in message


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b'[[answer]]\nquestion = "\xe9"\n')
    for name, reason in [
        ("none.toml", "No such file"),
        (".", "is not a file"),
        ("latin.toml", "line 2 is not UTF-8"),
    ]:
        with pytest.raises(InvalidInput, match=reason):
            read_answer_rules(tmp_path / name)


def test_rules_are_an_option_that_the_generation_companies_refuses():
    rule = {"question": "date", "choose": "Day first"}
    options = MigrationOptions(answers=[rule])
    assert options.answers == (AnswerRule(question="date", choose="Day first"),)
    with pytest.raises(InvalidInput, match=r"answers=.*'companies'"):
        check_options(find("companies"), options)
    with pytest.raises(InvalidInput, match=r"cancel_blocked_after=1800\.0.*'companies'"):
        check_options(find("companies"), MigrationOptions(cancel_blocked_after=1800.0))
    for wrong in (0, -1.0, float("inf"), "30m"):
        with pytest.raises(InvalidInput, match="cancel_blocked_after"):
            MigrationOptions(cancel_blocked_after=wrong)
    for wrong in (["date"], "date", [{"question": "date"}]):
        with pytest.raises(InvalidInput):
            MigrationOptions(answers=wrong)
