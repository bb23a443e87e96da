"""The ledger: intervals by scipy, verdicts by rule and control, amendments and a lock, records that know when they are
out of date."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from rfpp import claims, presets
from rfpp.base import paths
from rfpp.book import results
from rfpp.book.results import page as results_page
from rfpp.claims import (
    Rule,
    check,
    check_lock,
    holm,
    interval,
    judge,
    ledger,
    lock,
    locked,
    p_value,
    seeds_needed,
    verdict,
    visible_effect,
)
from rfpp.claims.entries import LOCK
from rfpp.claims.records import commit
from rfpp.pipeline import digests
from rfpp.pipeline.plan import Plan
from rfpp.pipeline.store import provenance

LEDGER = """
- id: c01
  where: Table 1, A and F
  statement: Training lowers the distance by *up to* 75 % | in one step.
  paper: "12.21 -> 3.38"
  notebook: training
  quantity: share that F removes
  control: A against itself
  rests_on: [F]
  rule: {above: 0.5}
- id: c02
  where: Section 5
  statement: The error is small.
  paper: not given
  notebook: samplers
  quantity: error
  code: [rfpp.samplers:slerp]
  is_random: false
  rule: {below: 2}
- id: c03
  where: Section 6
  statement: The cost is about equal.
  paper: "1.0"
  notebook: samplers
  quantity: ratio
  code: [rfpp.samplers:slerp]
  only_at: [smoke, cifar10]
  rule: {between: [0.8, 1.25]}
"""

NOTHING = [0.1, -0.2, 0.0]
"""A control that fails, as it must."""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a ledger of its own; calling it changes the ledger."""
    (tmp_path / "book").mkdir()
    monkeypatch.setattr(paths, "repository", lambda: tmp_path)

    def write(old="", new=""):
        assert old in LEDGER
        (tmp_path / paths.LEDGER).write_text(LEDGER.replace(old, new, 1) if old else LEDGER)

    write()
    lock()
    return write


@pytest.fixture
def experiment(tmp_path):
    """What a record asks of an experiment."""
    return stand_in("smoke", tmp_path / "runs" / "smoke")


def stand_in(name, folder):
    """An experiment of which everything but the held-out pairs is finished."""
    circumstances = {"rfpp": "0.1.0", "torch": "2.13.0", "python": "3.11.2", "device": "another's GPU"}
    manifest = {"seconds": 12.5, "files": {"a": {"sha256": "00", "bytes": 1}}, **circumstances}

    def find(step):
        return None if getattr(step, "label", "") == ", held out" else SimpleNamespace(manifest=manifest)

    plan = Plan(presets.load("smoke"))
    return SimpleNamespace(
        preset=SimpleNamespace(name=name, origin=name), folder=folder, plan=plan, run=SimpleNamespace(find=find)
    )


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.61, 0.58, 0.66], [3.0] * 4, [-1e-3, 1e3, 7.0, 2.5, 0.0]])
def test_the_interval_is_students(values):
    """scipy's t interval around the mean."""
    truth = (
        stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        if len(set(values)) > 1
        else (3, 3)
    )
    assert interval(values) == pytest.approx(truth, rel=1e-9)


def test_the_interval_of_one_run_or_of_equal_runs_is_their_value():
    assert interval([0.7]) == (0.7, 0.7) and interval([3.0] * 4) == (3.0, 3.0)


