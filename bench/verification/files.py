"""What is verified: a record with all that lies in its folder, and whether the files are those that were written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from bench.records.record import SCHEMA_VERSION, SIDE_FILES, Evaluation, Record
from bench.records.seal import state_of
from bench.records.store import evaluation_name
from bench.specs.frozen import file_sha256
from bench.verification.check import FAILS, HOLDS, OPEN, Check, judged
from datasets.limits import RECORD_BYTES, read_within

Model = TypeVar("Model", Record, Evaluation)
UNSEALED = "no digest: it was written before there were digests, or somebody took it out"


@dataclass(frozen=True)
class Source:
    """A record and its evaluations by the names of their files."""

    folder: Path
    record: Record
    evaluations: dict[str, Evaluation]

    def predictions(self, name: str) -> Path:
        return self.folder / "predictions" / f"{name}.npz"


def folders_of(place: Path) -> list[Path]:
    """The folders of the records that a path names: a run's folder, its record.json, or a results folder. Raises
    FileNotFoundError where there is none."""
    if place.name == "record.json" and place.is_file():
        return [place.parent]
    if (place / "record.json").is_file():
        return [place]
    found = sorted(path.parent for path in place.glob("*/record.json"))
    if not found:
        raise FileNotFoundError(
            f"there is no record in {place}: name results/<run id>, its record.json, or a results folder."
        )
    return found


def read(folder: Path) -> tuple[Source | None, list[Check]]:
    """What is in a run's folder, None where there is no readable record; and whether it is as it was written."""
    record, sealed = _read(Record, folder / "record.json")
    checks = [sealed]
    if record is None:
        return None, checks
    evaluations: dict[str, Evaluation] = {}
    amiss: list[str] = []
    unsealed = 0
    for path in sorted(folder.glob("evaluations/*.json")):
        one, sealed = _read(Evaluation, path)
        if sealed.verdict == FAILS:
            amiss.append(f"{path.name}: {sealed.why}")
        unsealed += sealed.verdict == OPEN
        if one is None:
            continue
        if one.run_id != record.run_id:
            amiss.append(f"{path.name} is of another run, {one.run_id}")
        elif path.stem != evaluation_name(one.probe, one.labels, one.inference):
            amiss.append(f"{path.name} is {evaluation_name(one.probe, one.labels, one.inference)} by its content")
        else:
            evaluations[path.stem] = one
    source = Source(folder, record, evaluations)
    checks.append(_sealed("evaluations", amiss, unsealed, len(evaluations)))
    checks.append(_beside(source))
    return source, checks


def weights(source: Source) -> Check:
    """Is the checkpoint the one that the record names?"""
    what, path = "checkpoint", source.folder / "checkpoint.safetensors"
    if not path.is_file():
        return Check(what, OPEN, "checkpoint.safetensors is not there")
    found, said = file_sha256(path), source.record.weights_sha256
    return judged(what, _other(path, found, said), f"its SHA-256 is weights_sha256, {said[:12]}")


def _read(model: type[Model], path: Path) -> tuple[Model | None, Check]:
    """A sealed file, None where it is not readable as what it should be; and its seal."""
    what = path.name
    try:
        content = read_within(path, RECORD_BYTES)
        plain = json.loads(content)
        state = state_of(plain) if isinstance(plain, dict) else "none"
        schema = plain.get("schema_version", SCHEMA_VERSION) if isinstance(plain, dict) else SCHEMA_VERSION
        if schema != SCHEMA_VERSION and state != "broken":
            return None, Check(what, OPEN, f"schema {schema}; this code reads {SCHEMA_VERSION}")
        read = model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return None, Check(what, FAILS, f"no {model.__name__}: {'.'.join(map(str, first['loc']))}: {first['msg']}")
    except (OSError, ValueError, RecursionError) as error:
        return None, Check(what, FAILS, f"can't be read: {error}")
    why = {"whole": "its digest fits", "broken": "changed after it was written: its digest does not fit"}
    verdicts = {"whole": HOLDS, "broken": FAILS, "none": OPEN}
    return read, Check(what, verdicts[state], why.get(state, UNSEALED))


def _sealed(what: str, amiss: list[str], unsealed: int, count: int) -> Check:
    if not amiss and not count:
        return Check(what, OPEN, "there are none")
    if not amiss and unsealed:
        return Check(what, OPEN, f"{unsealed} of {count}: {UNSEALED}")
    return judged(what, amiss, f"the digests of {count} fit")


def _beside(source: Source) -> Check:
    """Are the other files those that were written?"""
    what, amiss, named = "files beside them", _changed(source), _named(source)
    unnamed = [path.name for path, said in named.items() if not said]
    unnamed += [name for name in SIDE_FILES if source.folder / name not in named and (source.folder / name).is_file()]
    if not amiss and (unnamed or not named):
        why = f"nobody recorded the SHA-256 of {unnamed[0]}" if unnamed else "there are none"
        return Check(what, OPEN, f"{why}{f', and {len(unnamed) - 1} more' if len(unnamed) > 1 else ''}")
    return judged(what, amiss, f"each of {len(named)} has the SHA-256 that is recorded")


def _named(source: Source) -> dict[Path, str]:
    """The other files, and the SHA-256 that is recorded; "" by an earlier version."""
    named = {source.folder / name: said for name, said in source.record.files.items()}
    return named | {source.predictions(name): one.predictions_sha256 for name, one in source.evaluations.items()}


def _changed(source: Source) -> list[str]:
    """What of the other files is missing or not what was written."""
    found: list[str] = []
    for path, said in _named(source).items():
        if not path.is_file():
            found.append(f"{path.name} is not there")
        elif said:
            found += _other(path, file_sha256(path), said)
    return found


def _other(path: Path, found: str, said: str) -> list[str]:
    return [] if found == said else [f"SHA-256 of {path.name}: {said[:12]} recorded, {found[:12]} found"]
