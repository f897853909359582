"""Small files in MedMNIST's format, and the real data set if it is available."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import datasets

COUNTS = {"train": 6, "val": 3, "test": 4}


def write(root: Path, name: str, size: int, findings: int = 1, seed: int = 0, **changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, count in COUNTS.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, size, size)).astype(np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (count, findings)).astype(np.uint8)
    arrays.update(changes)
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz"), **arrays)
    return arrays


@pytest.fixture(autouse=True)
def no_home(tmp_path, monkeypatch):
    """Hide the user's own copies and the network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_a_file_is_read_as_it_is(tmp_path):
    arrays = write(tmp_path, "pneumoniamnist", 28)
    data = datasets.load("pneumoniamnist", 28, tmp_path)
    np.testing.assert_array_equal(data.images, np.concatenate([arrays[f"{s}_images"] for s in COUNTS]))
    np.testing.assert_array_equal(data.labels, np.concatenate([arrays[f"{s}_labels"] for s in COUNTS]))
    assert data.label_names == ("Pneumonia",) and data.labels.dtype == np.float32
    assert data.official_split.tolist() == ["train"] * 6 + ["val"] * 3 + ["test"] * 4
    assert not data.patient_ids_known and len(set(data.patients.tolist())) == 13
    assert "by image" in data.notes[0] and "central squares" in data.notes[1] and len(data.notes) == 2
    write(tmp_path, "chestmnist", 28, findings=14)
    assert len(datasets.load("chestmnist", 28, tmp_path).notes) == 1


def test_the_labels_are_the_packages(tmp_path):
    import medmnist

    write(tmp_path, "chestmnist", 28, findings=14)
    data = datasets.load("chestmnist", 28, tmp_path)
    info = medmnist.INFO["chestmnist"]["label"]
    assert [name.lower() for name in data.label_names] == [info[str(i)] for i in range(14)]
    assert medmnist.INFO["pneumoniamnist"]["label"]["1"] == "pneumonia"


@pytest.mark.parametrize(
    ("present", "image_size", "size", "stored"),
    [
        ((28, 64, 128, 224), 64, None, 64),
        ((28, 64, 128, 224), 65, None, 128),
        ((28, 64, 128, 224), 16, None, 28),
        ((28, 64, 128, 224), 512, None, 224),
        ((28, 64, 128, 224), 64, 224, 224),
        ((28, 64, 128, 224), 64, "28", 28),
        ((28,), 64, None, 28),
        ((28, 224), 64, None, 224),
    ],
)
def test_the_size_that_is_read(tmp_path, present, image_size, size, stored):
    """Each size has one grey level, which shows which file was read."""
    for s in present:
        grey = {f"{split}_images": np.full((count, s, s), s, dtype=np.uint8) for split, count in COUNTS.items()}
        write(tmp_path, "pneumoniamnist", s, **grey)
    options = {} if size is None else {"size": size}
    data = datasets.load("pneumoniamnist", image_size, tmp_path, **options)
    assert data.images.shape == (13, image_size, image_size) and np.unique(data.images).tolist() == [stored]
    assert any("enlarged" in note for note in data.notes) == (stored < image_size)


def test_resizing_averages(tmp_path):
    arrays = write(tmp_path, "pneumoniamnist", 64)
    data = datasets.load("pneumoniamnist", 16, tmp_path)
    means = np.concatenate([arrays[f"{s}_images"] for s in COUNTS]).mean((1, 2))
    np.testing.assert_allclose(data.images.mean((1, 2)), means, atol=3)
    assert data.images.std() < 40, "without antialiasing the noise would keep its spread of 74"


def test_the_cache_and_the_fingerprint(tmp_path):
    write(tmp_path / "a", "pneumoniamnist", 28)
    write(tmp_path / "b", "pneumoniamnist", 28, seed=1)
    memory = datasets.load("pneumoniamnist", 20, tmp_path / "a")
    for _ in range(2):
        data = datasets.load("pneumoniamnist", 20, tmp_path / "a", tmp_path / "cache")
        assert isinstance(data.images, np.memmap)
        np.testing.assert_array_equal(data.images, memory.images)
        assert data.fingerprint == memory.fingerprint
    import hashlib

    assert memory.fingerprint == hashlib.sha256((tmp_path / "a" / "pneumoniamnist.npz").read_bytes()).hexdigest()
    assert datasets.load("pneumoniamnist", 20, tmp_path / "b", tmp_path / "cache").fingerprint != memory.fingerprint


def test_without_a_file_the_package_downloads_it(tmp_path, monkeypatch):
    import medmnist

    asked = []

    class Download:
        def __init__(self, split, download, root, size):
            asked.append((download, size))
            write(Path(root), "chestmnist", size, findings=14)

    monkeypatch.setattr(medmnist, "ChestMNIST", Download)
    data = datasets.load("chestmnist", 60, None, tmp_path / "cache")
    assert asked == [(True, 64)] and data.images.shape == (13, 60, 60)
    assert (tmp_path / "cache" / "medmnist" / "chestmnist_64.npz").is_file()
    datasets.load("chestmnist", 64, None, tmp_path / "cache")
    assert len(asked) == 1


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    import medmnist

    class Refuse:
        def __init__(self, root, **_):
            (Path(root) / "pneumoniamnist_128.npz").write_bytes(b"half of it")
            raise RuntimeError("no network\n   at all")

    monkeypatch.setattr(medmnist, "PneumoniaMNIST", Refuse)
    with pytest.raises(FileNotFoundError, match="pneumoniamnist_128.npz does not exist") as caught:
        datasets.load("pneumoniamnist", 100, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.rglob("*.npz")) == [], "what came of it must not be taken for the data"


def test_wrong_files_and_options_are_named(tmp_path):
    with pytest.raises(ValueError, match="32"):
        datasets.load("pneumoniamnist", 28, tmp_path, size=32)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        datasets.load("pneumoniamnist", 28, tmp_path / "nowhere")
    colour = np.zeros((6, 28, 28, 3), dtype=np.uint8)
    three = np.full((6, 1), 3, dtype=np.uint8)
    objects = np.array([[{}]] * 6, dtype=object)
    for i, changes in enumerate(({"train_images": colour}, {"train_labels": three}, {"train_labels": objects})):
        write(tmp_path / str(i), "pneumoniamnist", 28, **changes)
        with pytest.raises(ValueError, match="pneumoniamnist.npz"):
            datasets.load("pneumoniamnist", 28, tmp_path / str(i))
    for i, content in enumerate((b"", b"no archive", b"PK\x03\x04" + bytes(40))):
        folder = tmp_path / f"bytes{i}"
        folder.mkdir()
        (folder / "pneumoniamnist.npz").write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            datasets.load("pneumoniamnist", 28, folder)


def test_the_real_file():
    root = os.environ.get("BENCH_DATA")
    if not root:
        pytest.skip("BENCH_DATA is not set: it names the folder with the real chest X-rays")
    import medmnist

    data = datasets.load("pneumoniamnist", 28, Path(root) / "medmnist")
    counts = {split: int((data.official_split == split).sum()) for split in COUNTS}
    assert counts == medmnist.INFO["pneumoniamnist"]["n_samples"]
    assert 0.7 < data.labels.mean() < 0.75  # 4,273 of 5,856


def test_our_module_does_not_hide_the_package():
    import medmnist

    import datasets.medmnist as ours

    assert medmnist.__name__ == "medmnist" and hasattr(medmnist, "INFO")
    assert sys.modules["medmnist"] is medmnist is not ours
