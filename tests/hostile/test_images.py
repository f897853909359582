"""Image files of every kind that is none, or not one to be trusted; those that only look strange are read right."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from datasets import load
from datasets.images import decode
from datasets.limits import IMAGE_BYTES
from tests.bench.small import make_folder
from tests.hostile.harness import Commands, check, error_line

RAMP = np.add.outer(np.arange(48), np.arange(48)).astype(np.uint8)  # 0 to 94


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int = 8, *more: bytes) -> bytes:
    """A PNG whose header says so, with a few compressed zeros for its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(more)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


PNG, JPEG = encoded(Image.fromarray(RAMP)), encoded(Image.fromarray(RAMP), "JPEG")
FRAMES = [Image.fromarray(RAMP + i) for i in range(3)]
# id: (the file, what the message says)
BAD: dict[str, tuple[bytes, str]] = {
    "nothing in it": (b"", "is damaged, or not a PNG or JPEG; replace it or remove its row"),
    "one byte": (b"\x89", "is damaged, or not a PNG or JPEG"),
    "a PNG cut in half": (PNG[: len(PNG) // 2], "is damaged"),
    "a PNG without its end": (PNG[:40], "is damaged"),
    "a JPEG cut in half": (JPEG[: len(JPEG) // 2], "is damaged"),
    "a PNG with a wrong checksum": (PNG[:-20] + bytes([PNG[-20] ^ 1]) + PNG[-19:], "is damaged"),
    "a header of 30,000 x 30,000": (png(30_000, 30_000), r"900000000 pixels|too many.*replace it or remove its row"),
    "a header of 9,000 x 9,000": (png(9_000, 9_000), r"9000 x 9000 pixels are too many \(at most 64,000,000\)"),
    "a header of 2 billion x 2 billion": (png(2**31 - 1, 2**31 - 1), "pixels|damaged"),
    "a header of nothing": (png(0, 0), "is damaged"),
    "a header of an unknown depth": (png(8, 8, depth=7), "is damaged"),
    "a text chunk that explodes": (
        png(8, 8, 8, chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(2**27), 9))),
        "is damaged",
    ),
    "an animated PNG": (encoded(FRAMES[0], save_all=True, append_images=FRAMES[1:]), "is animated, with 3 frames"),
    "a GIF": (encoded(Image.fromarray(RAMP), "GIF"), "is damaged, or not a PNG or JPEG"),
    "an animated GIF": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "or not a PNG or JPEG"),
    "a TIFF": (encoded(Image.fromarray(RAMP), "TIFF"), "or not a PNG or JPEG"),
    "a BMP": (encoded(Image.fromarray(RAMP), "BMP"), "or not a PNG or JPEG"),
    "an EPS, which would run a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "or not a PNG or JPEG"),
    "an SVG that reads a file": (b'<svg xmlns="x"><image href="file:///etc/passwd"/></svg>', "or not a PNG or JPEG"),
    "text": (b"This is no image.\n", "or not a PNG or JPEG"),
    "a web page": (b"<!DOCTYPE html><html></html>", "or not a PNG or JPEG"),
    "a DICOM": (bytes(128) + b"DICM" + bytes(200), "or not a PNG or JPEG"),
    "a numpy array": (b"\x93NUMPY\x01\x00" + bytes(100), "or not a PNG or JPEG"),
    "a pickle": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "or not a PNG or JPEG"),
}


@pytest.fixture
def folder(bench: Commands) -> Commands:
    make_folder(bench.folder / "data" / "all")
    return bench


def use(bench: Commands, content: bytes) -> list[str]:
    """The options to run on a data set in which one image is this."""
    bench.write("data/all/images/7.png", content)
    return ["--data", "folder", "--data-root", str(bench.data / "all"), "--cache", str(bench.folder / "cache")]


@pytest.mark.parametrize(("content", "says"), BAD.values(), ids=BAD)
def test_bad(folder: Commands, content: bytes, says: str) -> None:
    done = folder.run(*use(folder, content))
    check(done, ("images/7.png", says))
    assert not list((folder.folder / "cache").iterdir()), "what failed half-way is no cache"


def test_larger_than_a_file_may_be(folder: Commands) -> None:
    options = use(folder, b"")
    with (folder.data / "all" / "images" / "7.png").open("r+b") as file:
        file.truncate(IMAGE_BYTES + 1)  # sparse: it takes no room on the disk
    check(folder.run(*options), r"7.png has 268,435,457 bytes, but the limit is 268,435,456")


def seen(tmp_path: Path, content: bytes) -> np.ndarray:
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "manifest.csv").write_text("path,patient_id,A\na.png,p,1\n")
    return load("folder", 48, tmp_path).images[0]


def colour(mode: str) -> Image.Image:
    return Image.fromarray(RAMP).convert("RGB").convert(mode)


STRANGE = {
    "one pixel": (encoded(Image.new("L", (1, 1), 90)), np.full((48, 48), 90)),
    "one row": (
        encoded(Image.new("L", (48, 1), 90)),
        np.where(np.arange(48)[:, None] == 23, 90, 0) + np.zeros((48, 48)),
    ),
    "CMYK": (encoded(colour("CMYK"), "JPEG", quality=100), RAMP),
    "RGBA": (encoded(colour("RGBA")), RAMP),
    "a palette": (encoded(Image.fromarray(RAMP).convert("P")), RAMP),
    "black and white": (encoded(Image.fromarray(RAMP > 50)), 255 * (RAMP > 50)),
    "16 bit": (encoded(Image.fromarray(RAMP.astype(np.uint16) * 500)), np.rint(RAMP * (255 / 94))),
    "16 bit, all alike": (encoded(Image.fromarray(np.full((48, 48), 999, np.uint16))), np.zeros((48, 48))),
    "a JPEG called PNG": (encoded(Image.fromarray(RAMP), "JPEG", quality=100), RAMP),
    "a text chunk": (encoded(Image.fromarray(RAMP), pnginfo=PngImagePlugin.PngInfo()), RAMP),
    "bytes after its end": (PNG + b"PK\x03\x04" * 100, RAMP),
}


@pytest.mark.parametrize(("content", "expected"), STRANGE.values(), ids=STRANGE)
def test_strange_but_right(tmp_path: Path, content: bytes, expected: np.ndarray) -> None:
    np.testing.assert_allclose(seen(tmp_path, content).astype(float), expected, atol=2)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    whole=st.sampled_from([PNG, JPEG, encoded(FRAMES[0], save_all=True, append_images=FRAMES[1:])]),
    place=st.floats(0, 1),
    bits=st.binary(min_size=1, max_size=6),
    cut=st.booleans(),
)
def test_any_bytes_are_an_image_or_a_mistake(
    tmp_path: Path, whole: bytes, place: float, bits: bytes, cut: bool
) -> None:
    """Bytes changed, or all after them left out, anywhere in a file."""
    at = int(place * len(whole))
    path = tmp_path / "x.png"
    path.write_bytes(whole[:at] + bits + (b"" if cut else whole[at + len(bits) :]))
    try:
        image, _ = decode(path)
    except ValueError as error:
        mistake = error
        assert str(path) in error_line(lambda: (_ for _ in ()).throw(mistake))
    else:
        assert image.mode in ("L", "F") and min(image.size) >= 1