def test_the_interval_covers_the_mean_nineteen_times_out_of_twenty():
    """4,000 experiments of three seeds: coverage 0.95 +- 0.0034, five deviations allowed."""
    draws = np.random.default_rng(0).normal(5, 2, (4000, 3))
    covered = [low < 5 < high for low, high in (interval(list(row)) for row in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.0175)


@pytest.mark.parametrize(
    ("rule", "span", "verdict"),
    [
        ({"above": 1}, (1.1, 1.5), "reproduced"),
        ({"above": 1}, (0.9, 1.5), "inconclusive"),
        ({"above": 1}, (0.2, 0.9), "not reproduced"),
        ({"above": 1}, (1.0, 1.0), "not reproduced"),
        ({"above": 1}, (1.0, 1.5), "inconclusive"),
        ({"above": 1}, (0.5, 1.0), "not reproduced"),
        ({"above": 0}, (0.0, 0.0), "not reproduced"),
        ({"below": 1}, (0.1, 0.9), "reproduced"),
        ({"below": 1}, (0.9, 1.1), "inconclusive"),
        ({"below": 1}, (1.0, 1.1), "not reproduced"),
        ({"below": 1}, (-5.0, -4.0), "reproduced"),
        ({"between": (1, 2)}, (1.2, 1.8), "reproduced"),
        ({"between": (1, 2)}, (0.8, 1.8), "inconclusive"),
        ({"between": (1, 2)}, (1.8, 2.1), "inconclusive"),
        ({"between": (1, 2)}, (0.0, 3.0), "inconclusive"),
        ({"between": (1, 2)}, (2.0, 3.0), "not reproduced"),
        ({"between": (1, 2)}, (0.0, 1.0), "not reproduced"),
    ],
)
def test_verdicts(rule, span, verdict):
    """All of the interval, some of it, none of it; the bound itself does not count."""
    assert judge(Rule(**rule), span) == verdict


@pytest.mark.parametrize(
    "rule", [{}, {"above": 1, "below": 2}, {"over": 1}, {"above": "much"}, {"between": (1,)}, {"between": (2, 1)}]
)
def test_a_rule_has_one_meaning(rule):
    with pytest.raises(ValueError):
        Rule(**rule)


# Checking


@pytest.mark.parametrize(
    ("id", "measured", "control", "parts"),
    [
        ("c01", [0.61, 0.6, 0.62], NOTHING, ["c01 reproduced", "share that F removes", "above 0.5", "3 seeds"]),
        ("c01", [0.61, 0.6, 0.62], [0.7, 0.71, 0.7], ["c01 vacuous", "above 0.5"]),
        ("c01", [0.61, 0.6, 0.62], [0.7, 0.4, 0.7], ["c01 reproduced"]),
        ("c01", [0.1, 0.11, 0.12], NOTHING, ["c01 not reproduced", "share that F removes", "above 0.5", "3 seeds"]),
        ("c01", [0.1, 0.11, 0.12], [0.7, 0.71, 0.7], ["c01 not reproduced"]),
        ("c01", [0.1, 0.5, 0.9], NOTHING, ["c01 inconclusive", "above 0.5", "3 seeds"]),
        ("c01", [0.61], [0.0], ["c01 inconclusive", "one run"]),
        ("c01", [0.1], [0.0], ["c01 inconclusive", "one run"]),
        ("c02", 1.5, None, ["c02 reproduced", "error", "below 2", "one run"]),
        ("c02", [3], None, ["c02 not reproduced", "below 2", "one run"]),
        ("c03", (1.0, 1.01), None, ["c03 reproduced", "ratio", "between 0.8 and 1.25", "2 seeds"]),
    ],
)
def test_check_prints_one_line_that_does_not_depend_on_digits(checkout, capsys, id, measured, control, parts):
    """Claim, verdict, quantity, rule and number of runs; the same for values that differ in their last digits."""
    check(id, measured, control=control)
    first = capsys.readouterr().out
    assert first.count("\n") == 1 and first.startswith(parts[0]) and all(part in first for part in parts)
    again = [value * (1 + 1e-9) for value in measured] if not isinstance(measured, float) else measured + 1e-9
    check(id, again, control=control)
    assert capsys.readouterr().out == first


def test_check_writes_a_record(checkout, experiment, capsys):
    """Everything that was measured, and under which circumstances."""
    check("c01", [0.61, 0.6, 0.62], [4, 5, 6], control=NOTHING, experiment=experiment)
    record = json.loads((experiment.folder / "claims" / "c01.json").read_text())
    assert record["measured"] == [0.61, 0.6, 0.62] and record["seeds"] == [4, 5, 6]
    assert record["value"] == pytest.approx(0.61) and record["verdict"] == "reproduced" and record["preset"] == "smoke"
    assert record["interval"] == pytest.approx(list(interval([0.61, 0.6, 0.62])))
    assert record["control"] == NOTHING and record["former"] == {}
    wanted = [experiment.plan.pairs(), *(experiment.plan.flow("F", seed) for seed in (4, 5, 6))]
    assert set(record["artifacts"]) == {f"{step.name}/{step.key}" for step in wanted} and record["seconds"] == 50.0
    of_steps = {"rfpp": "0.1.0", "torch": "2.13.0", "python": "3.11.2", "device": "another's GPU"}
    assert record["provenance"] == of_steps and record["commit"]  # not this process's
    assert claims.records(experiment.folder / "claims")["c01"].interval == tuple(record["interval"])
    assert sorted(path.name for path in (experiment.folder / "claims").iterdir()) == ["c01.json"]


def test_a_second_check_replaces_the_record(checkout, experiment):
    check("c02", 1.0, experiment=experiment)
    check("c02", 3.0, experiment=experiment)
    record = claims.records(experiment.folder / "claims")["c02"]
    assert record.verdict == "not reproduced" and record.measured == [3.0]


def test_without_an_experiment_nothing_is_written(checkout, runs):
    check("c02", 1.0)
    assert not runs.exists()


REFUSED = [
    ("c99", 1.0, None, {}, "id='c99' is unknown; allowed: 'c01', 'c02', 'c03'"),
    ("C01", 1.0, None, {}, "did you mean 'c01'"),
    ("c01", [1.0, 2.0], [0], {"control": [0.0]}, r"c01: measured=\[1.0, 2.0\], seeds=\[0\]: one finite value for each"),
    ("c01", [1.0], [0, 1], {"control": [0.0, 0.0]}, r"seeds=\[0, 1\]"),
    ("c01", [], None, {"control": []}, r"measured=\[\]"),
    ("c02", math.nan, None, {}, r"measured=\[nan\]"),
    ("c02", [1.0, math.inf], None, {}, r"measured=\[1.0, inf\]"),
    ("c02", [1.0, math.nan, 2.0], [0, 1, 2], {}, "nan"),
    ("c01", [1.0, 2.0], None, {}, r"c01: control=None: the ledger names its control \(A against itself\)"),
    ("c01", [1.0, 2.0], None, {"control": [0.1]}, r"c01: control=\[0.1\] has 1 values for 2 measured ones"),
    ("c01", [1.0, 2.0], [3, 4], {"control": [0.1, 0.2, 0.3]}, r"c01: control=\[0.1, 0.2, 0.3\], seeds=\[3, 4\]"),
    ("c01", [1.0, 2.0], None, {"control": [0.1, math.nan]}, "c01: control=.*nan"),
    ("c02", 1.0, None, {"control": 2.0}, "c02: control=2.0: the ledger names no control"),
    ("c02", 1.0, [0], {"former": {0: 2.0}}, "c02: former=0 is not the number of one of its 0 amendments"),
]


@pytest.mark.parametrize(("id", "measured", "seeds", "given", "complaint"), REFUSED)
def test_a_measurement_that_does_not_fit_is_refused_and_not_recorded(
    checkout, experiment, capsys, id, measured, seeds, given, complaint
):
    with pytest.raises(ValueError, match=complaint):
        check(id, measured, seeds, **given, experiment=experiment)
    assert not experiment.folder.exists()


def test_a_claim_is_judged_only_where_it_is_about_something(checkout, tmp_path):
    with pytest.raises(ValueError, match="c03: it is about the data of smoke, cifar10 only; use claims.skip"):
        check("c03", [1.0, 1.1], experiment=stand_in("laptop", tmp_path / "runs" / "laptop"))
    assert claims.out_of_scope("c03", stand_in("smoke", tmp_path)) is None


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("id: c02", "id: c01", "lists c01 more than once"),
        ("id: c02", "id: c02\n  repeats: c02", "c02: repeats='c02' is not a claim that is counted"),
        ("id: c02", "id: claim2", "id"),
        ("  paper: not given\n", "", "paper"),
        ("  paper: not given", "  paper: not given\n  proof: yes", "proof"),
        ("rule: {below: 2}", "rule: {below: 2, above: 1}", "exactly one"),
        (
            "rule: {below: 2}",
            "rule: {below: 2}\n  amendments: [{date: 2026-01-01, seen: no, reason: x, before: {}}]",
            "before",
        ),
        (
            "rule: {below: 2}",
            "rule: {below: 2}\n  amendments: [{date: 2026-01-01, seen: no, reason: x, before: {where: y}}]",
            "allowed: .*rule",
        ),
        (
            "rule: {below: 2}",
            "rule: {below: 2}\n  amendments: [{date: 2026-01-01, seen: no, reason: x, before: {rule: {over: 3}}}]",
            "over",
        ),
        (
            "rule: {below: 2}",
            "rule: {below: 2}\n  amendments: [{date: 2026-01-02, seen: no, reason: x, before: {rule: {below: 3}}}, "
            "{date: 2026-01-01, seen: no, reason: x, before: {rule: {below: 4}}}]",
            "amendments of c02 are out of order",
        ),
    ],
)
def test_a_ledger_that_is_none_is_refused(checkout, old, new, complaint):
    checkout(old, new)
    with pytest.raises(ValueError, match=complaint):
        ledger()


