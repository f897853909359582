"""`bench.verify` as a user calls it: what holds, what a rerun finds, and what the user has to fix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from bench.evaluation.evaluate import EvaluationRequest, ScoredDraw, summarise
from bench.records.store import Store
from bench.specs.frozen import file_sha256
from bench.specs.run_spec import SCIENCE_VERSION
from bench.verification.files import read as read_source
from bench.verification.predictions import read
from bench.verification.reconstruct import how, objective_of, run_data_of
from bench.verification.stages import check_files
from tests.bench import small
from tests.bench.verification.tampering import Verified, edit, edit_history, edit_lesions, edit_predictions

MODES = ("pruned", "dense", "mean", "shuffled")
NAME = "linear-100-pruned"
ACCURACY = f"{NAME} from its predictions"
EVALUATION = f"evaluations/{NAME}.json"


def test_a_record_that_nobody_touched_holds_and_is_left_as_it_is(folder: Path, cache: Path) -> None:
    before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    quick = Verified(folder, "--quick", "--cache", cache)
    assert quick.code == 0, quick.output
    assert set(quick.verdicts.values()) == {"holds"}
    assert len(quick.verdicts) == 11 + 6
    whole = Verified(folder / "record.json", "--cache", cache)
    assert whole.code == 0, whole.output
    new = {what: verdict for what, verdict in whole.verdicts.items() if what not in quick.verdicts}
    assert new.pop("speed-ups") == "can't be compared"
    assert set(new) == {
        "weights of the rerun",
        "loss, learning, MACs and memory of the rerun",
        *(f"linear-{labels}-{mode} of the rerun" for labels in (50, 100) for mode in MODES),
    }
    assert set(new.values()) == {"holds"}
    assert "1 record(s): 27 checks hold, 0 do not, 1 can't be compared." in whole.said
    assert {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()} == before


def test_whoever_forges_all_that_is_on_disk_is_found_by_the_rerun(folder: Path, cache: Path) -> None:
    source, _ = read_source(folder)
    assert source is not None
    checked = check_files(folder, None, cache)
    assert checked.spec is not None
    run_data, one = run_data_of(checked.spec, cache), source.evaluations[NAME]
    arrays = read(source.predictions(NAME))
    arrays["scores"] = (arrays["scores"] + 0.2 * np.nan_to_num(arrays["labels"])).astype(np.float32)
    forged(folder, run_data, one, arrays)
    edit(folder / "record.json", lambda r: r["learning"].update(rankme=99.0), forge=True)
    edit_history(folder, lambda lines: lines[0]["selection"].update(overlap=0.5))
    edit_lesions(folder, lambda kept: kept.update(by_area=kept["by_area"] + 0.1))
    quick = Verified(folder, "--quick", "--cache", cache)
    assert quick.code == 0, quick.output
    whole = Verified(folder, "--cache", cache)
    assert whole.code == 1
    assert whole.failing == {"linear-100-pruned of the rerun", "loss, learning, MACs and memory of the rerun"}
    assert whole.verdicts["weights of the rerun"] == "holds"
    assert "learning.rankme: 99 recorded" in whole.said
    assert "lesions.by_area[0]:" in whole.said


def summarised(run_data: Any, one: Any, scores: Any) -> Any:
    """An evaluation like this one that follows from other scores."""
    request = EvaluationRequest(one.run_id, one.key, *how(one))
    subsets = run_data.draws(one.labels, len(one.draws))
    draws = [ScoredDraw(i, s, draw.chosen) for i, s, draw in zip(subsets, scores, one.draws, strict=True)]
    return summarise(request, draws, run_data)


def forged(folder: Path, run_data: Any, one: Any, arrays: dict[str, Any]) -> None:
    """Write the evaluation that follows from these predictions, as the suite does."""
    better, predictions = summarised(run_data, one, arrays["scores"])
    assert better.macro_auroc > one.macro_auroc + 0.05
    Store(folder.parent).write_evaluation(NAME, better, predictions)


def test_other_weights_are_found_where_they_must_be_equal_and_accuracy_decides_elsewhere(
    folder: Path, cache: Path
) -> None:
    spec = check_files(folder, None, cache).spec
    assert spec is not None
    checkpoint = folder / "checkpoint.safetensors"
    fresh = objective_of(spec, None).encoder.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in fresh.items()}, checkpoint)
    edit(folder / "record.json", lambda r: r.update(weights_sha256=file_sha256(checkpoint)), forge=True)
    assert Verified(folder, "--quick", "--cache", cache).code == 0
    here = Verified(folder, "--cache", cache)
    assert here.code == 1
    accuracy = {f"linear-{labels}-pruned from the checkpoint" for labels in (50, 100)}
    assert here.failing >= {"weights of the rerun", *accuracy}
    edit(folder / "record.json", lambda r: r["environment"].update(machine="a Z80, 1 cores"), forge=True)
    there = Verified(folder, "--cache", cache)
    assert there.verdicts["weights of the rerun"] == "can't be compared"
    assert "machine: a Z80, 1 cores recorded" in there.said
    assert there.verdicts["linear-100-pruned of the rerun"] == "holds"
    assert "each in the other's interval" in there.said
    assert (there.code, there.failing) == (1, here.failing - {"weights of the rerun"})


def test_on_another_machine_the_checkpoint_must_have_the_recorded_accuracy(folder: Path, cache: Path) -> None:
    edit(folder / "record.json", lambda r: r["environment"].update(machine="a Z80, 1 cores"), forge=True)
    honest = Verified(folder, "--cache", cache)
    assert honest.code == 0, honest.output
    assert honest.verdicts["linear-50-pruned from the checkpoint"] == "holds"
    assert honest.verdicts["linear-100-pruned from the checkpoint"] == "holds"
    (folder / "checkpoint.safetensors").unlink()
    assert Verified(folder, "--cache", cache).verdicts["accuracy from the checkpoint"] == "can't be compared"


def test_a_record_from_before_validation_patients_were_scored_holds(folder: Path, cache: Path) -> None:
    for path in (folder / "evaluations").glob("*.json"):
        edit(path, lambda one: one.pop("validation"), forge=True)
        edit_predictions(folder, path.stem, lambda a: [a.pop(n) for n in list(a) if n.startswith("validation_")])
    found = Verified(folder, "--cache", cache)
    assert found.code == 0, found.output
    assert found.verdicts[f"{NAME} from its predictions"] == found.verdicts[f"{NAME} of the rerun"] == "holds"


@pytest.mark.parametrize(
    ("conditions", "verdict", "why"),
    [
        ({"machine": "a Z80, 1 cores"}, "holds", "(evaluated elsewhere: machine: a Z80, 1 cores recorded, "),
        ({}, "does not hold", "the scores of the predictions differ"),
    ],
)
def test_an_evaluation_made_elsewhere_is_the_same_but_for_rounding(
    folder: Path, cache: Path, conditions: dict[str, str], verdict: str, why: str
) -> None:
    """Fractions and probes may be asked for on a later day and another machine than the one that trained."""
    source, _ = read_source(folder)
    assert source is not None
    spec, one = check_files(folder, None, cache).spec, source.evaluations[NAME]
    assert spec is not None and one.conditions["machine"]
    arrays = read(source.predictions(NAME))
    scores = arrays["scores"] * np.float32(1 + 1e-4)
    rounded(folder, run_data_of(spec, cache), one, scores, conditions)
    verified = Verified(folder, "--cache", cache)
    assert verified.verdicts["weights of the rerun"] == verified.verdicts[ACCURACY] == "holds"
    assert verified.verdicts[f"{NAME} of the rerun"] == verdict
    assert why in verified.said
    assert verified.code == (verdict != "holds")


def rounded(folder: Path, run_data: Any, one: Any, scores: Any, conditions: dict[str, str]) -> None:
    """Write the evaluation that follows from other scores, as another machine makes them."""
    made, predictions = summarised(run_data, one, scores)
    made = made.model_copy(update={"conditions": {**made.conditions, **conditions}})
    Store(folder.parent).write_evaluation(NAME, made, predictions)


def test_an_evaluation_that_its_own_spec_does_not_ask_for(folder: Path, cache: Path) -> None:
    for path in (folder / EVALUATION, folder / "predictions" / f"{NAME}.npz"):
        path.rename(path.with_name(path.name.replace("linear", "knn")))
    edit(folder / "evaluations" / "knn-100-pruned.json", lambda one: one.update(probe="knn"), forge=True)
    edit(folder / "record.json", lambda r: r["environment"].update(machine="a Z80, 1 cores"))
    verified = Verified(folder, "--cache", cache)
    assert verified.code == 1
    assert verified.verdicts["record.json"] == "does not hold"
    assert verified.verdicts["knn-100-pruned of the rerun"] == "does not hold"
    assert verified.verdicts["linear-50-pruned from the checkpoint"] == "holds"
    assert "a run of this spec has no such evaluation" in verified.said


def test_a_record_without_digests_is_no_mistake(folder: Path, cache: Path) -> None:
    for path in (folder / "record.json", *folder.glob("evaluations/*.json")):
        edit(path, lambda one: [one.pop(key, None) for key in ("digest", "files", "predictions_sha256", "spec_")])
    verified = Verified(folder, "--quick", "--cache", cache)
    assert verified.code == 0
    assert verified.verdicts["record.json"] == verified.verdicts["evaluations"] == "can't be compared"
    assert "no digest" in verified.said
    edit(folder / EVALUATION, lambda one: one.pop("spec"))
    verified = Verified(folder, "--quick", "--cache", cache)
    assert verified.verdicts[ACCURACY] == "can't be compared"
    edit(folder / EVALUATION, lambda one: one.update(macro_auroc="high"))
    assert Verified(folder, "--quick", "--cache", cache).failing == {"evaluations"}


def test_failed_unreadable_and_foreign_records_beside_a_good_one(folder: Path, cache: Path) -> None:
    results = folder.parent
    Store(results).write_record(small.record("failed", status="failed", reason="out of memory"))
    for name in ("broken", "later", "older"):
        shutil.copytree(folder, results / name)
    (results / "broken" / "record.json").write_text("{")
    edit(results / "later" / "record.json", lambda r: r.update(schema_version=9), forge=True)
    edit(results / "older" / "record.json", lambda r: r.update(science_version=0), forge=True)
    verified = Verified(results, "--quick", "--cache", cache)
    assert verified.code == 1
    assert "5 record(s): " in verified.said
    assert "it failed, so there is nothing to compare: out of memory" in verified.said
    assert "can't be read as a record (" in verified.said
    assert "has schema 9, and this code reads 1" in verified.said
    assert f"it was made by science version 0, and this code has science version {SCIENCE_VERSION}" in verified.said
    shutil.rmtree(results / "broken")
    assert Verified(results, "--quick", "--cache", cache).code == 0


def test_no_such_record(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere" / "record.json"):
        verified = Verified(place)
        assert verified.code == 2
        assert verified.stderr.startswith(f"Error: there is no record in {place}: name results/<run id>")
    assert Verified().code == 2


PLUGIN = """
import torch

