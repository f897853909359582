"""Seals of records: what breaks one, and what does not."""

from __future__ import annotations

import hashlib
import json

import pytest

from bench.records.seal import digest_of, seal, sha256, state_of
from bench.records.store import as_json
from bench.specs.frozen import file_sha256
from tests.bench.small import evaluation, record

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