def test_the_ledger_of_the_book_is_one():
    """The file that ships with the checkout."""
    assert all(claim.id == id and claim.notebook for id, claim in ledger().items())


# Amendments and the lock

AMENDED = """rule: {below: 2}
  amendments:
    - {date: 2026-01-01, before: {rule: {below: 3}, quantity: error at once}, seen: true, reason: it was too weak}
    - {date: 2026-01-02, before: {paper: none}, seen: false, reason: it was printed}
"""


def test_an_entry_knows_all_its_versions(checkout):
    checkout("rule: {below: 2}\n", AMENDED)
    first, second, last = ledger()["c02"].versions()
    assert (first.quantity, str(first.rule), first.paper) == ("error at once", "below 3", "none")
    assert (second.quantity, str(second.rule), second.paper) == ("error", "below 2", "none")
    assert (last.quantity, str(last.rule), last.paper) == ("error", "below 2", "not given")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rule: {below: 2}", "rule: {below: 2.5}"),
        ("quantity: error", "quantity: another error"),
        ("The error is small.", "The error is nil."),
        ("paper: not given", "paper: given"),
        ("  control: A against itself\n", ""),
        ("only_at: [smoke, cifar10]", "only_at: [cifar10]"),
    ],
)
def test_what_decides_a_verdict_is_not_changed_silently(checkout, old, new):
    check_lock(ledger())
    checkout(old, new)
    for attempt in (lambda: check_lock(ledger()), lock):
        with pytest.raises(ValueError, match="^c0[123] was changed without an amendment"):
            attempt()
    checkout()
    check_lock(ledger())