from methods import Entry
from methods.strategies.selection import Choice, Selection


class Every(Selection):
    def __init__(self, geometry):
        super().__init__(geometry, keep=0.5)

    def choose(self, images, call):
        return Choice(torch.arange(0, self.geometry.patches, 2).expand(len(images), -1))


STRATEGIES = {"every": Entry(":Every", "every other patch", "a test")}
"""


def test_files_and_plugins_that_a_record_needs(world: small.World, registries: None, monkeypatch) -> None:
    from bench.training.data import _load
    from methods import STRATEGIES

    monkeypatch.setattr("bench.analysis.page.write_report", small.light_report)
    plugin, data = world.folder / "every.py", small.make_folder(world.folder / "data")
    plugin.write_text(PLUGIN, encoding="utf-8")
    options = ("--plugin", str(plugin), "--methods", "every", "--labels", "100", "--data", "folder")
    result = world.run(*options, "--data-root", str(data), "--set", "train.batch=8")
    assert result.exit_code == 0, result.output
    (folder,) = (path.parent for path in world.results.glob("*/record.json"))
    del STRATEGIES["every"]

    without = Verified(folder, "--quick", "--cache", world.cache)
    assert without.code == 2
    assert "was made with a plug-in with hash" in without.stderr
    assert "--plugin FILE.py" in without.stderr

    moved = data.rename(world.folder / "moved")
    lost = Verified(folder, "--quick", "--cache", world.cache, "--plugin", plugin)
    assert lost.code == 2
    assert str(data) in lost.stderr
    found = Verified(folder, "--cache", world.cache, "--plugin", plugin, "--data-root", moved)
    assert found.code == 0, found.output
    assert found.verdicts["weights of the rerun"] == found.verdicts["data"] == found.verdicts["MACs"] == "holds"

    _load.cache_clear()  # a process reads data once; a user's next command is another one
    (moved / "images" / "1.png").write_bytes((moved / "images" / "0.png").read_bytes())
    changed = Verified(folder, "--quick", "--cache", world.cache, "--plugin", plugin, "--data-root", moved)
    assert (changed.code, changed.failing) == (1, {"data"})
    assert changed.verdicts["splits, MACs, accuracy"] == "can't be compared"

    del STRATEGIES["every"]
    plugin.write_text(PLUGIN + "# changed\n", encoding="utf-8")
    other = Verified(folder, "--quick", "--cache", world.cache, "--plugin", plugin, "--data-root", moved)
    assert other.code == 2
    assert "give the file that it was made with" in other.stderr


def test_ctrl_c_is_quiet(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.verification.reconstruct.run_experiment", interrupt)
    stopped = Verified(folder, "--cache", cache)
    assert stopped.code == 130
    assert "Traceback" not in stopped.output
    monkeypatch.setattr("bench.verification.stages.run_data_of", interrupt)
    assert Verified(folder, "--cache", cache).code == 130


def test_a_run_that_fails_this_time(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("bench.experiment.pretrain", fails)
    failed = Verified(folder, "--cache", cache)
    assert (failed.code, failed.failing) == (1, {"rerun"})
    assert "out of memory at batch 16" in failed.said


def test_the_record_of_a_real_run_says_how_it_was_evaluated(folder: Path) -> None:
    one = json.loads((folder / EVALUATION).read_bytes())
    assert one["spec"]["labels"] == [100.0]
    assert one["spec"]["probes"] == ["linear"]
    assert one["spec"]["resamples"] == 50
    assert one["finetune"] == {}
