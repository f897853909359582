"""Verdicts come out as the synthetic results were constructed, and the finding says them in plain words."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bench.analysis.judge import claims as claims_module
from bench.analysis.judge.claims import READINGS, all_claims, judge, judge_speed
from bench.analysis.judge.findings import finding
from bench.analysis.judge.scores import Scores
from bench.analysis.judge.speedups import Elsewhere, Speed, cost_of, speed_of, speed_up
from bench.analysis.read.frames import cost_frame
from bench.analysis.read.results import group_runs, parse, read_runs
from bench.analysis.show import difference_tables, plots
from bench.analysis.show.run_tables import claims_tables
from bench.analysis.show.time_tables import LargeTable, large_table, ramps, speed_cell, times
from bench.records.record import CostTable
from bench.statistics.accuracy import Estimate


@pytest.fixture
def judged(tmp_path, synthetic):
    """Builds results with SparseContrast, dense, fixed and patchdropout of given AUROCs; returns claims and finding."""

    def build(
        sparse=0.80,
        dense=0.80,
        fixed=0.70,
        patch=0.79,
        wobble=0.003,
        seeds=6,
        speed=(1.75, 1.82, 1.45),
        width=0.01,
        **world,
    ):
        make = synthetic.Method
        methods = [
            make("untrained", 0.6, inference="dense", wobble=wobble, verdict="not trained"),
            make("simclr/dense", dense, wobble=wobble),
            make("simclr/sparsecontrast", sparse, 0.5, wobble=wobble, speed=speed),
            make("simclr/fixed", fixed, 0.5, wobble=wobble, speed=(1.0, 1.0, 1.0)),
            make("simclr/patchdropout", patch, 0.5, wobble=wobble, inference="dense"),
        ]
        options = {
            "patients": 250,
            "seeds": tuple(range(seeds)),
            "draws": 1,
            "probes": ("linear",),
            "fractions": {10.0: 1.0},
        }
        synthetic.write_results(tmp_path, synthetic.World(**(options | world)), methods, cost=False)
        synthetic.write_cost(tmp_path, methods, width)
        (group,) = group_runs(read_runs(tmp_path))
        scores, cost = Scores(group, "linear"), cost_frame(tmp_path)
        claims = all_claims(group, scores, cost)
        return group, claims, finding(group, scores, claims), cost

    return build


def verdict(claims, kind, measure="", reading=""):
    (one,) = [c for c in claims if (c.kind, c.measure, c.reading, c.ramp) == (kind, measure, reading, None)]
    return one.verdict


def test_where_the_interval_lies_is_the_verdict():
    assert judge(-0.02, 0.01, -0.03) == "supported"
    assert judge(-0.09, -0.04, -0.03) == "refuted"
    assert judge(-0.05, 0.01, -0.03) == "undecided"
    assert judge(float("-inf"), float("inf"), 0.0) == "undecided"
    assert READINGS["time"] == pytest.approx(1.6667, abs=1e-4)


def test_everything_supported(judged):
    _, claims, sentences, _ = judged()
    assert verdict(claims, "accuracy") == "supported"
    assert verdict(claims, "fixed") == "supported"
    assert verdict(claims, "speed", "train", "time") == "supported"
    text = " ".join(sentences)
    assert "beats one fixed random mask" in text
    assert "60 % of the positions are kept in some images only" in text
    assert "comparable accuracy is supported" in text
    assert "pre-training teaches something here" in text


def test_worse_than_dense_and_than_a_fixed_mask_is_refuted(judged):
    _, claims, sentences, _ = judged(sparse=0.70, fixed=0.76, patch=0.79)
    assert verdict(claims, "accuracy") == "refuted"
    assert verdict(claims, "fixed") == "refuted"
    assert verdict(claims, "patchdropout") == "refuted"
    text = " ".join(sentences)
    assert "worse than dense by more than 0.03" in text
    assert "One fixed random mask for all images does better" in text
    assert "beats simclr/sparsecontrast" in text


def test_a_fixed_mask_that_does_as_well_is_said_in_plain_words(judged):
    _, claims, sentences, _ = judged(sparse=0.80, fixed=0.80)
    assert verdict(claims, "fixed") == "undecided"
    (claim,) = [one for one in claims if one.kind == "fixed"]
    assert -0.03 < claim.low < claim.high < 0.03
    text = " ".join(sentences)
    assert "One fixed random mask for all images does as well as simclr/sparsecontrast, within 0.03" in text
    assert "nothing here shows that the selection is about the image" in text
    assert f"A gain above +{claim.high:.3f} is excluded" in text


def test_an_interval_that_reaches_beyond_the_margin_shows_no_difference_and_no_likeness(judged):
    """Such as -.023 [-.107, +.062], which was once told as "does as well as"."""
    _, claims, sentences, _ = judged(sparse=0.80, fixed=0.80, wobble=0.3)
    (claim,) = [one for one in claims if one.kind == "fixed"]
    assert claim.low < -0.03
    text = " ".join(sentences)
    assert "does as well as" not in text
    bounds = claims_module.span(claim.estimate)
    seen = "one fixed random mask for all images no difference is seen"
    assert f"{seen} ({bounds} macro AUROC, at 10 %, at equal MACs at inference (2.0 M))" in text


def test_few_wobbling_seeds_leave_accuracy_undecided(judged):
    _, claims, sentences, _ = judged(sparse=0.775, wobble=0.12, seeds=5)
    assert verdict(claims, "accuracy") == "undecided"
    assert "is undecided" in " ".join(sentences)


WORDS = ("supported", "refuted", "undecided", "excluded", "beats", "does better", "as well as", "no difference is seen")


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_fewer_than_five_seeds_give_estimates_and_no_verdict(judged, seeds):
    """With differences that any number of seeds would show."""
    group, claims, sentences, cost = judged(sparse=0.70, fixed=0.80, seeds=seeds)
    ours = [one for one in claims if one.kind != "speed"]
    assert {one.verdict for one in ours} == {"no verdict"}
    assert max(one.high for one in ours) < 0
    why = f"{seeds} of the 5 seeds that it needs"
    accuracy = [one for one in sentences if "macro AUROC" in one]
    assert len(accuracy) == 4
    assert not [one for one in accuracy if any(word in one for word in WORDS)]
    assert [claims_module.span(one.estimate) in text for one, text in zip(ours, accuracy[1:], strict=True)] == [
        True
    ] * 3
    assert all(text.endswith(f"No verdict: {why}.") for text in accuracy[1:])
    assert any(one.startswith("No verdict on accuracy: it needs 5 seeds") for one in sentences)
    (table,) = claims_tables(claims)
    assert [row[-1] for row in table.rows[10:]] == [f"no verdict: {why}"] * 3
    scores = Scores(group, "linear")
    for strategy in ("dense", "fixed", "patchdropout"):
        found = difference_tables.differences(scores, strategy)
        assert {row[-1] for row in found.rows} <= {"no verdict", "–"}
        assert "A verdict needs 5 seeds" in found.note
    alone = "interval over test patients alone"
    assert all((alone in text) == (seeds < 3) for text in accuracy)
    assert all(("(patients alone)" in row[2]) == (seeds < 3) for row in table.rows[10:])
    assert plots.without_front(scores) == why


def test_five_seeds_give_verdicts(judged):
    group, claims, sentences, _ = judged(sparse=0.70, fixed=0.80, seeds=5)
    assert {one.verdict for one in claims if one.kind != "speed"} == {"refuted"}
    assert not any("No verdict" in one for one in sentences)
    assert plots.without_front(Scores(group, "linear")) == ""


def test_a_finding_of_very_few_test_patients_takes_interval_and_verdict_away(judged):
    _, claims, sentences, _ = judged(patients=25)
    (claim,) = [one for one in claims if one.kind == "accuracy"]
    assert (claim.verdict, claim.estimate.bounded) == ("no verdict", False)
    (text,) = [one for one in sentences if "against dense" in one]
    assert "(no interval) macro AUROC: " in text
    assert re.search(r"\d test patients? with \w+, and an interval needs 5\. No verdict\.$", text)


def test_the_two_readings_of_speed_are_judged_apart(judged):
    _, claims, sentences, _ = judged(speed=(1.2, 1.55, 1.40))
    assert verdict(claims, "speed", "train", "rate") == "supported"
    assert verdict(claims, "speed", "train", "time") == "refuted"
    assert verdict(claims, "speed", "infer", "rate") == "refuted"
    assert verdict(claims, "speed", "run", "rate") == "undecided"
    (sentence,) = [one for one in sentences if "40 % faster" in one]
    assert "a training step runs at 1.55×" in sentence
    assert "supported as a rate (1.40×) and refuted as time saved (1.67×)" in sentence
    assert "inference runs at 1.20× [1.19, 1.21], refuted in both readings" in sentence


def test_without_a_measurement_speed_is_not_judged(judged, tmp_path):
    group, _, _, cost = judged()
    claims = all_claims(group, None, cost[cost["method"] != "simclr/sparsecontrast"])
    assert {c.verdict for c in claims} == {"not measured"}
    other = cost.assign(image_size=224)  # another scale than the trained one is no evidence either
    assert {c.verdict for c in all_claims(group, None, other)} == {"not measured"}
    assert any("not judged" in s for s in finding(group, Scores(group, "linear"), claims))


def test_a_ratio_inside_the_noise_is_no_difference(judged):
    _, _, _, cost = judged()
    rows = cost.set_index("method", drop=False)
    assert speed_of(rows.loc["simclr/fixed"], "train").no_difference
    assert speed_cell(rows.loc["simclr/fixed"], "train") == "no difference seen [0.99, 1.01]"
    assert not speed_of(rows.loc["simclr/sparsecontrast"], "train").no_difference
    assert speed_cell(rows.loc["simclr/sparsecontrast"], "train") == "1.82 [1.80, 1.84]"
    assert speed_cell(rows.loc["simclr/dense"], "train") == "1 (reference)"


def test_another_objective_is_measured_against_its_own_dense(tmp_path, synthetic):
    make = synthetic.Method
    methods = [make("simclr/dense", 0.8), make("moco/dense", 0.8, speed=(1.0, 0.8, 0.8))]
    methods.append(make("moco/sparsecontrast", 0.8, 0.5, speed=(1.6, 1.2, 1.2)))
    world = synthetic.World(patients=40, seeds=(0,), probes=("linear",), fractions={10.0: 1.0})
    synthetic.write_results(tmp_path, world, methods)
    (group,) = group_runs(read_runs(tmp_path))
    arm = next(one for one in group.arms if one.strategy == "sparsecontrast")
    speed = speed_up(arm, group, cost_frame(tmp_path), "train")
    assert speed.value == pytest.approx(1.2 / 0.8)
    assert (speed.low, speed.high) == pytest.approx((1.5 * 0.98 / 1.02, 1.5 * 1.02 / 0.98))
    assert speed.floor == pytest.approx(1 / 0.98)
    assert judge_speed(speed, 1.2) == "supported"
    few = cost_frame(tmp_path).assign(rounds=5)
    assert judge_speed(speed_up(arm, group, few, "train"), 1.2) == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "floor", "verdict"),
    [
        (1.45, 1.5, 1.02, "supported"),
        (1.45, 1.5, 1.44, "supported"),
        (1.45, 1.5, 1.46, "undecided"),  # dense against itself came out as far off
        (1.35, 1.45, 1.02, "undecided"),
        (1.2, 1.3, 1.02, "refuted"),
        (0.99, 1.01, 1.02, "refuted"),  # no difference seen, and one of 1.40 would have been
        (0.99, 1.01, 1.41, "undecided"),  # it would not
        (0.6, 0.65, 1.41, "refuted"),  # slower, beyond all noise
    ],
)
def test_a_speed_claim_has_to_stand_out_of_the_noise_floor(low, high, floor, verdict):
    assert judge_speed(Speed((low + high) / 2, low, high, floor), 1.40) == verdict


def test_a_loud_noise_floor_undoes_support(judged, synthetic, tmp_path):
    group, claims, _, cost = judged(seeds=1)
    assert verdict(claims, "speed", "train", "rate") == "supported"
    loud = cost.assign(aa_train_low=0.5, aa_train_high=1.1)
    assert verdict(all_claims(group, None, loud), "speed", "train", "rate") == "undecided"
    assert verdict(all_claims(group, None, loud), "speed", "infer", "rate") == "supported"


def test_a_control_that_keeps_another_share_of_the_image_is_none(tmp_path, synthetic):
    make = synthetic.Method
    methods = [make("simclr/dense", 0.8), make("simclr/sparsecontrast", 0.8, 0.7)]
    methods += [make("simclr/fixed", 0.7, 0.5), make("simclr/patchdropout", 0.7, 0.7, inference="dense")]
    world = synthetic.World(patients=60, seeds=(0,), probes=("linear",), fractions={10.0: 1.0})
    synthetic.write_results(tmp_path, world, methods)
    (group,) = group_runs(read_runs(tmp_path))
    found = all_claims(group, Scores(group, "linear"), cost_frame(tmp_path))
    assert verdict(found, "fixed") == "not measured"
    assert verdict(found, "patchdropout") != "not measured"
    assert verdict(found, "accuracy") != "not measured"


def test_rounds_that_other_work_disturbed_decide_nothing(judged):
    group, calm, _, cost = judged(seeds=1)
    busy = all_claims(group, None, cost.assign(disturbed_rounds=1))
    assert {c.verdict for c in calm if c.kind == "speed"} == {"supported", "refuted"}
    assert {c.verdict for c in busy if c.kind == "speed"} == {"undecided"}
    (sentence,) = [one for one in finding(group, Scores(group, "linear"), busy) if "40 % faster" in one]
    assert sentence.count("(the machine was busy while this was measured)") == 3
    assert "2 of them disturbed by other processes" in times(group, cost.assign(disturbed_rounds=2)).note
    assert "disturbed" not in times(group, cost).note


def test_speed_is_judged_at_the_scale_of_the_literature_too(judged, tmp_path, synthetic):
    group, claims, _, cost = judged(seeds=1, speed=(1.2, 1.55, 1.3))
    conditions = "cpu (AMD EPYC 7763, 2 cores, 1 thread), 32-true, batch 32"
    assert {c.scale for c in claims if c.kind == "speed"} == {f"conv_vit_d64 at 64 px, {conditions}"}
    methods = [
        synthetic.Method("simclr/dense", 0.8),
        synthetic.Method("simclr/sparsecontrast", 0.8, 0.5, speed=(1.9, 1.9, 1.68)),
    ]
    large = {"encoder": "vit_small_patch16_224", "image_size": 224, "machine": "theirs"}
    synthetic.write_cost(tmp_path / "committed", methods, 0.01, **large)
    found = large_table(tmp_path, tmp_path / "committed")
    claims = all_claims(group, None, cost, found.elsewhere(group))
    speeds = [c for c in claims if c.kind == "speed" and c.ramp is None]
    verdicts = {(c.scale.split()[0], c.measure, c.reading): c.verdict for c in speeds}
    assert verdicts["conv_vit_d64", "train", "time"] == "refuted"
    assert verdicts["vit_small_patch16_224", "train", "time"] == "supported"
    assert verdicts["vit_small_patch16_224", "run", "time"] == "undecided"
    here, there = [one for one in finding(group, Scores(group, "linear"), claims) if "40 % faster" in one]
    assert f"simclr/sparsecontrast, conv_vit_d64 at 64 px, {conditions}: a training step runs at 1.55×" in here
    where = "vit_small_patch16_224 at 224 px, 1 channel, measured on another machine"
    theirs = "cpu (theirs, 1 thread), 32-true, batch 32"
    assert f"simclr/sparsecontrast, {where}, {theirs}: a training step runs at 1.90×" in there
    assert "The paper's times are of an A100 GPU" in there
    rows = [row for table in claims_tables(claims) for row in table.rows]
    assert sum(where in row[0] for row in rows) == 6 + 4
    other_ramp = found.elsewhere(group).frame.assign(ramp=1.0)  # another run than the group's
    assert Elsewhere(other_ramp, where).speed_up(next(a for a in group.arms if a.keep), "train") is None
    synthetic.write_cost(tmp_path / "own", methods, **(large | {"encoder": "conv_vit_d64", "image_size": 64}))
    (table,) = [parse(CostTable, path) for path in (tmp_path / "own").glob("cost/*.json")]
    assert LargeTable(table, own=True).elsewhere(group) is None


def test_rows_of_another_setting_never_stand_beside(judged, tmp_path, synthetic):
    """One arm was measured later with two threads: the group stays with the setting in which all were measured."""
    group, _, _, cost = judged(seeds=1)
    arm = next(one for one in group.arms if one.strategy == "sparsecontrast")
    methods = [synthetic.Method("simclr/dense", 0.8), synthetic.Method("simclr/sparsecontrast", 0.8, 0.5)]
    for number, other in enumerate(({"threads": 2}, {"batch": 8}, {"device": "cuda"}, {"machine": "another"})):
        synthetic.write_cost(tmp_path, methods, finished=f"2027-0{number + 1}-01T00:00:00Z", **other)
        changed = cost_frame(tmp_path)
        assert len(changed) > len(cost)
        assert cost_of(arm, group, changed)["measured"] == cost_of(arm, group, cost)["measured"]
    three = [*methods, synthetic.Method("simclr/fixed", 0.8, 0.5), synthetic.Method("simclr/patchdropout", 0.8, 0.5)]
    synthetic.write_cost(tmp_path, three, finished="2028-01-01T00:00:00Z", threads=2)
    assert cost_of(arm, group, cost_frame(tmp_path))["threads"] == 2  # as many arms, and newer


def test_a_selector_that_learnt_a_crop_is_called_that(judged, synthetic, tmp_path):
    import json

    group, claims, _, _ = judged()
    for path in tmp_path.glob("simclr-sparsecontrast*/record.json"):
        record = json.loads(path.read_text())
        record["learning"]["selection"]["static_share"] = 0.97
        path.write_text(json.dumps(record))
    (group,) = group_runs(read_runs(tmp_path))
    text = " ".join(finding(group, Scores(group, "linear"), claims))
    assert "97 % of its positions are kept or dropped alike" in text
    assert "a crop" in text


def test_a_bench_that_can_not_tell_says_so(judged):
    _, _, sentences, _ = judged(dense=0.60, sparse=0.60, fixed=0.6, patch=0.6)
    assert any("can't tell good methods from bad ones" in one for one in sentences)


def test_a_table_of_claims_for_each_arm(judged):
    _, claims, _, _ = judged()
    (table,) = claims_tables(claims)
    assert len(table.rows) == 6 + 4 + 3  # readings of step, run and inference; runs with two other ramps; accuracy
    assert table.rows[1][1:] == ("1.67×", "1.82 [1.80, 1.84]", "supported")
    assert table.rows[10][1] == "−0.030"


def test_the_ramps_stand_beside_each_other_and_the_verdict_names_its_own(judged):
    """A run that is 1.45 times as fast at the ramp of the runs is not with a longer one."""
    group, claims, sentences, cost = judged(speed=(1.4, 1.6, 1.45))
    runs = [claim for claim in claims if claim.measure == "run" and claim.reading == "rate"]
    assert [(claim.ramp, claim.verdict) for claim in runs] == [
        (None, "supported"),
        (0.5, "refuted"),
        (1.0, "refuted"),
    ]
    assert "with ramp 0.3, that of these runs," in runs[0].text
    assert "with ramp 1, not that of these runs," in runs[2].text
    (sentence,) = [one for one in sentences if "40 % faster" in one]
    assert "at the ramp of these runs; 1.38× with ramp 0.5 and 1.23× with ramp 1" in sentence
    table = ramps(group, cost)
    (row,) = [row for row in table.rows if row[0] == "simclr/sparsecontrast"]
    assert [cell.split()[0] for cell in row[2:]] == ["1.45", "1.38", "1.23", "1.60"]
    assert ramps(group, cost.assign(**{"run_speedup_ramp_0.3": float("nan")})) is None  # an earlier version's table


def test_a_cost_that_was_measured_with_another_ramp_or_precision_is_not_this_runs(judged, tmp_path, synthetic):
    group, _, _, cost = judged(seeds=1)
    arm = next(one for one in group.arms if one.strategy == "sparsecontrast")
    own = speed_up(arm, group, cost, "run")
    method = synthetic.Method("simclr/sparsecontrast", 0.8, 0.5, speed=(9.0, 9.0, 9.0))
    for other in ({"ramp": 0.0}, {"channels": 3}):
        synthetic.write_cost(tmp_path, [method], finished="2026-05-01T00:00:00Z", **other)
    assert speed_up(arm, group, cost_frame(tmp_path), "run") == own
    synthetic.write_cost(tmp_path, [method], finished="2026-06-01T00:00:00Z")
    assert speed_up(arm, group, cost_frame(tmp_path), "run").value == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("low", "high", "sensitive", "verdict"),
    [
        (-0.02, 0.01, True, "supported"),
        (-0.02, 0.01, False, "undecided"),  # dense itself is not seen to beat an untrained encoder
        (0.01, 0.04, False, "supported"),  # better than dense needs no such proof
        (-0.09, -0.04, False, "refuted"),
        (-0.05, 0.01, True, "undecided"),
    ],
)
def test_methods_are_alike_only_where_a_difference_could_be_seen(low, high, sensitive, verdict):
    found = Estimate((low + high) / 2, low, high, 0.0, 1.0, 5, 100, ("seeds", "patients"))
    assert claims_module.comparable(found, sensitive) == verdict
    assert claims_module.comparable(replace(found, seeds=4), sensitive) == "no verdict"


@pytest.mark.parametrize(
    ("low", "high", "sensitive", "alike"),
    [
        (-0.02, 0.02, True, True),
        (-0.02, 0.02, False, False),  # a set-up that sees nothing shows no likeness
        (-0.04, 0.02, True, False),
        (-0.02, 0.04, True, False),
    ],
)
def test_as_well_as_means_that_both_bounds_lie_within_the_margin(low, high, sensitive, alike):
    found = Estimate((low + high) / 2, low, high, 0.0, 1.0, 5, 100, ("seeds", "patients"))
    assert claims_module.alike(found, sensitive) == alike
    assert not claims_module.alike(replace(found, seeds=3), sensitive)
    assert not claims_module.alike(found.unbounded("too few"), sensitive)


@pytest.mark.parametrize("seeds", [4, 5])
def test_what_dense_learns_is_seen_from_five_seeds_on(judged, seeds):
    group, _, sentences, _ = judged(seeds=seeds)
    assert claims_module.is_sensitive(Scores(group, "linear"), 10.0) == (seeds == 5)
    (text,) = [one for one in sentences if "against the untrained encoder" in one]
    assert ("pre-training teaches something here" in text) == (seeds == 5)
    assert "of that gain" in text