@pytest.mark.parametrize(("old", "new"), [("Section 5", "Section 6"), ("notebook: training", "notebook: ablation")])
def test_where_a_claim_stands_may_be_corrected(checkout, old, new):
    checkout(old, new)
    check_lock(ledger())


def test_an_amendment_is_taken_into_the_lock_and_stays(checkout):
    """Two amendments that lead from the locked terms to others; a third version of history is refused."""
    there = locked()["c02"]
    checkout(
        "rule: {below: 2}\n",
        AMENDED.replace("below: 3", "below: 2")
        .replace("{below: 2}\n", "{below: 1}\n", 1)
        .replace("quantity: error at once", "quantity: error")
        .replace("paper: none", "paper: not given"),
    )
    with pytest.raises(ValueError, match="c02 has 3 versions, but book/claims.lock 1; run: python -m rfpp lock"):
        check_lock(ledger())
    assert lock() == ["c02"] and lock() == []
    check_lock(ledger())
    assert locked()["c02"][:1] == there and len(locked()["c02"]) == 3
    checkout()
    with pytest.raises(ValueError, match="c02 was changed without an amendment, or an amendment of it was"):
        check_lock(ledger())


def test_a_change_is_named_before_new_amendments(checkout):
    """c01 has an amendment that is to be locked; c02 was changed without one, and locking would not mend that."""
    checkout("rule: {above: 0.5}", CHANGED_RULE.format("2026-01-01", "no", "x"))
    file = paths.repository() / paths.LEDGER
    file.write_text(file.read_text().replace("rule: {below: 2}", "rule: {below: 3}"))
    for attempt in (lambda: check_lock(ledger()), lock):
        with pytest.raises(ValueError, match="^c02 was changed without an amendment"):
            attempt()


def test_a_claim_does_not_disappear(checkout):
    start = LEDGER.index("- id: c03")
    checkout(LEDGER[start:], "")
    for attempt in (lambda: check_lock(ledger()), lock):
        with pytest.raises(ValueError, match="c03 is missing from book/claims.yml"):
            attempt()


def test_the_books_ledger_and_lock_agree():
    """The files that ship with the checkout: whoever changes an entry adds an amendment, and locks it."""
    check_lock(ledger())
    assert locked().keys() == ledger().keys() and (paths.repository() / LOCK).is_file()


def test_every_claim_of_the_book_has_a_control():
    assert all(claim.control for claim in ledger().values())


# Statistics


@pytest.mark.parametrize("rule", [{"above": 1.0}, {"below": 1.0}, {"between": (-10, 1.0)}])
def test_p_is_scipys_two_sided_test_against_the_nearest_bound(rule):
    values = [0.3, 0.9, 0.45, 0.2]
    assert p_value(Rule(**rule), values) == pytest.approx(stats.ttest_1samp(values, 1.0).pvalue, rel=1e-9)


