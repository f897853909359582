"""Seals of records: what breaks one and what does not, and what a sealed file is read as."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.records.record import CostTable, Evaluation, Record
from bench.records.seal import digest_of, read_sealed, seal, sha256, state_of
from bench.records.store import as_json
from bench.specs.frozen import file_sha256
from tests.bench.small import evaluation, record
from tests.damage import Damage, folder, huge, put

KNOWN = '{"a":[1,2.5],"b":{"x":null,"y":"\\u00e9"}}'


def test_the_digest_is_that_of_the_canonical_json_of_all_other_fields() -> None:
    plain = {"digest": "anything", "b": {"y": "é", "x": None}, "a": [1, 2.5]}
    assert digest_of(plain) == hashlib.sha256(KNOWN.encode()).hexdigest()


@pytest.mark.parametrize("model", [record(), evaluation("a", "s", value=1 / 3)])
def test_what_is_sealed_is_whole_when_it_is_read_again_however_it_is_laid_out(model) -> None:
    sealed = seal(model)
    plain = json.loads(as_json(sealed))
    assert state_of(plain) == "whole"
    assert state_of(dict(reversed(plain.items()))) == "whole"
    assert sealed.model_copy(update={"digest": ""}) == model
    assert state_of(json.loads(as_json(model))) == "none"


@pytest.mark.parametrize(
    "change",
    [
        {"macro_auroc": 0.5000001},
        {"interval": [0.4, 0.61]},
        {"settings": None},
        {"more": 1},
        {"macro_auroc": float("nan")},
        {"digest": "0" * 64},
        {"digest": 5},
    ],
)
def test_a_changed_field_breaks_the_seal(change: dict) -> None:
    plain = json.loads(as_json(seal(evaluation("a", "s"))))
    assert state_of({**plain, **change}) == "broken"


def test_a_field_taken_out_breaks_the_seal() -> None:
    plain = json.loads(as_json(seal(record())))
    del plain["reason"]
    assert state_of(plain) == "broken"


def test_hash_of_a_file(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == sha256(b"abc") == hashlib.sha256(b"abc").hexdigest()


TABLE = CostTable(rows=(), environment={}, started="2024-01-01T00:00:00+00:00", finished="2024-01-01T00:00:01+00:00")
KINDS = [(Record, record(), "a record"), (Evaluation, evaluation("a", "s"), "an evaluation")]
KINDS += [(CostTable, TABLE, "a cost table")]


def fields(resealed: bool = False, **values: Any) -> Damage:
    """Set fields of a sealed file, and the digest with them if it is to be `resealed`."""

    def do(path: Path) -> None:
        plain = json.loads(path.read_bytes()) | values
        path.write_text(json.dumps({**plain, "digest": digest_of(plain)} if resealed else plain))

    return do


CANNOT = "can't be read as NOUN "
# what is done to the file, its state, why, and whether its content is there
READ: dict[str, tuple[Callable[[Path], Any], str, str, bool]] = {
    "as it was written": (lambda path: None, "whole", "is as it was written (its digest fits)", True),
    "without a digest": (fields(digest=""), "unsealed", "has no digest: ", True),
    "edited": (fields(digest="0" * 64), "changed", "was changed after it was written (its digest does", True),
    "edited to nonsense": (fields(colour="red"), "changed", "was changed after it was", False),
    "a digest of another kind": (fields(digest=5), "changed", "was changed after it was written", False),
    "of another schema": (fields(True, schema_version=2), "other schema", "has schema 2, and this code reads 1", False),
    "of another schema, edited": (fields(schema_version=2), "other schema", "has schema 2, and this", False),
    "a schema in words": (fields(True, schema_version="1"), "other schema", "has schema '1', and this code", False),
    "nonsense": (fields(True, colour="red"), "invalid", f"{CANNOT}(colour: Extra inputs are not permitted)", False),
    "a list": (put(b"[]"), "invalid", f"{CANNOT}(Input should be an object)", False),
    "no JSON": (put(b"{"), "unreadable", f"{CANNOT}(Expecting property name", False),
    "nothing": (put(b""), "unreadable", f"{CANNOT}(Expecting value", False),
    "nested without end": (put(b"[" * 100_000), "unreadable", f"{CANNOT}(its JSON is nested too deeply)", False),
    "larger than one can be": (huge, "unreadable", "bytes, but the limit is 67,108,864", False),
    "a folder": (folder, "unreadable", f"{CANNOT}(it is not a regular file)", False),
    "not there": (Path.unlink, "missing", "is not there", False),
}


@pytest.mark.parametrize(("kind", "model", "noun"), KINDS, ids=[noun for *_, noun in KINDS])
@pytest.mark.parametrize(("do", "state", "why", "there"), READ.values(), ids=READ)
def test_what_a_sealed_file_is_read_as(
    tmp_path: Path, do, state: str, why: str, there: bool, kind, model, noun
) -> None:
    """The same for all three kinds; size, JSON, schema, digest and content are asked in this order."""
    path = tmp_path / "one.json"
    path.write_bytes(as_json(seal(model)))
    do(path)
    found = read_sealed(kind, path)
    assert (found.path, found.state) == (path, state)
    assert why.replace("NOUN", noun) in found.why
    assert (found.model is not None) == there
    assert found.intact == (found.model if state in ("whole", "unsealed") else None)
    if state == "whole":
        assert found.model == seal(model)


def test_a_file_that_the_system_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, most: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("bench.records.seal.read_within", refused)
    found = read_sealed(Record, tmp_path / "record.json")
    assert (found.state, found.why) == ("unreadable", "can't be read as a record (Permission denied)")
