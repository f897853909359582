"""What can be tampered with in a run's folder: found by the digest, or without training where that is forged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.specs.frozen import file_sha256
from bench.verification.files import read as read_source
from bench.verification.stages import check_files
from tests.bench.verification.tampering import edit, edit_history, edit_predictions, renew_hash

NAME = "linear-100-pruned"
ACCURACY = f"{NAME} from its predictions"
EVALUATION = f"evaluations/{NAME}.json"
SPEC = "spec and run id"


@pytest.fixture
def failing(folder: Path, cache: Path) -> Callable[[], dict[str, str]]:
    """Without training: what does not hold of the folder, and why."""

    def find() -> dict[str, str]:
        return {one.what: one.why for one in check_files(folder, None, cache).checks if one.verdict == "does not hold"}

    return find


RECORD = {
    "seed": (lambda r: r["spec"].update(seed=1), SPEC),
    "learning rate": (lambda r: r["spec"]["train"].update(lr=0.5), SPEC),
    "a spec that is none": (lambda r: r["spec"]["train"].update(batch="many"), SPEC),
    "run id": (lambda r: r.update(run_id="another"), SPEC),
    "method": (lambda r: r.update(method="simclr/dense", strategy="dense"), SPEC),
    "keep": (lambda r: r.update(keep=0.1), SPEC),
    "settings": (lambda r: r.update(settings="0123456789"), SPEC),
    "evidence": (lambda r: r.update(evidence=True), SPEC),
    "fingerprint": (lambda r: r["data"].update(fingerprint="0" * 64), "data"),
    "notes": (lambda r: r["data"].update(notes=["All is well."]), "data"),
    "splits' count": (lambda r: r["splits"]["test"].update(patients=16), "splits"),
    "splits' positives": (lambda r: r["splits"]["train"]["positives"].update(nodule=0), "splits"),
    "a split's hash": (lambda r: r["splits"]["val"].update(hash="0" * 64), "splits"),
    "MACs": (lambda r: r["macs"].update(inference=0.9 * r["macs"]["inference"]), "MACs"),
    "MACs of the run": (lambda r: r["macs"].update(whole_run=0.99 * r["macs"]["whole_run"]), "MACs"),
    "no MACs": (lambda r: r.update(macs=None), "MACs"),
    "keep that is used": (lambda r: r.update(keep_effective=0.4), "MACs"),
    "training by masks": (lambda r: r.update(train_execution="masked"), "MACs"),
    "final loss": (lambda r: r["learning"].update(final_loss=0.1), "history"),
    "steps": (lambda r: r["time"].update(steps=400), "history"),
    "weights": (lambda r: r.update(weights_sha256="0" * 64), "checkpoint"),
}


@pytest.mark.parametrize("what", RECORD)
def test_a_forged_record_is_found_without_training(folder: Path, failing, what: str) -> None:
    change, row = RECORD[what]
    edit(folder / "record.json", change, forge=True)
    assert row in failing()


@pytest.mark.parametrize("what", RECORD)
def test_a_record_edited_by_hand_breaks_its_digest(folder: Path, what: str) -> None:
    edit(folder / "record.json", RECORD[what][0])
    _, checks = read_source(folder)
    assert (checks[0].what, checks[0].verdict) == ("record.json", "does not hold")


EVALUATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "AUROC": lambda e: e.update(macro_auroc=e["macro_auroc"] + 0.01),
    "AUPRC": lambda e: e.update(macro_auprc=e["macro_auprc"] + 0.01),
    "interval": lambda e: e.update(interval=[e["macro_auroc"] - 0.001, e["macro_auroc"] + 0.001]),
    "a finding's AUROC": lambda e: e["per_label"]["nodule"].update(auroc=0.99),
    "a finding's interval": lambda e: e["per_label"]["nodule"].update(auroc_interval=[0.98, 1.0]),
    "a finding's positives": lambda e: e["per_label"]["nodule"].update(positives=100),
    "a finding left out": lambda e: (e["per_label"].pop("nodule"), e["undefined"].update(nodule="bad luck")),
    "a draw": lambda e: e["draws"][0].update(macro_auroc=0.9),
    "labelled images": lambda e: e["draws"][0]["subset"].update(hash="0" * 64),
    "labelled patients": lambda e: e["draws"][0]["subset"].update(patients=1),
    "spread over draws": lambda e: e.update(draw_std=0.5),
    "accuracy on validation patients": lambda e: e["validation"].update(nodule=0.9),
    "subgroups": lambda e: e["subgroups"].update(sex={"F": 0.9, "M": 0.1}),
    "patients": lambda e: e.update(n_patients=1000),
    "settings": lambda e: e.update(settings="0123456789"),
    "how": lambda e: e["spec"].update(c=[1.0]),
    "a split it is not about": lambda e: (e["spec"].update(split="val"), e.update(split="val")),
    "a spec that is none": lambda e: e["spec"].update(draws=-1),
}


@pytest.mark.parametrize("what", EVALUATIONS)
def test_a_forged_evaluation_is_found_by_its_predictions(folder: Path, failing, what: str) -> None:
    edit(folder / EVALUATION, EVALUATIONS[what], forge=True)
    assert set(failing()) == {ACCURACY}


@pytest.mark.parametrize("what", EVALUATIONS)
def test_an_evaluation_edited_by_hand_breaks_its_digest(folder: Path, what: str) -> None:
    edit(folder / EVALUATION, EVALUATIONS[what])
    _, checks = read_source(folder)
    assert [(one.what, one.verdict) for one in checks if one.verdict != "holds"] == [("evaluations", "does not hold")]
    assert f"{NAME}.json was changed after it was written" in checks[1].why


PREDICTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "scores": (lambda a: a.update(scores=1 - a["scores"]), "macro_auroc: "),
    "labels": (lambda a: a.update(labels=1 - a["labels"]), "the predictions are for other labels than the data"),
    "patients": (
        lambda a: a.update(patients=a["patients"][::-1]),
        "the predictions are for other patients than the data",
    ),
    "images": (lambda a: a.update(index=a["index"] + 1), "the predictions are for other images than the data"),
    "validation scores": (lambda a: a.update(validation_scores=1 - a["validation_scores"]), "validation.nodule: "),
    "validation labels": (
        lambda a: a.update(validation_labels=1 - a["validation_labels"]),
        "the predictions are for other validation labels than the data",
    ),
    "no validation labels": (lambda a: a.pop("validation_labels"), "has no array 'validation_labels'"),
    "validation images left out": (
        lambda a: a.update(validation_scores=a["validation_scores"][:, 1:]),
        "validation_scores are float32",
    ),
    "validation forgotten": (
        lambda a: [a.pop(name) for name in list(a) if name.startswith("validation_")],
        "validation.nodule",
    ),
    "a draw more": (lambda a: a.update(scores=np.repeat(a["scores"], 2, 0)), "1 draws were asked for"),
    "images left out": (lambda a: a.update(scores=a["scores"][:, 1:]), "scores are float32"),
    "whole numbers": (lambda a: a.update(scores=a["scores"].astype(int)), "scores are int64"),
    "no scores": (lambda a: a.pop("scores"), "has no array 'scores'"),
    "scores that are none": (lambda a: a.update(scores=a["scores"] * np.nan), "no finding can be scored"),
    "pickled objects": (lambda a: a.update(scores=np.array([{}], dtype=object)), "holds pickled Python objects"),
}


@pytest.mark.parametrize("what", PREDICTIONS)
def test_forged_predictions_are_found_by_their_evaluation(folder: Path, failing, what: str) -> None:
    change, why = PREDICTIONS[what]
    edit_predictions(folder, NAME, change)
    found = failing()
    assert set(found) == {ACCURACY}
    assert why in found[ACCURACY]


def test_predictions_that_are_no_file_of_ours(folder: Path, failing) -> None:
    path = folder / "predictions" / f"{NAME}.npz"
    path.write_bytes(b"no archive")
    assert set(failing()) == {"other files", ACCURACY}
    renew_hash(folder, NAME)
    found = failing()
    assert set(found) == {ACCURACY}
    assert f"{path} is damaged or not an .npz archive" in found[ACCURACY]
    path.unlink()
    assert failing() == {"other files": f"{NAME}.npz is not there, although it is recorded"}


def test_a_forged_history_and_forged_weights(folder: Path, failing) -> None:
    edit_history(folder, lambda lines: lines[-1].update(loss=0.1))
    assert set(failing()) == {"history"}
    edit_history(folder, lambda lines: lines.append(lines[0]))
    assert "lines: 1 recorded, 2 found" in failing()["history"] or "lines: 2 recorded, 1 found" in failing()["history"]
    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.write_bytes(b"no weights")
    assert "checkpoint" in failing()
    edit(folder / "record.json", lambda r: r.update(weights_sha256=file_sha256(checkpoint)), forge=True)
    assert "checkpoint" not in failing()
    assert "checkpoint.safetensors does not fit the network" in failing()["MACs"]


def test_files_that_changed_without_a_new_hash(folder: Path) -> None:
    for name in ("history.jsonl", "selection.npz", f"predictions/{NAME}.npz"):
        with open(folder / name, "ab") as file:
            file.write(b" ")
    _, checks = read_source(folder)
    assert checks[2].verdict == "does not hold"
    for name in ("history.jsonl", "selection.npz", f"{NAME}.npz"):
        assert f"{name} is not the file that was recorded (SHA-256 " in checks[2].why


def test_evaluations_of_other_runs_and_names(folder: Path) -> None:
    path = folder / EVALUATION
    shutil.copy(path, path.with_name("linear-1-pruned.json"))
    edit(path, lambda one: one.update(run_id="another"), forge=True)
    _, checks = read_source(folder)
    assert "linear-1-pruned.json is linear-100-pruned by its content" in checks[1].why
    assert f"{NAME}.json is an evaluation of another run, another" in checks[1].why
