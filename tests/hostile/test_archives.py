""".npz files: wrong keys, shapes and types, damaged ones, pickled objects, bombs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.archives import read_npz
from tests.hostile.harness import Commands, check, error_line

COUNTS = {"train": 40, "val": 12, "test": 20}


def arrays(**changes: Any) -> dict[str, Any]:
    """What a file of MedMNIST's holds."""
    random = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for split, count in COUNTS.items():
        found[f"{split}_images"] = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        found[f"{split}_labels"] = (np.arange(count)[:, None] % 2).astype(np.uint8)
    return {name: array for name, array in {**found, **changes}.items() if array is not None}


def npz(**changes: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays(**changes))
    return stream.getvalue()


def header(shape: tuple[int, ...], descr: str = "|u1", more: bytes = b"") -> bytes:
    """A .npy whose header says so, and some bytes after it."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + more


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def with_member(name: str, content: bytes) -> bytes:
    members = {}
    for key, array in arrays().items():
        stream = io.BytesIO()
        np.save(stream, array)
        members[f"{key}.npy"] = stream.getvalue()
    return zipped({**members, f"{name}.npy": content})


def encrypted() -> bytes:
    content = bytearray(npz())
    start = 0
    while (start := content.find(b"PK\x01\x02", start)) >= 0:  # the flag in every entry of the directory
        content[start + 8] |= 1
        start += 4
    return bytes(content)


BOMB = object()
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing in it": (lambda: b"", "is damaged or not an .npz archive; download or create it again"),
    "text": (lambda: b"no archive", "is damaged or not an .npz archive"),
    "a zip's beginning": (lambda: b"PK\x03\x04" + bytes(40), "is damaged"),
    "cut in half": (lambda: npz()[: len(npz()) // 2], "is damaged"),
    "a bit flipped in an array": (lambda: npz()[:5000] + bytes([npz()[5000] ^ 1]) + npz()[5001:], "is damaged"),
    "encrypted": (encrypted, "is damaged"),
    "a .npy": (lambda: header((2, 2), more=bytes(4)), "is damaged or not an .npz archive"),
    "no array": (lambda: zipped({}), "has no array 'train_images'"),
    "an array missing": (lambda: npz(val_labels=None), "has no array 'val_labels'"),
    "arrays of other names": (lambda: zipped({"x.npy": header((1,), more=b"0")}), "has no array 'train_images'"),
    "images in colour": (
        lambda: npz(train_images=np.zeros((40, 28, 28, 3), np.uint8)),
        "8-bit images of 28 x 28 pixels",
    ),
    "images of another size": (lambda: npz(train_images=np.zeros((40, 64, 64), np.uint8)), "28 x 28 pixels"),
    "images of one dimension": (lambda: npz(train_images=np.zeros(40, np.uint8)), "28 x 28 pixels"),
    "images of none": (lambda: npz(train_images=np.uint8(4)), "28 x 28 pixels"),
    "images of floats": (lambda: npz(train_images=np.zeros((40, 28, 28))), "8-bit images"),
    "images of text": (lambda: npz(train_images=np.full((40, 28, 28), "a")), "8-bit images"),
    "fewer labels than images": (lambda: npz(train_labels=np.zeros((39, 1), np.uint8)), "labels of 0 or 1"),
    "more findings": (lambda: npz(train_labels=np.zeros((40, 3), np.uint8)), "with 1 labels of 0 or 1"),
    "labels of 7": (lambda: npz(train_labels=np.full((40, 1), 7, np.uint8)), "labels of 0 or 1"),
    "labels of nan": (lambda: npz(train_labels=np.full((40, 1), np.nan)), "labels of 0 or 1"),
    "labels of text": (lambda: npz(train_labels=np.full((40, 1), "1")), "labels of 0 or 1"),
    "labels of one class": (
        lambda: npz(**{f"{split}_labels": np.zeros((count, 1), np.uint8) for split, count in COUNTS.items()}),
        "is both present and absent in the test images",
    ),
    "pickled labels": (lambda: npz(train_labels=np.array([[{}]] * 40, object)), "pickled Python objects in 'train_lab"),
    "pickled images": (lambda: npz(train_images=np.array([None, 1], object)), "which are never loaded"),
    "a header without end": (lambda: with_member("train_images", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f"), "is damaged"),
    "a header of code": (
        lambda: with_member("train_images", b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').abort()".ljust(32)),
        "is damaged",
    ),
    "an unknown version": (lambda: with_member("train_images", b"\x93NUMPY\x09\x00" + bytes(50)), "unknown version"),
    "no header": (lambda: with_member("train_images", b"pixels"), "is damaged"),
    "a header that says more": (
        lambda: with_member("train_images", header((10**12, 28, 28), more=bytes(100))),
        "holds another number of bytes of 'train_images' than its header declares",
    ),
    "a header that says less": (
        lambda: with_member("train_images", header((1, 28, 28), more=bytes(10**5))),
        "holds another number of bytes",
    ),
    "a header of a negative size": (
        lambda: with_member("train_images", header((-5, -5))),
        "holds another number of bytes|is dam",
    ),
    "a bomb of zeros": (
        lambda: with_member("train_images", header((2**29,), more=bytes(2**29))),
        "would take 53[0-9,]+ bytes when unpacked, but the limit is 158,400,000",
    ),
}


@pytest.mark.parametrize(("make", "says"), BAD.values(), ids=BAD)
def test_bad(bench: Commands, make: Callable[[], bytes], says: str) -> None:
    bench.write("data/pneumoniamnist.npz", make())
    options = ["--data", "pneumoniamnist", "--data-root", str(bench.data), "--cache", str(bench.folder / "cache")]
    check(bench.run(*options), ("pneumoniamnist", says))


def test_the_good_one_is_good(bench: Commands) -> None:
    bench.write("data/pneumoniamnist.npz", npz())
    options = ["--data", "pneumoniamnist", "--data-root", str(bench.data), "--cache", str(bench.folder / "cache")]
    done = bench.run(*options, "--dry-run")
    assert done.exit_code == 0, done.output


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    """A bomb beside the arrays does no harm."""
    path = tmp_path / "a.npz"
    path.write_bytes(zipped({"a.npy": header((3,), more=b"abc"), "b.npy": header((2**28,), more=bytes(2**28))}))
    assert read_npz(path, ["a"], limit=1000)["a"].tolist() == [97, 98, 99]
    with pytest.raises(ValueError, match="when unpacked"):
        read_npz(path, ["a"], optional=["b"], limit=1000)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), bits=st.binary(min_size=1, max_size=8), cut=st.booleans(), packed=st.booleans())
def test_any_bytes_are_an_archive_or_a_mistake(
    tmp_path: Path, place: float, bits: bytes, cut: bool, packed: bool
) -> None:
    whole = zipped({"a.npy": header((300,), more=bytes(range(100)) * 3)}, 8 if packed else 0)
    at, path = int(place * len(whole)), tmp_path / "x.npz"
    path.write_bytes(whole[:at] + bits + (b"" if cut else whole[at + len(bits) :]))
    try:
        found = read_npz(path, ["a"], limit=10_000)
    except ValueError as error:
        mistake = error
        assert str(path) in error_line(lambda: (_ for _ in ()).throw(mistake))
    else:
        assert found["a"].nbytes <= 10_000
