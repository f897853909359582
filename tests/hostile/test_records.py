"""A results folder that somebody, or a disk, has been at: what bench.report and bench.run say to it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.analysis.judge.scores import Scores
from bench.analysis.read import frames
from bench.analysis.read.groups import ReportRefused
from bench.analysis.read.results import group_runs, read_runs
from bench.analysis.show import accuracy_tables, difference_tables, run_tables, settings_tables
from tests.bench.analysis.synthetic import Method, World, write_run
from tests.damage import Damage, cut, folder, huge, pipe, put, zero
from tests.hostile.harness import Commands, check
from tests.hostile.test_archives import header, zipped
from tests.hostile.test_pickles import Bomb

RUN = "simclr-dense-phantom-s0-quick"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of two methods, all right."""
    folder = tmp_path_factory.mktemp("whole")
    world = World(patients=40, seeds=(0,), draws=1, fractions={10.0: 0.8}, probes=("linear",))
    for method in (Method("simclr/dense", 0.8), Method("simclr/sparsecontrast", 0.8, 0.5)):
        write_run(folder, world, method, 0)
    images = np.zeros((2, 8, 8), np.uint8)
    np.savez(
        folder / RUN / "selection.npz", images=images, kept=images[:, :4, :4] > 0, labels=images[:, 0, :5], rule="r"
    )
    kept = {"share": np.full(5, 0.5), "by_area": np.full(5, 0.6), "images": np.full(5, 40), "patients": np.full(5, 20)}
    np.savez(folder / RUN / "lesions.npz", pseudo=np.full((5, 3, 40), 0.1), **kept)
    return folder


@pytest.fixture
def damaged(bench: Commands, whole: Path) -> Commands:
    shutil.rmtree(bench.folder / "results")
    shutil.copytree(whole, bench.folder / "results")
    return bench


def change(**fields: Any) -> Damage:
    """Fields of a JSON file, dotted with `__`; None drops one."""

    def do(path: Path) -> None:
        values = json.loads(path.read_text())
        for key, value in fields.items():
            *above, last = key.split("__")
            at = values
            for part in above:
                at = at[part]
            at.pop(last, None)
            if value is not None:
                at[last] = value
        path.write_text(json.dumps(values))

    return do


def resave(**arrays: Any) -> Damage:
    def do(path: Path) -> None:
        with np.load(path) as saved:
            values = {**saved, **arrays}
        np.savez(path, **{key: value for key, value in values.items() if value is not None})

    return do


def pickled(path: Path) -> None:
    resave(scores=np.array([[[Bomb(path.parents[3] / "went_off")]]], object))(path)


def bomb(path: Path) -> None:
    path.write_bytes(zipped({"scores.npy": header((2**32,), more=bytes(1000)), "labels.npy": b"", "patients.npy": b""}))
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\x01\x02") + 24  # the unpacked size of the first member, in the directory
    content[at : at + 4] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(content)


