"""Generating, storing and reloading the phantom."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets import load as load_by_name
from datasets.phantom import NAMES, disk_bytes, load

OPTIONS = {"patients": 12, "images_per_patient": 2.0, "seed": 3}


def folder_of(cache):
    (folder,) = (path for path in cache.iterdir() if not path.name.startswith("."))
    return folder


def test_the_data_set_is_whole():
    data = load(32, None, **OPTIONS)
    n = len(data.images)
    assert data.name == "phantom" and data.label_names == NAMES
    assert data.images.shape == (n, 32, 32) and data.labels.shape == (n, 5)
    assert data.patients[0] == "P00000" and data.patients[-1] == "P00011"
    assert len(np.unique(data.patients)) == 12 and 12 <= n <= 48
    np.testing.assert_array_equal(data.has_mask, data.labels == 1)
    assert set(data.subgroups) == {"sex", "age", "view"}
    assert set(np.unique(data.subgroups["view"])) <= {"AP", "PA"}
    assert set(np.unique(data.subgroups["age"])) <= {"under 40", "40-64", "65+"}
    for patient in np.unique(data.patients):
        for name in ("sex", "age"):
            assert len(np.unique(data.subgroups[name][data.patients == patient])) == 1


def test_more_patients_leave_the_first_as_they_are():
    few, more = load(16, None, patients=4, seed=3), load(16, None, patients=9, seed=3)
    np.testing.assert_array_equal(few.images, more.images[: len(few.images)])


def test_identity_is_the_options_not_the_bytes():
    prints = {load(16, None, **{**OPTIONS, "patients": 2, **change}).fingerprint for change in (
        {}, {"seed": 4}, {"patients": 3}, {"images_per_patient": 2.5}
    )} | {load(24, None, **{**OPTIONS, "patients": 2}).fingerprint}  # fmt: skip
    assert len(prints) == 5
    assert load(16, None, **OPTIONS).fingerprint == load(16, None, **OPTIONS).fingerprint


def test_cache_round_trip(tmp_path):
    fresh = load(32, None, **OPTIONS)
    made = load(32, tmp_path, **OPTIONS)
    folder = folder_of(tmp_path)
    stamp = (folder / "images.npy").stat().st_mtime_ns
    again = load_by_name("phantom", 32, cache=tmp_path, **OPTIONS)
    assert (folder / "images.npy").stat().st_mtime_ns == stamp
    assert isinstance(again.images, np.memmap) and not again.images.flags.writeable
    for data in (made, again):
        np.testing.assert_array_equal(data.images, fresh.images)
        np.testing.assert_array_equal(data.masks, fresh.masks)
        np.testing.assert_array_equal(data.labels, fresh.labels)
        for name, values in fresh.details.items():
            np.testing.assert_array_equal(data.details[name], values)
        for name, values in fresh.subgroups.items():
            np.testing.assert_array_equal(data.subgroups[name], values)
        assert data.fingerprint == fresh.fingerprint and data.notes == fresh.notes
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size == pytest.approx(disk_bytes(32, **OPTIONS), rel=0.1)
    load(16, tmp_path, **OPTIONS)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "table.npz", "whole.json"])
@pytest.mark.parametrize("harm", ["truncated", "gone"])
def test_a_damaged_cache_is_made_anew(tmp_path, name, harm):
    before = np.array(load(16, tmp_path, **OPTIONS).images)
    path = folder_of(tmp_path) / name
    if harm == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    np.testing.assert_array_equal(load(16, tmp_path, **OPTIONS).images, before)
    assert path.exists() and len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("datasets.phantom.storage.generate", stop)
    with pytest.raises(KeyboardInterrupt):
        load(16, tmp_path, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_another_process_makes_the_same_images_without_torch():
    code = (
        "import sys, hashlib; from datasets.phantom import load; d = load(32, None, patients=5, seed=8);"
        "print(hashlib.sha256(d.images.tobytes() + d.masks.tobytes()).hexdigest(), 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    here = load(32, None, patients=5, seed=8)
    digest = hashlib.sha256(here.images.tobytes() + here.masks.tobytes()).hexdigest()
    assert done.stdout.split() == [digest, "False"]


@pytest.mark.parametrize(
    "change",
    [
        {"patients": 0},
        {"patients": "many"},
        {"seed": -1},
        {"images_per_patient": 0.5},
        {"images_per_patient": 5},
    ],
)
def test_impossible_options_are_named(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"phantom: {name}"):
        load(16, None, **{**OPTIONS, **change})