def test_p_is_where_the_interval_begins_to_decide():
    """A property: an interval of confidence ``1 - p`` touches the bound."""
    values, rule = [1.3, 1.9, 1.1], Rule(above=1)
    p = p_value(rule, values)
    low, _ = stats.t.interval(1 - p, 2, loc=np.mean(values), scale=stats.sem(values))
    assert low == pytest.approx(1)


def test_p_without_spread():
    assert p_value(Rule(above=0), [0.2, 0.2]) == 0 and p_value(Rule(above=0), [0.0, 0.0]) == 1
    assert p_value(Rule(above=0), [3.0]) == 1


def test_holm_is_its_table():
    """Worked by hand: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5; none below the one before it."""
    found = holm({"a": 0.03, "b": 0.01, "c": 0.5, "d": 0.02})
    assert found == pytest.approx({"a": 0.06, "b": 0.04, "c": 0.5, "d": 0.06})
    assert holm({}) == {} and holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_holm_keeps_its_promise():
    """2,000 books of ten claims that sit on their bounds: one or more is decided in 5 % at most (+ 4 deviations, 2 %),
    where without the correction it would be in 40 %."""
    draws = np.random.default_rng(1).normal(0, 1, (2000, 10, 3))
    p = 2 * stats.t.sf(np.abs(draws.mean(axis=2)) / (draws.std(axis=2, ddof=1) / np.sqrt(3)), 2)
    wrong = [min(holm({str(i): value for i, value in enumerate(row)}).values()) < 0.05 for row in p]
    assert np.mean(wrong) < 0.07 < 0.3 < np.mean((p < 0.05).any(axis=1))


def test_the_visible_effect_is_seen_four_times_in_five():
    """20,000 experiments of three seeds at that distance: 0.8 +- 0.003, five deviations allowed. The spread is known
    to the formula here, so the normal draws have it."""
    effect = visible_effect([-1.0, 0.0, 1.0])
    draws = np.random.default_rng(2).normal(effect, 1, (20_000, 3))
    seen = [judge(Rule(above=0), interval(list(row))) == "reproduced" for row in draws]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.015)


def test_as_many_seeds_as_are_needed_decide_four_times_in_five():
    values, rule = [0.2, 1.4, 0.5, 1.1], Rule(above=0.5)
    n = seeds_needed(rule, values)
    draws = np.random.default_rng(3).normal(np.mean(values), np.std(values, ddof=1), (5000, n))
    assert np.mean([judge(rule, interval(list(row))) == "reproduced" for row in draws]) == pytest.approx(
        0.81, abs=0.035
    )
    assert seeds_needed(rule, [0.5, 0.5001, 0.4999]) is None


def test_one_run_of_a_random_quantity_is_no_verdict():
    assert verdict(Rule(above=0), [5.0], [0.0], is_random=True) == "inconclusive"
    assert verdict(Rule(above=0), [5.0], None, is_random=False) == "reproduced"


# The results page


def table(page):
    """The rows of the claims' tables, by claim."""
    return {
        match[1]: line for line in page.splitlines() if (match := re.match(r'\| (?:<a .*>)?<span id="(c\d\d)"', line))
    }


def rules(page):
    """The rows of what is folded beside them: what is measured, its rule, the control."""
    folded = page.split("{dropdown} Rules and controls\n")[1:]
    lines = [line for part in folded for line in part.partition("\n::::")[0].splitlines()]
    return {match[1]: line for line in lines if (match := re.match(r"\| (c\d\d) \|", line))}


def section(page, title):
    """The lines of a part of the page."""
    return page.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_page_lists_every_claim(checkout, experiment):
    """With its number in the paper, its rule, its verdict here; what was not run is there too."""
    check("c01", [0.61, 0.6, 0.62], control=NOTHING, experiment=experiment)
    check("c02", 3.0, experiment=experiment)
    page = results_page(experiment.folder)
    rows, terms = table(page), rules(page)
    assert list(rows) == list(terms) == ["c01", "c02", "c03"]
    low, high = interval([0.61, 0.6, 0.62])
    assert f"✓ reproduced</span> 0.61 [{low:.3g}, {high:.3g}]" in rows["c01"] and "above 0.5" in terms["c01"]
    assert "✗ not reproduced</span> 3 |" in rows["c02"]
    assert "not run" in rows["c03"] and "reproduced" not in rows["c03"]