RECORD, HISTORY = "record.json", "history.jsonl"
EVALUATION, PREDICTIONS = "evaluations/linear-10-pruned.json", "predictions/linear-10-pruned.npz"
NO_RECORD, AGAIN = "record.json can't be read as a record .*move it away", "run it again, or move its folder away"
# id: (file, what is done to it, what the message says)
BAD: dict[str, tuple[str, Damage, str]] = {
    "record: nothing in it": (RECORD, put(b""), NO_RECORD),
    "record: cut in half": (RECORD, cut, NO_RECORD),
    "record: no JSON": (RECORD, put(b"record"), NO_RECORD),
    "record: a list": (RECORD, put(b"[1, 2]"), NO_RECORD),
    "record: a number": (RECORD, put(b"5"), NO_RECORD),
    "record: no UTF-8": (RECORD, put(b'{"a": "\xff"}'), NO_RECORD),
    "record: half a character": (RECORD, put(b'{"run_id": "\\ud800"}'), NO_RECORD),
    "record: nested without end": (RECORD, put(b"[" * 10_000), NO_RECORD),
    "record: a pickle": (RECORD, put(pickle.dumps({"run_id": "x"})), NO_RECORD),
    "record: larger than one can be": (RECORD, huge, "the limit is 67,108,864.*move it away"),
    "record: a folder": (RECORD, folder, "record.json can't be read as a record"),
    "record: a pipe": (RECORD, pipe, "record.json can't be read as a record"),
    "record: a link to a device": (RECORD, zero, "record.json can't be read as a record"),
    "record: of another schema": (RECORD, change(schema_version=99), "has schema 99, and this code reads 1: move it"),
    "record: a field too many": (RECORD, change(colour="red"), "colour: Extra inputs"),
    "record: a field too few": (RECORD, change(method=None), "method: Field required"),
    "record: text for a number": (RECORD, change(macs__inference="many"), "macs.inference: .*valid number"),
    "record: nan": (RECORD, change(macs__inference=float("nan")), "macs.inference: .*finite number"),
    "record: infinity": (RECORD, change(learning__final_loss=float("inf")), "final_loss: .*finite number"),
    "record: a status of its own": (RECORD, change(status="perfect"), "status: .*'done' or 'failed'"),
    "record: a seed in words": (RECORD, change(spec__seed="zero"), r"spec.seed: .*valid integer"),
    "record: an image size in words": (RECORD, change(spec__encoder__image_size="big"), "spec.encoder.image_size"),
    "record: an encoder that is a text": (RECORD, change(spec__encoder="vit"), "spec.encoder: "),
    "record: a spec that is a list": (RECORD, change(spec=[]), "spec: Input should be an object"),
    "record: a learning rate in words": (RECORD, change(spec__train__lr="low"), "spec.train.lr: .*valid number"),
    "record: a learning rate of nan": (RECORD, change(spec__train__lr=float("nan")), "spec.train.lr: .*finite number"),
    "record: other findings": (
        RECORD,
        change(data__label_names=["a"]),
        "differ in - the findings: a in",
    ),
    "record: other data": (
        RECORD,
        change(data__fingerprint="e" * 64),
        "the data.s fingerprint: e+ in",
    ),
    "evaluation: nothing in it": (EVALUATION, put(b""), "can't be read as an evaluation"),
    "evaluation: cut in half": (EVALUATION, cut, "can't be read as an evaluation"),
    "evaluation: nan": (EVALUATION, change(macro_auroc=float("nan")), "macro_auroc: .*finite number"),
    "evaluation: text for a number": (EVALUATION, change(macro_auroc="high"), "macro_auroc: .*valid number"),
    "evaluation: a probe of its own": (EVALUATION, change(probe="oracle"), "probe: .*'linear', 'knn' or 'finetune'"),
    "evaluation: no draws": (EVALUATION, change(draws=[]), "linear-10-pruned.json has no draw: run it again, or move"),
    "predictions: no draws": (PREDICTIONS, resave(scores=np.zeros((0, 80, 5), "f4")), f"does not hold.*{AGAIN}"),
    "predictions: nothing in them": (PREDICTIONS, put(b""), f"is damaged or not an .npz archive.*{AGAIN}"),
    "predictions: cut in half": (PREDICTIONS, cut, f"is damaged.*{AGAIN}"),
    "predictions: no scores": (PREDICTIONS, resave(scores=None), f"has no array 'scores'.*{AGAIN}"),
    "predictions: of another shape": (PREDICTIONS, resave(scores=np.zeros((1, 3, 5), "f4")), f"does not hold.*{AGAIN}"),
    "predictions: of fewer findings": (
        PREDICTIONS,
        resave(scores=np.zeros((1, 80, 2), "f4")),
        f"does not hold.*{AGAIN}",
    ),
    "predictions: of text": (PREDICTIONS, resave(scores=np.full((1, 80, 5), "a")), f"does not hold scores.*{AGAIN}"),
    "predictions: patients by number": (PREDICTIONS, resave(patients=np.arange(80)), f"does not hold.*{AGAIN}"),
    "predictions: of other patients": (
        PREDICTIONS,
        resave(patients=np.array([f"q{i}" for i in range(80)])),
        "holds other test patients",
    ),
    "predictions: pickled objects": (
        PREDICTIONS,
        pickled,
        "pickled Python objects in 'scores', which are never loaded",
    ),
    "predictions: a bomb": (PREDICTIONS, bomb, f"(holds another number of bytes|is damaged).*{AGAIN}"),
    "history: no JSON": (
        HISTORY,
        put(b"epoch 1\n"),
        "history.jsonl is not a history of epochs .line 1 .*: delete it, or run it again",
    ),
    "history: a list": (HISTORY, put(b"[1, 2]\n"), "is not a history of epochs"),
    "history: a loss in words": (HISTORY, put(b'{"epoch": 1, "loss": "low"}\n'), "is not a history of epochs"),
    "history: no UTF-8": (HISTORY, put(b"\xff\n"), "is not a history of epochs"),
    "selection: nothing in it": ("selection.npz", put(b""), "selection.npz is damaged.*delete it, or rerun the run"),
    "selection: no rule": ("selection.npz", resave(rule=None), "has no array 'rule'.*delete it, or rerun the run"),
    "selection: of another shape": ("selection.npz", resave(images=np.zeros(9, np.uint8)), "does not hold images and"),
    "selection: of no patches": ("selection.npz", resave(kept=np.zeros((2, 0, 0), bool)), "does not hold images and"),
    "selection: frames of another shape": (
        "selection.npz",
        resave(frames=np.zeros((2, 2), int)),
        "does not hold images and",
    ),
    "lesions: nothing in it": ("lesions.npz", put(b""), "lesions.npz is damaged.*delete it, or rerun the run"),
    "lesions: no areas": ("lesions.npz", resave(by_area=None), "has no array 'by_area'.*delete it, or rerun the run"),
    "lesions: of two findings": ("lesions.npz", resave(pseudo=np.zeros((2, 3, 40))), "does not hold what is kept of 5"),
    "lesions: numbers of images with fractions": (
        "lesions.npz",
        resave(images=np.full(5, np.nan)),
        "does not hold what is kept of 5",
    ),
    "lesions: of no patients in a flat list": (
        "lesions.npz",
        resave(pseudo=np.zeros(15)),
        "does not hold what is kept of 5",
    ),
    "lesions: in words": ("lesions.npz", resave(images=np.array(["a"] * 5)), "does not hold what is kept of 5"),
    "cost: nothing in it": ("../cost/a.json", put(b""), "a.json can't be read as a cost table"),
    "cost: a list": ("../cost/a.json", put(b"[]"), "a.json can't be read as a cost table"),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn of what is all right; these are about what is not."""
    for name in ("label_efficiency", "trade_off"):
        monkeypatch.setattr(f"bench.analysis.show.plots.{name}", lambda *arguments: False)


@pytest.mark.parametrize(("file", "do", "says"), BAD.values(), ids=BAD)
def test_report(damaged: Commands, quick: None, file: str, do: Damage, says: str) -> None:
    path = damaged.folder / "results" / RUN / file
    path.parent.mkdir(exist_ok=True)
    do(path)
    check(damaged.report(), says, code=1)


def test_the_good_one_is_good(damaged: Commands) -> None:
    """Else every case above could fail for another reason. And a report leaves alone what is not its own."""
    mine = damaged.write("reports/figures/my-photo.png", b"mine")
    damaged.write("reports/figures/notes.txt", b"mine")
    done = damaged.report()
    assert done.exit_code == 0, done.output + done.stderr
    again = damaged.folder / "reports" / "figures" / "9-old-data-labels.png"
    again.write_bytes(b"of an earlier report")
    from bench.analysis.page import write_report

    write_report(damaged.folder / "results", damaged.folder / "reports")
    assert mine.read_bytes() == b"mine" and not again.exists()


JUNK: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.just([])
    | st.just({})
    | st.just([1])
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return (
        [path, *(found for key, one in inner for found in places(one, (*path, key)))]
        if path
        else [found for key, one in inner for found in places(one, (key,))]
    )


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(file=st.sampled_from([RECORD, EVALUATION]), value=JUNK, drop=st.booleans(), choice=st.floats(0, 0.999))
def test_any_value_anywhere_is_reported_on_or_refused(
    damaged: Commands, whole: Path, file: str, value: Any, drop: bool, choice: float
) -> None:
    """A value of any kind in any place of a record or an evaluation: it is read, or refused by name."""
    for name in (RECORD, EVALUATION):
        shutil.copyfile(whole / RUN / name, damaged.folder / "results" / RUN / name)
    values = json.loads((whole / RUN / file).read_text())
    every = places(values)
    path = every[int(choice * len(every))]
    at = values
    for key in path[:-1]:
        at = at[key]
    if drop:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    (damaged.folder / "results" / RUN / file).write_text(json.dumps(values))
    try:
        runs = read_runs(damaged.folder / "results")
        frames.results_frame(runs).to_csv()
        for group in group_runs(runs):
            assert group.title and group.seeds
            frames.history_frame(group)
            (
                run_tables.macs(group),
                run_tables.learning(group),
                run_tables.selection(group),
                run_tables.counts(group),
            )
            settings_tables.settings(group, None), settings_tables.hyperparameters(group)
            for scores in (Scores(group, probe) for probe in group.probes):
                if scores.fractions:
                    (
                        accuracy_tables.accuracy(scores),
                        difference_tables.differences(scores, "dense"),
                        accuracy_tables.precision(scores),
                    )
                    accuracy_tables.per_finding(scores), accuracy_tables.subgroups(scores)
    except ReportRefused as refused:
        assert RUN in str(refused) or "simclr" in str(refused)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A finished run."""
    made = Commands(tmp_path_factory.mktemp("trained"), cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.grid.plan.cores", lambda: 1)
        done = made.run()
    assert done.exit_code == 0, done.output
    return made.folder / "results"


def without_evaluations(do: Damage) -> Damage:
    def both(path: Path) -> None:
        shutil.rmtree(path.parent / "evaluations")
        do(path)

    return both


def other_weights(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"vit.cls_token": torch.zeros(1, 1, 7)}, path)


def pickled_weights(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.parents[2] / "went_off")))


