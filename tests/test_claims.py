"""The ledger: intervals by scipy, verdicts by rule, records that know when they are out of date."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from rfpp import claims, presets
from rfpp.base import paths
from rfpp.claims import Rule, check, interval, judge, ledger, results_page
from rfpp.pipeline.plan import Plan

LEDGER = """
- id: c01
  where: Table 1, A and F
  statement: Training lowers the distance by *up to* 75 % | in one step.
  paper: "12.21 -> 3.38"
  notebook: training
  quantity: share that F removes
  rests_on: [F]
  rule: {above: 0.5}
- id: c02
  where: Section 5
  statement: The error is small.
  paper: not given
  notebook: samplers
  quantity: error
  rule: {below: 2}
- id: c03
  where: Section 6
  statement: The cost is about equal.
  paper: "1.0"
  notebook: samplers
  quantity: ratio
  rule: {between: [0.8, 1.25]}
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a ledger of its own; calling it changes the ledger."""
    (tmp_path / "book").mkdir()
    monkeypatch.setattr(paths, "repository", lambda: tmp_path)

    def write(old="", new=""):
        assert old in LEDGER
        (tmp_path / paths.LEDGER).write_text(LEDGER.replace(old, new, 1) if old else LEDGER)

    write()
    return write


@pytest.fixture
def experiment(tmp_path):
    """What a record asks of an experiment."""
    return stand_in("smoke", tmp_path / "runs" / "smoke")


def stand_in(name, folder):
    """An experiment of which everything but the held-out pairs is finished."""
    manifest = {"seconds": 12.5, "files": {"a": {"sha256": "00", "bytes": 1}}}

    def find(step):
        return None if getattr(step, "label", "") == ", held out" else SimpleNamespace(manifest=manifest)

    plan = Plan(presets.load("smoke"))
    return SimpleNamespace(preset=SimpleNamespace(name=name), folder=folder, plan=plan, run=SimpleNamespace(find=find))


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
    ("id", "measured", "parts"),
    [
        ("c01", [0.61, 0.6, 0.62], ["c01 reproduced", "share that F removes", "above 0.5", "3 seeds"]),
        ("c01", [0.1, 0.11, 0.12], ["c01 not reproduced", "share that F removes", "above 0.5", "3 seeds"]),
        ("c01", [0.1, 0.5, 0.9], ["c01 inconclusive", "above 0.5", "3 seeds"]),
        ("c02", 1.5, ["c02 reproduced", "error", "below 2", "one run"]),
        ("c02", [3], ["c02 not reproduced", "below 2", "one run"]),
        ("c03", (1.0, 1.01), ["c03 reproduced", "ratio", "between 0.8 and 1.25", "2 seeds"]),
    ],
)
def test_check_prints_one_line_that_does_not_depend_on_digits(checkout, capsys, id, measured, parts):
    """Claim, verdict, quantity, rule and number of runs; the same for values that differ in their last digits."""
    check(id, measured)
    first = capsys.readouterr().out
    assert first.count("\n") == 1 and first.startswith(parts[0]) and all(part in first for part in parts)
    check(id, [value * (1 + 1e-9) for value in measured] if not isinstance(measured, float) else measured + 1e-9)
    assert capsys.readouterr().out == first


def test_check_writes_a_record(checkout, experiment, capsys):
    """Everything that was measured, and under which circumstances."""
    check("c01", [0.61, 0.6, 0.62], [4, 5, 6], experiment=experiment)
    record = json.loads((experiment.folder / "claims" / "c01.json").read_text())
    assert record["measured"] == [0.61, 0.6, 0.62] and record["seeds"] == [4, 5, 6]
    assert record["value"] == pytest.approx(0.61) and record["verdict"] == "reproduced" and record["preset"] == "smoke"
    assert record["interval"] == pytest.approx(list(interval([0.61, 0.6, 0.62])))
    wanted = [experiment.plan.pairs(), *(experiment.plan.flow("F", seed) for seed in (4, 5, 6))]
    assert set(record["artifacts"]) == {f"{step.name}/{step.key}" for step in wanted} and record["seconds"] == 50.0
    assert {"rfpp", "torch", "python", "device"} <= set(record["provenance"]) and record["commit"]
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


@pytest.mark.parametrize(
    ("id", "measured", "seeds", "complaint"),
    [
        ("c99", 1.0, None, "id='c99' is unknown; allowed: 'c01', 'c02', 'c03'"),
        ("C01", 1.0, None, "did you mean 'c01'"),
        ("c01", [1.0, 2.0], [0], r"measured=\[1.0, 2.0\], seeds=\[0\]: one finite value for each seed"),
        ("c01", [1.0], [0, 1], r"seeds=\[0, 1\]"),
        ("c01", [], None, r"measured=\[\]"),
        ("c01", math.nan, None, r"measured=\[nan\]"),
        ("c01", [1.0, math.inf], None, r"measured=\[1.0, inf\]"),
        ("c01", [1.0, math.nan, 2.0], [0, 1, 2], "nan"),
    ],
)
def test_a_measurement_that_does_not_fit_is_refused_and_not_recorded(
    checkout, experiment, capsys, id, measured, seeds, complaint
):
    with pytest.raises(ValueError, match=complaint):
        check(id, measured, seeds, experiment=experiment)
    assert not capsys.readouterr().out and not experiment.folder.exists()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("id: c02", "id: c01", "lists c01 more than once"),
        ("id: c02", "id: claim2", "id"),
        ("  paper: not given\n", "", "paper"),
        ("  paper: not given", "  paper: not given\n  proof: yes", "proof"),
        ("rule: {below: 2}", "rule: {below: 2, above: 1}", "exactly one"),
    ],
)
def test_a_ledger_that_is_none_is_refused(checkout, old, new, complaint):
    checkout(old, new)
    with pytest.raises(ValueError, match=complaint):
        ledger()


def test_the_ledger_of_the_book_is_one():
    """The file that ships with the checkout."""
    assert all(claim.id == id and claim.notebook for id, claim in ledger().items())


# The results page


def table(page):
    """The cells of the claims' table, by claim."""
    lines = [line for line in page.splitlines() if line.startswith("| c")]
    return {line.split("|")[1].strip(): line for line in lines}


