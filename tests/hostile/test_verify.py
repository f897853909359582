"""Records that somebody, or a disk, has been at: `bench.verify` says what does not hold, and looks at the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from datasets.limits import PLUGIN_BYTES
from tests.bench import small
from tests.damage import Damage, cut, folder, huge, pipe, put, zero
from tests.hostile.harness import Commands, check
from tests.hostile.test_records import other_weights, pickled_weights

GOOD = "z-good"
RECORD, HISTORY, WEIGHTS = "record.json", "history.jsonl", "checkpoint.safetensors"
EVALUATION, PREDICTIONS = "evaluations/linear-100-pruned.json", "predictions/linear-100-pruned.npz"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The folder of a finished run that cost can be measured of."""
    made = Commands(tmp_path_factory.mktemp("verified"), cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.grid.plan.cores", lambda: 1)
        small.count_once(patch)
        done = made.run("--methods", "sparsecontrast")
    assert done.exit_code == 0, done.output
    (path,) = (made.folder / "results").glob("*/record.json")
    return path.parent


@pytest.fixture
def run(bench: Commands, trained: Path) -> Path:
    """A copy of it to be damaged; one that is whole comes after it."""
    for name in (trained.name, GOOD):
        shutil.copytree(trained, bench.folder / "results" / name)
    return bench.folder / "results" / trained.name


def verify(bench: Commands, *options: str | Path) -> Result:
    from bench.verify import app

    return bench.invoke(app, [*map(str, options), "--cache", str(bench.cache)])


def said(**fields: Any) -> Damage:
    """Fields of a JSON file, dotted with `__`, as who takes its digest out sets them."""

    def do(path: Path) -> None:
        values = json.loads(path.read_text()) | {"digest": ""}
        for key, value in fields.items():
            *above, last = key.split("__")
            at = values
            for part in above:
                at = at[part]
            at[last] = value
        path.write_text(json.dumps(values))

    return do


def elsewhere(path: Path) -> None:
    """The record names a file that is none of the run's."""
    said(files={"../../home/thesis.txt": "0" * 64})(path)


NO_EPOCH = "line 1 is not an epoch of a history"
# id: (file, what is done to it, what is said of it, exit code)
BAD: dict[str, tuple[str, Damage, str, int]] = {
    "record: nothing in it": (RECORD, put(b""), "can't be read", 1),
    "record: nested without end": (RECORD, put(b"[" * 100_000), "can't be read", 1),
    "record: a list": (RECORD, put(b"[1]"), "can't be read as a record (Input should be an object)", 1),
    "record: a pipe": (RECORD, pipe, "it is not a regular file", 1),
    "record: a link to a device": (RECORD, zero, "it is not a regular file", 1),
    "record: larger than one can be": (RECORD, huge, "the limit is 67,108,864", 1),
    "record: conditions that are none": (
        RECORD,
        said(environment__also_trained_under=None),
        "must be a list of cond",
        1,
    ),
    "record: conditions of another kind": (
        RECORD,
        said(environment__also_trained_under=[5]),
        "must be a list of cond",
        1,
    ),
    "record: threads without end": (
        RECORD,
        said(environment__threads=2**40),
        "must be a whole number from 1 to 1024",
        1,
    ),
    "record: no thread": (RECORD, said(environment__threads=0), "must be a whole number from 1 to 1024", 1),
    "record: threads in words": (RECORD, said(environment__threads="two"), "must be a whole number from 1 to 1024", 1),
    "record: versions that are none": (RECORD, said(environment__versions=5, environment__commit=[]), "no digest", 0),
    "record: a file elsewhere": (RECORD, elsewhere, "files: ", 1),
    "record: no data, no MACs, no learning": (RECORD, said(data=None, macs=None, learning=None), "does not hold", 1),
    "record: another method": (RECORD, said(method="simclr/dense"), "method: simclr/dense recorded", 1),
    "record: a spec of nothing": (RECORD, said(spec={}), "spec.method: Field required", 1),
    "record: data that nobody has": (RECORD, said(spec__data__name="mine", run_id="x"), "x recorded", 1),
    "record: a plug-in's": (RECORD, said(spec__code="0" * 16, run_id="x"), "x recorded", 1),
    "evaluation: nested without end": (EVALUATION, put(b"[" * 100_000), "can't be read", 1),
    "evaluation: conditions that are none": (EVALUATION, said(conditions=5), "conditions: ", 1),
    "evaluation: of no draw": (EVALUATION, said(draws=[]), "2 draws were asked for|1 draws were asked for", 1),
    "evaluation: how, in words": (EVALUATION, said(spec={"draws": "many"}), "does not hold", 1),
    "evaluation: of another way": (EVALUATION, said(inference="dense"), "is linear-100-dense by its content", 1),
    "predictions: cut in half": (PREDICTIONS, cut, "does not hold", 1),
    "history: a number": (HISTORY, put(b"5\n"), NO_EPOCH, 1),
    "history: pairs": (HISTORY, put(b"[[1, 2]]\n"), NO_EPOCH, 1),
    "history: nested without end": (HISTORY, put(b"[" * 100_000 + b"\n"), NO_EPOCH, 1),
    "history: nested deep": (HISTORY, put(b'{"loss": ' + b"[" * 900 + b"]" * 900 + b"}\n"), NO_EPOCH, 1),
    "history: a loss of text": (HISTORY, put(b'{"loss": "low"}\n'), NO_EPOCH, 1),
    "history: no UTF-8": (HISTORY, put(b"\xff\n"), "can't be read", 1),
    "history: a folder": (HISTORY, folder, "is not there", 1),
    "weights: cut in half": (WEIGHTS, cut, "checkpoint.safetensors is not the file that was recorded", 1),
    "weights: of another network": (
        WEIGHTS,
        other_weights,
        "checkpoint.safetensors is not the file that was recorded",
        1,
    ),
    "weights: a pickle": (WEIGHTS, pickled_weights, "checkpoint.safetensors is not the file that was recorded", 1),
}


@pytest.mark.parametrize(("file", "do", "says", "code"), BAD.values(), ids=BAD)
def test_a_bad_record_is_told_and_the_next_is_looked_at(
    bench: Commands, run: Path, file: str, do: Damage, says: str, code: int
) -> None:
    do(run / file)
    looked = verify(bench, bench.folder / "results", "--quick")
    assert looked.exception is None or isinstance(looked.exception, SystemExit), repr(looked.exception)
    assert looked.exit_code == code, looked.output
    flat = " ".join(looked.output.split())
    assert any(one in flat for one in says.split("|")), flat
    assert GOOD in flat and "2 record(s): " in flat


def test_what_the_user_has_to_mend_of_one_record_hides_no_other(bench: Commands, run: Path) -> None:
    from bench.specs.run_spec import RunSpec

    plain = json.loads((run / RECORD).read_text())
    spec = RunSpec.model_validate(plain["spec"]).model_copy(update={"code": "0" * 16})
    said(spec=spec.model_dump(mode="json"), run_id=spec.run_id)(run / RECORD)
    looked = verify(bench, bench.folder / "results", "--quick")
    assert looked.exit_code == 2
    (line,) = looked.stderr.strip().splitlines()
    assert line.startswith(f"Error: {run.name}: the record {spec.run_id} was made with a plug-in with hash")
    assert GOOD in looked.output and "holds" in looked.output


def test_whatever_a_check_fails_with_the_next_record_is_checked(bench: Commands, run: Path, monkeypatch) -> None:
    from bench.verification import stages as module

    check_files = module.check_files

    def odd(place: Path, *rest: Any) -> Any:
        if place.name != GOOD:
            raise TypeError("an odd \x1b[2J one")
        return check_files(place, *rest)

    monkeypatch.setattr(module, "check_files", odd)
    looked = verify(bench, bench.folder / "results", "--quick")
    assert looked.exit_code == 1
    assert r"checking it failed with TypeError: an odd \x1b[2J one" in looked.output
    assert GOOD in looked.output


def test_a_plug_in_larger_than_one_can_be(bench: Commands, run: Path) -> None:
    plugin = bench.write("mine.py", b"#" * (PLUGIN_BYTES + 1))
    check(verify(bench, run, "--plugin", plugin), "mine.py has 1,048,577 bytes, but the limit is 1,048,576")