def test_a_claim_leads_to_the_page_of_its_notebook(checkout, experiment, tmp_path):
    """A page that is there; the others keep their plain id."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "03_training.ipynb").touch()
    page = results_page(experiment.folder)
    assert '| <a href="../notebooks/03_training.html#c01"><span id="c01">c01</span></a> |' in page
    assert '| <span id="c02">c02</span> |' in page


def test_text_of_the_ledger_does_not_break_the_table(checkout, experiment):
    """Four columns whatever a statement holds: its bars and stars are escaped."""
    page = results_page(experiment.folder)
    assert r"*up to\* 75 % \| in" in page and r"\>" in page
    for row in table(page).values():
        assert row.replace(r"\|", "").count("|") == 5


def test_the_page_without_any_record_says_not_run(checkout, experiment):
    assert all("not run" in row for row in table(results_page(experiment.folder)).values())


@pytest.mark.parametrize("what", ["claim", "code"])
def test_a_record_is_stale_when_what_it_rests_on_changes(checkout, experiment, monkeypatch, what):
    check("c01", [0.7, 0.71], control=[0.0, 0.1], experiment=experiment)
    check("c02", 1.0, experiment=experiment)
    assert "stale" not in results_page(experiment.folder)
    if what == "claim":
        rule = (
            "rule: {above: 0.6}\n  amendments: [{date: 2026-01-01, seen: yes, reason: x, before: {rule: {above: 0.5}}}]"
        )
        checkout("rule: {above: 0.5}", rule)
        lock()
    else:
        monkeypatch.setattr(claims.Claim, "code_digest", lambda claim: "of other code")
    rows = table(results_page(experiment.folder))
    assert "stale" in rows["c01"] and ("stale" in rows["c02"]) == (what == "code")


CHANGED_RULE = (
    "rule: {{above: 0.6}}\n  amendments: [{{date: {}, seen: {}, reason: {}, before: {{rule: {{above: 0.5}}}}}}]"
)


def test_who_has_a_record_has_seen_something(checkout, experiment):
    """Of the terms before the change; a record of others tells nothing."""
    checkout("rule: {above: 0.5}", CHANGED_RULE.format("2026-01-01", "no", "x"))
    check("c02", 1.0, experiment=experiment)
    assert lock() == ["c01"]  # c01 was never measured
    checkout()
    (paths.repository() / LOCK).unlink()
    lock()
    check("c01", [0.7, 0.71], control=[0.0, 0.1], experiment=experiment)
    for seen, fits in (("no", False), ("yes", True)):
        checkout("rule: {above: 0.5}", CHANGED_RULE.format("2026-01-01", seen, "x"))
        if fits:
            assert lock() == ["c01"]
        else:
            with pytest.raises(
                ValueError, match=r"c01: the amendment of 2026-01-01 has seen: false, but .*c01.json is"
            ):
                lock()


@pytest.mark.parametrize(
    ("date", "reason", "complaint"),
    [
        ("2999-01-01", "x", r"c01: amendments.0: date=2999-01-01 lies in the future"),
        ("2026-01-01", "' '", r"c01: amendments.0.reason: String should match"),
    ],
)
def test_an_amendment_has_a_reason_and_a_day_that_has_come(checkout, date, reason, complaint):
    checkout("rule: {above: 0.5}", CHANGED_RULE.format(date, "yes", reason))
    with pytest.raises(ValueError, match=complaint):
        lock()


def test_nothing_is_judged_by_terms_that_are_not_locked(checkout, experiment):
    checkout("rule: {above: 0.5}", "rule: {above: 0.1}")
    with pytest.raises(ValueError, match="c01 was changed without an amendment"):
        check("c01", [0.7, 0.71], control=[0.0, 0.1], experiment=experiment)
    check("c02", 1.0)  # another one's terms do not matter here
    checkout("rule: {above: 0.5}", CHANGED_RULE.format("2026-01-01", "no", "x"))
    with pytest.raises(ValueError, match="c01 has 2 versions, .* run: python -m rfpp lock"):
        check("c01", [0.7, 0.71], control=[0.0, 0.1], experiment=experiment)


def test_seeds_are_different_ones_that_were_trained(checkout, experiment):
    with pytest.raises(ValueError, match=r"c01: seeds=\[0, 0\] has an entry twice"):
        check("c01", [0.7, 0.71], [0, 0], control=[0.0, 0.1], experiment=experiment)
    trained = experiment.run.find
    experiment.run.find = lambda step: None if "seed 7" in step.title else trained(step)
    with pytest.raises(ValueError, match=r"c01: seeds=\[0, 7\]: there is no finished 'train F, seed 7' at preset"):
        check("c01", [0.7, 0.71], [0, 7], control=[0.0, 0.1], experiment=experiment)


def test_a_claim_says_what_its_records_depend_on(checkout):
    checkout("  rests_on: [F]\n")
    with pytest.raises(ValueError, match=r"book/claims.yml: c01: the entry: code is empty, and so is rests_on"):
        lock()


@pytest.mark.parametrize("before", [{"rule": {"above": 0.4}}, {"quantity": "x", "only_at": None}])
def test_what_decides_a_verdict_is_more_than_wording(before):
    with pytest.raises(ValueError, match="which is more than wording"):
        claims.Amendment(date="2026-01-01", before=before, seen=False, reason="x", wording=True)


def test_other_words_for_the_same_make_no_record_stale(checkout, experiment):
    """Unless what is computed changed after them."""
    check("c01", [0.7, 0.71], control=[0.0, 0.1], experiment=experiment)
    terms = "quantity: {}\n  control: A against itself\n  rests_on: [F]\n  rule: {{above: {}}}"
    old = terms.format("share that F removes", 0.5)
    reworded = "{date: 2026-01-01, seen: yes, reason: x, wording: true, before: {quantity: share that F removes}}"
    changed = "{date: 2026-01-02, seen: yes, reason: y, before: {rule: {above: 0.5}}}"
    for amendments, bound, stale in ((reworded, 0.5, False), (f"{reworded}, {changed}", 0.6, True)):
        checkout(old, f"{terms.format('what F removes', bound)}\n  amendments: [{amendments}]")
        lock()
        assert ("stale" in table(results_page(experiment.folder))["c01"]) == stale


def test_records_of_other_scales_have_columns_of_their_own(checkout, experiment, tmp_path):
    """Kept with the book; those of this run come first, and stand for their scale."""
    check("c01", [0.7, 0.7], control=[0.0, 0.0], experiment=experiment)
    for name, value in (("big", 0.2), ("smoke", 0.9)):
        other = stand_in(name, tmp_path / "elsewhere" / name)
        check("c01", [value, value], control=[0.0, 0.0], experiment=other)
        shutil.copytree(other.folder / "claims", tmp_path / "book" / "records" / name)
    page = results_page(experiment.folder)
    assert "| `smoke` | `big` |" in page
    row = table(page)["c01"]
    cells = [re.sub("<[^>]*>", "", cell).strip() for cell in row.split("|")]
    assert "✓ reproduced 0.7 [0.7, 0.7]" in cells and "✗ not reproduced 0.2 [0.2, 0.2]" in cells
    assert "| not run | does not apply |" in table(page)["c03"]


def test_the_commit_is_unknown_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"


def test_a_scale_without_the_first_claim_keeps_its_place_in_the_legend(checkout, experiment):
    check("c02", 1.0, experiment=experiment)
    record = claims.records(experiment.folder / "claims")["c02"]
    ledger = {id: claims.ledger()[id] for id in ("c01", "c02")}
    drawn = results.forest({"laptop": {"c02": record}, "desk": {"c01": record, "c02": record}}, ledger)
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["laptop", "desk", "control"]


def test_the_page_says_where_numbers_come_from(checkout, experiment):
    """Device, versions and commit of each record, the claims they stand behind; no step stands behind c02."""
    check("c01", [0.7, 0.8], control=[0.0, 0.1], experiment=experiment), check("c02", 1.0, experiment=experiment)
    record = claims.records(experiment.folder / "claims")["c01"]
    origins = section(results_page(experiment.folder), "Where the numbers come from")
    other, origin = (line for line in origins.splitlines() if line.startswith("| `smoke`"))
    assert record.provenance["device"] in origin and record.provenance["torch"] in origin and "| c01 |" in origin
    assert provenance()["device"] in other and "| c02 |" in other
    assert "38 s" in origin  # pairs and two flows, 12.5 s each


def test_the_page_tells_which_code_was_rewritten(checkout, experiment):
    """A record that was measured with other code is none the worse for it; readers see on what grounds."""
    page = results_page(experiment.folder)
    for entry in json.loads(digests.REWRITTEN.read_text()):
        assert f"| {entry['date']} | {entry['reason']} | {entry['compared']} | {len(entry['definitions'])} |" in page


def test_the_page_tells_controls_and_what_is_vacuous(checkout, experiment):
    check("c01", [0.61, 0.6, 0.62], control=[0.9, 0.91, 0.92], experiment=experiment)
    page = results_page(experiment.folder)
    assert "∅ vacuous</span> 0.61" in table(page)["c01"]
    assert "above 0.5 | A against itself | 0.91 [" in rules(page)["c01"]
    assert "| `smoke` | the paper's | 0 | 0 | 0 | 1 | 2 | 0 of 0 |" in page


def test_the_page_tells_what_would_have_decided(checkout, experiment):
    values = [0.2, 0.9, 0.6]
    check("c01", values, control=NOTHING, experiment=experiment)
    undecided = section(results_page(experiment.folder), "What would have decided")
    effect, n = visible_effect(values), seeds_needed(Rule(above=0.5), values)
    assert f"| c01 | `smoke` | 3 | 0.0667 | {effect:.3g} | {n} |" in undecided


def test_the_page_corrects_for_the_number_of_claims(checkout, experiment):
    """Two p-values between 2.5 and 5 %: each decides alone, neither beside the other."""
    check("c01", [0.55, 0.56, 0.53], control=NOTHING, experiment=experiment)
    check("c02", 1.0, experiment=experiment)  # not random: there is nothing to correct
    check("c03", [0.945, 1.01, 1.075], experiment=experiment)
    found = claims.corrected(claims.records(experiment.folder / "claims"), ledger())
    p = [p_value(Rule(above=0.5), [0.55, 0.56, 0.53]), p_value(Rule(above=0.8), [0.945, 1.01, 1.075])]
    assert 0.025 < min(p) < max(p) < 0.05
    assert found.keys() == {"c01", "c03"} and list(found.values()) == pytest.approx([2 * min(p)] * 2)
    recorded = claims.records(experiment.folder / "claims")
    assert claims.lost(recorded, ledger()) == {"c01", "c03"}
    assert not claims.lost({"c01": recorded["c01"]}, ledger())
    assert "| `smoke` | the paper's | 3 | 0 | 0 | 0 | 0 | 0 of 2 |" in results_page(experiment.folder)


def test_the_page_tells_every_amendment_with_the_old_verdict(checkout, experiment):
    """Under the old rule, and of the old quantity where a run measured it."""
    checkout("rule: {below: 2}\n", AMENDED)
    (paths.repository() / LOCK).unlink()
    lock()
    check("c02", 1.5, experiment=experiment)
    changes = section(results_page(experiment.folder), "What was changed in the ledger")
    assert (
        "*rule*: below 3; *quantity*: error at once | *rule*: below 2; *quantity*: error | it was too weak | yes"
        in changes
    )
    assert "| the old quantity is no longer measured |" in changes
    assert "*paper*: none | *paper*: not given | it was printed | no | the same |" in changes
    check("c02", 1.5, former={0: 4.0}, experiment=experiment)
    assert "| yes | not reproduced: 4 |" in results_page(experiment.folder)


def test_a_record_of_another_claim_or_version_is_refused(checkout, experiment):
    check("c02", 1.5, experiment=experiment)
    folder = experiment.folder / "claims"
    shutil.copy(folder / "c02.json", folder / "c03.json")
    with pytest.raises(ValueError, match="c03.json holds a record of c02; c03's is needed"):
        results_page(experiment.folder)
    (folder / "c03.json").unlink()
    entry = json.loads((folder / "c02.json").read_text())
    del entry["control"]
    (folder / "c02.json").write_text(json.dumps(entry))
    with pytest.raises(ValueError, match="c02.json holds a record of another version"):
        results_page(experiment.folder)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[]", "holds a list; a JSON object is needed"),
        (b'{"id": "c0', "is not JSON"),
        ("Größe".encode("latin-1"), "is not JSON .*can't decode"),
    ],
)
def test_a_file_that_is_no_record_is_named(tmp_path, content, complaint):
    (tmp_path / "c02.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path / 'c02.json'} {complaint}"):
        claims.records(tmp_path)


def test_the_page_says_what_intervals_cover(checkout, experiment):
    check("c02", 1.5, experiment=experiment)
    covers = section(results_page(experiment.folder), "What the intervals cover")
    drawn = "drawn for each seed"
    assert f"| `smoke` | 0, 1 | {drawn} | the same for all | {drawn} | the same for all |" in covers


def test_a_claim_that_cannot_be_measured_says_why(capsys):
    claims.skip("c22", "it needs more than there is")
    assert capsys.readouterr().out == "c22 not judged: it needs more than there is\n"
    with pytest.raises(ValueError, match="id='c99' is unknown"):
        claims.skip("c99", "there is no such claim")