def test_the_page_lists_every_claim(checkout, experiment):
    """With its number in the paper, its rule, its verdict here; what was not run is there too."""
    check("c01", [0.61, 0.6, 0.62], experiment=experiment)
    check("c02", 3.0, experiment=experiment)
    rows = table(results_page(experiment.folder))
    assert list(rows) == ["c01", "c02", "c03"]
    low, high = interval([0.61, 0.6, 0.62])
    assert f"**reproduced**: 0.61 [{low:.3g}, {high:.3g}]" in rows["c01"] and "above 0.5" in rows["c01"]
    assert "**not reproduced**: 3 |" in rows["c02"] and "not run" in rows["c03"] and "reproduced" not in rows["c03"]


def test_a_claim_leads_to_the_page_of_its_notebook(checkout, experiment, tmp_path):
    """A page that is there; the others keep their plain id."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "03_training.ipynb").touch()
    page = results_page(experiment.folder)
    assert "| {doc}`c01 <../notebooks/03_training>` |" in page and "| c02 |" in page


def test_text_of_the_ledger_does_not_break_the_table(checkout, experiment):
    """Five columns whatever a statement holds: its bars and stars are escaped."""
    page = results_page(experiment.folder)
    assert r"*up to\* 75 % \| in" in page and r"\>" in page
    for row in table(page).values():
        assert row.replace(r"\|", "").count("|") == 6


def test_the_page_without_any_record_says_not_run(checkout, experiment):
    assert all("not run" in row for row in table(results_page(experiment.folder)).values())


@pytest.mark.parametrize("what", ["claim", "code"])
def test_a_record_is_stale_when_what_it_rests_on_changes(checkout, experiment, monkeypatch, what):
    check("c01", 0.7, experiment=experiment)
    check("c02", 1.0, experiment=experiment)
    assert "stale" not in results_page(experiment.folder)
    if what == "claim":
        checkout("rule: {above: 0.5}", "rule: {above: 0.6}")
    else:
        monkeypatch.setattr(claims.Claim, "code_digest", lambda claim: "of other code")
    rows = table(results_page(experiment.folder))
    assert "stale" in rows["c01"] and ("stale" in rows["c02"]) == (what == "code")


def test_records_of_other_scales_have_columns_of_their_own(checkout, experiment, tmp_path):
    """Kept with the book; those of this run come first, and stand for their scale."""
    check("c01", 0.7, experiment=experiment)
    for name, value in (("big", 0.2), ("smoke", 0.9)):
        other = stand_in(name, tmp_path / "elsewhere" / name)
        check("c01", value, experiment=other)
        shutil.copytree(other.folder / "claims", tmp_path / "book" / "records" / name)
    page = results_page(experiment.folder)
    assert "| `smoke` | `big` |" in page
    assert "**reproduced**: 0.7 | **not reproduced**: 0.2 |" in table(page)["c01"]


def test_the_page_says_where_numbers_come_from(checkout, experiment):
    """Device, versions and commit of each record, the claims they stand behind."""
    check("c01", 0.7, experiment=experiment), check("c02", 1.0, experiment=experiment)
    record = claims.records(experiment.folder / "claims")["c01"]
    origin = next(line for line in results_page(experiment.folder).splitlines() if line.startswith("| `smoke`"))
    assert record.provenance["device"] in origin and record.provenance["torch"] in origin and "c01, c02" in origin
    assert "25 s" in origin


def test_a_claim_that_cannot_be_measured_says_why(capsys):
    claims.skip("c22", "it needs more than there is")
    assert capsys.readouterr().out == "c22 not judged: it needs more than there is\n"
    with pytest.raises(ValueError, match="id='c99' is unknown"):
        claims.skip("c99", "there is no such claim")
