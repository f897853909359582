"""The registry, and the package next to others that have modules of the same name."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets.dataset import Dataset

HERE = Path(__file__).resolve().parents[2]


def test_every_entry_leads_to_a_loader_that_takes_its_options():
    for name, entry in datasets.REGISTRY.items():
        module, function = entry.target.split(":")
        if importlib.util.find_spec(module) is None:
            continue
        signature = inspect.signature(getattr(importlib.import_module(module), function))
        named = {p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
        assert set(entry.options) == named, name
        assert ("root" in signature.parameters) == (entry.root != "none"), name
        assert entry.summary and entry.source and all(entry.options.values())


def test_listing_imports_nothing_heavy():
    heavy = {"torch", "numpy", "pandas", "PIL", "medmnist"}
    code = f"import sys, datasets; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_ours_works_beside_the_others():
    import medmnist
    import timm
    import torchvision
    import torchxrayvision as xrv

    assert Path(datasets.__file__).parent == HERE / "datasets"
    assert "NIH_Dataset" in dir(xrv.datasets) and xrv.datasets is not datasets
    assert torchvision.datasets is not datasets and hasattr(torchvision.datasets, "FakeData")
    assert "chestmnist" in medmnist.INFO
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=32)
    assert model.num_features == 192
    assert importlib.import_module("datasets").REGISTRY is datasets.REGISTRY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", 32), "no data set 'nothing'.*phantom"),
        (("folder", 32), "--data-root"),
        (("folder", 0, Path(".")), "image size of 0"),
        (("folder", 32.5, Path(".")), "image size of 32.5"),
    ],
)
def test_wrong_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(*arguments)


def whole() -> dict:
    return dict(
        name="made-up",
        images=np.zeros((3, 4, 4), dtype=np.uint8),
        labels=np.array([[1.0], [0.0], [np.nan]], dtype=np.float32),
        label_names=("A",),
        patients=np.array(["a", "b", "b"]),
        fingerprint="0" * 64,
    )


def test_a_data_set_knows_what_is_labelled():
    data = Dataset(**whole())
    assert data.labelled.tolist() == [True, True, False] and len(data) == 3 and data.image_size == 4
    assert data.replace(name="other").name == "other" and data.replace(name="other").images is data.images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((3, 4, 5), dtype=np.uint8)}, "square"),
        ({"images": np.zeros((3, 4, 4), dtype=np.float32)}, "uint8"),
        ({"images": np.zeros((0, 4, 4), dtype=np.uint8)}, "no images"),
        ({"labels": np.zeros((2, 1), dtype=np.float32)}, "labels must be"),
        ({"labels": np.full((3, 1), -1, dtype=np.float32)}, "1, 0 or NaN"),
        ({"label_names": ("A", "A"), "labels": np.zeros((3, 2), dtype=np.float32)}, "unique"),
        ({"patients": np.array(["a", "", "b"])}, "needs a patient"),
        ({"patients": np.array([1, 2, 3])}, "strings"),
        ({"official_split": np.array(["train", "valid", "test"])}, "splits are"),
        ({"masks": np.zeros((3, 4, 4), dtype=np.uint16)}, "come together"),
        ({"counted": {"Images upside down": np.zeros((3, 1))}}, "counted.*must be"),
        ({"details": {"size_mm": np.zeros((3, 2))}}, "size_mm"),
        ({"details": {"colour": np.zeros((3, 1))}}, "colour"),
        ({"subgroups": {"sex": np.array(["F"])}}, "sex"),
        ({"fingerprint": "abc"}, "sha256"),
    ],
)
def test_contradictions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Dataset(**{**whole(), **change})