WEIGHTS = "checkpoint.safetensors"
AFTER: dict[str, tuple[str, Damage, str, int]] = {
    "record: nothing in it": (RECORD, put(b""), "record.json can't be read as a record .*move it away", 2),
    "record: cut in half": (RECORD, cut, "record.json can't be read as a record .*move it away", 2),
    "record: of another schema": (RECORD, change(schema_version=99), "has schema 99, and this code reads 1", 2),
    "record: edited by hand": (RECORD, change(keep=0.9), "was changed after it was written .*put the original back", 2),
    "record: a folder": (RECORD, folder, "record.json can't be read as a record .it is not a regular file.: ", 2),
    "record: larger than one can be": (RECORD, huge, "record.json has .* bytes, but the limit is", 2),
    "weights: cut in half": (WEIGHTS, without_evaluations(cut), "trained, but not evaluated", 1),
    "weights: nothing in them": (WEIGHTS, without_evaluations(put(b"")), "trained, but not evaluated", 1),
    "weights: of another network": (WEIGHTS, without_evaluations(other_weights), "trained, but not evaluated", 1),
    "weights: a pickle": (WEIGHTS, without_evaluations(pickled_weights), "trained, but not evaluated", 1),
    "weights: gone": (WEIGHTS, without_evaluations(Path.unlink), "trained, but not evaluated", 1),
}


@pytest.mark.parametrize(("file", "do", "says", "code"), AFTER.values(), ids=AFTER)
def test_run_again(bench: Commands, trained: Path, file: str, do: Damage, says: str, code: int) -> None:
    shutil.rmtree(bench.folder / "results")
    shutil.copytree(trained, bench.folder / "results", ignore=shutil.ignore_patterns(".*"))
    (run,) = [path for path in (bench.folder / "results").iterdir() if (path / RECORD).exists()]
    do(run / file)
    check(bench.run(), (run.name, says), code)
