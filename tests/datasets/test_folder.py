"""Folders of small images in every format, and the messages for invalid ones."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

import datasets
from datasets.dataset import Dataset


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Make a smooth random picture, uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write(root: Path, manifest: str, images: dict[str, np.ndarray | bytes] | None = None, masks: str = "") -> Path:
    """Write a folder; by default every image that the manifest lists is a small picture."""
    root.mkdir(parents=True, exist_ok=True)
    lines = manifest.strip().splitlines()
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    if masks:
        (root / "masks.csv").write_text("\n".join(masks.strip().splitlines()) + "\n")
    if images is None:
        images = {name: picture(20, 20, i) for i, name in enumerate(row.split(",")[0] for row in lines[1:]) if name}
    for name, content in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (root / name).write_bytes(content)
        else:
            Image.fromarray(content).save(root / name)
    return root


def load(root: Path, size: int = 16, cache: Path | None = None, **options) -> Dataset:
    return datasets.load("folder", size, root, cache, **options)


def one(root: Path, image: np.ndarray | bytes, size: int, name: str = "a.png", **options) -> np.ndarray:
    """Return the image as it is loaded."""
    write(root, f"path,patient_id,A\n{name},p,1", {name: image})
    return np.asarray(load(root, size, **options).images[0])


MANIFEST = """path,patient_id,view,sex,age,A,B,uncertain,empty,site,score
a.png,p1,PA,F,39,1,0,-1,,x,1
b.png,p1,AP,male,40,0,,1,,y,2
c.png,p2,,,065Y,,,,,x,0
d.png,p3,PA,M,?,0.0,1.0,-1.0,,x,1
"""


def test_the_columns(tmp_path):
    data = load(write(tmp_path, MANIFEST))
    assert data.label_names == ("A", "B", "uncertain")
    nan = np.nan
    np.testing.assert_array_equal(data.labels, [[1, 0, nan], [0, nan, 1], [nan, nan, nan], [0, 1, nan]])
    assert data.patients.tolist() == ["p1", "p1", "p2", "p3"]
    assert data.official_split is None and data.masks is None and data.patient_ids_known
    assert {name: group.tolist() for name, group in data.subgroups.items()} == {
        "sex": ["F", "M", "", "M"],
        "age": ["<40", "40-64", "65+", ""],
        "view": ["PA", "AP", "", "PA"],
    }
    notes = "\n".join(data.notes)
    assert "no findings: site, score" in notes and "blank in every row: empty" in notes
    counted = {what: numbers.tolist() for what, numbers in data.counted.items()}
    assert counted == {"Uncertain labels (-1), taken as missing (uncertain=ignore)": [1, 0, 0, 1]}


@pytest.mark.parametrize(("policy", "value"), [("positive", 1), ("negative", 0)])
def test_the_policy_for_uncertain_labels(tmp_path, policy, value):
    data = load(write(tmp_path, MANIFEST), uncertain=policy)
    assert data.labels[[0, 3], 2].tolist() == [value, value]
    assert any(f"uncertain={policy}" in what for what in data.counted)
    assert data.fingerprint != load(tmp_path).fingerprint


def test_named_findings(tmp_path):
    data = load(write(tmp_path, MANIFEST), labels="B, A")
    assert data.label_names == ("B", "A")
    assert any("site, score" in note and "uncertain" in note for note in data.notes)
    assert data.counted == {}, "the column with uncertain labels is not used"
    assert load(tmp_path, labels=["A"]).label_names == ("A",)


def test_a_split_by_any_of_its_names(tmp_path):
    rows = "\n".join(f"{n}.png,p{n},{s},1" for n, s in enumerate(("train", "valid", "Test", "validate", "val")))
    data = load(write(tmp_path, "path,patient_id,split,A\n" + rows))
    assert data.official_split.tolist() == ["train", "val", "test", "val", "val"]


def test_text_is_never_taken_for_something_else(tmp_path):
    """Ids with zeros, 'NA', byte-order mark, quotes, blanks around cells, blank lines."""
    text = '\ufeffpath, patient_id ,"A"\n"a.png", 007 ,1\n\nb.png,NA,0\nc.png,1e3,\n'
    write(tmp_path, "path,patient_id,A\na.png,1,1\nb.png,2,1\nc.png,3,1")
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    data = load(tmp_path)
    assert data.patients.tolist() == ["007", "NA", "1e3"]
    assert data.label_names == ("A",)


# Pixels


def png16(levels: np.ndarray) -> bytes:
    """Write a 16-bit gray PNG by the definition of the format (ISO/IEC 15948)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    head = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_an_8_bit_image_of_the_right_size_is_kept_as_it_is(tmp_path):
    image = picture(32, 32)
    np.testing.assert_array_equal(one(tmp_path, image, 32), image)


def test_16_bits_are_scaled_by_the_images_own_range(tmp_path):
    levels = 1000 + 16 * picture(24, 24).astype(np.int64)  # 12 bits within 16
    expected = (levels - levels.min()) / (levels.max() - levels.min()) * 255
    np.testing.assert_allclose(one(tmp_path, png16(levels), 24), expected, atol=0.51)
    assert one(tmp_path / "flat", png16(np.full((9, 9), 4000)), 8).max() == 0


def test_colour_becomes_gray_and_jpeg_is_read(tmp_path):
    gray = picture(32, 32)
    np.testing.assert_allclose(one(tmp_path / "rgb", np.stack([gray] * 3, -1), 32), gray, atol=1)
    colour = np.stack([picture(32, 32, s) for s in range(3)], -1)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(one(tmp_path / "png", colour, 32), luma, atol=1)
    Image.fromarray(colour).save(tmp_path / "x.jpg", quality=95)
    got = one(tmp_path / "jpg", (tmp_path / "x.jpg").read_bytes(), 32, "x.jpg").astype(float)
    assert np.abs(got - luma).mean() < 3
    Image.fromarray(gray).convert("LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(one(tmp_path / "la", (tmp_path / "la.png").read_bytes(), 32), gray)
    bits = gray > 128
    np.testing.assert_array_equal(one(tmp_path / "1", bits, 32), bits * 255)


def test_resizing_is_antialiased_as_torchvisions(tmp_path):
    fine = np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)
    resize = v2.Resize([32, 32], v2.InterpolationMode.BILINEAR, antialias=True)
    import torch

    expected = resize(torch.from_numpy(fine)[None].float())[0].numpy()
    np.testing.assert_allclose(one(tmp_path, fine, 32), expected, atol=1.01)


def test_the_three_fits(tmp_path):
    """The image is 64 wide and 32 high with three vertical bands; halving it is exact, so both filters agree inside."""
    wide = np.zeros((32, 64), dtype=np.uint8)
    wide[:, :16], wide[:, 16:48], wide[:, 48:] = 50, 150, 250
    pad = one(tmp_path / "pad", wide, 32)
    assert (pad[:8] == 0).all() and (pad[24:] == 0).all()
    assert pad[9:23, 3].tolist() == [50] * 14 and pad[9:23, 28].tolist() == [250] * 14
    stretch = one(tmp_path / "stretch", wide, 32, fit="stretch")
    assert stretch[:, 3].tolist() == [50] * 32 and stretch[:, 28].tolist() == [250] * 32
    crop = one(tmp_path / "crop", wide, 32, fit="crop")
    assert (crop == 150).all()


@pytest.mark.parametrize("shape", [(300, 7), (7, 300), (1, 1)])
@pytest.mark.parametrize("fit", ["pad", "stretch", "crop"])
def test_odd_shapes(tmp_path, shape, fit):
    assert one(tmp_path, np.full(shape, 200, dtype=np.uint8), 16, fit=fit).max() == 200


# Masks


@pytest.mark.parametrize("fit", ["pad", "stretch", "crop"])
@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (80, 80)])
def test_a_box_and_its_mask_lie_on_the_bright_spot(tmp_path, shape, fit):
    """The image is bright only inside the lesion, so the loaded image shows where the mask must be."""
    height, width = shape
    image = np.zeros(shape, dtype=np.uint8)
    image[30:50, 35:60] = 255
    for name, masks in (
        ("box", "path,finding,x,y,w,h\na.png,B,35,30,25,20"),
        ("parts", "path,finding,x,y,w,h\na.png,B,35,30,10,20\na.png,B,45.0,30.0,15.0,20.0"),
        ("mask", "path,finding,mask\na.png,B,m/a.png"),
    ):
        root = write(tmp_path / name, "path,patient_id,A,B\na.png,p,0,1", {"a.png": image, "m/a.png": image > 0}, masks)
        data = load(root, 20, fit=fit)
        mask, bright = data.masks[0], data.images[0]
        assert data.has_mask.tolist() == [[False, True]]
        assert set(np.unique(mask)) == {0, 2}, "bit 1 is label B's"
        # Pillow's bilinear filter is wider than a pixel: compare only pixels that are clearly inside or outside
        assert (mask[bright > 170] == 2).all() and (mask[bright < 85] == 0).all()
        assert (bright > 170).any()
    assert (height, width) == shape


def test_several_findings_share_a_pixel(tmp_path):
    masks = "path,finding,x,y,w,h\na.png,A,0,0,16,16\na.png,B,8,0,8,8"
    root = write(tmp_path, "path,patient_id,A,B\na.png,p,1,1\nb.png,q,0,0", None, masks)
    Image.fromarray(picture(16, 16)).save(root / "a.png")
    data = load(root)
    expected = np.ones((16, 16), dtype=int)
    expected[:8, 8:] = 3
    np.testing.assert_array_equal(data.masks[0], expected)
    assert data.masks[1].max() == 0 and data.has_mask.tolist() == [[True, True], [False, False]]


def test_a_tiny_lesion_does_not_vanish_but_one_cut_off_does(tmp_path):
    image = picture(400, 800)
    root = write(
        tmp_path,
        "path,patient_id,A\na.png,p,1",
        {"a.png": image},
        "path,finding,x,y,w,h\na.png,A,10,200,3,3",
    )
    data = load(root, 16, fit="stretch")
    assert (data.masks[0] > 0).sum() == 1 and data.masks[0][8, 0] == 1 and data.has_mask[0, 0]
    cropped = load(root, 16, fit="crop")
    assert cropped.masks[0].max() == 0 and not cropped.has_mask[0, 0]


def test_masks_that_fit_nothing_are_named(tmp_path):
    masks = "path,finding,x,y,w,h\na.png,A,0,0,5,5\na.png,Z,0,0,5,5\nelsewhere.png,A,0,0,5,5"
    data = load(write(tmp_path, "path,patient_id,A\na.png,p,1", None, masks))
    notes = "\n".join(data.notes)
    assert "no such finding: Z" in notes and "1 rows of masks.csv" in notes


# Cache and identity


def test_the_cache_is_used_and_noticed_to_be_old(tmp_path):
    root = write(
        tmp_path / "data",
        "path,patient_id,A\na.png,p,1\nb.png,q,0",
        None,
        "path,finding,x,y,w,h\na.png,A,2,3,5,6",
    )
    cache = tmp_path / "cache"
    memory, made, read = load(root), load(root, cache=cache), load(root, cache=cache)
    assert isinstance(read.images, np.memmap) and not read.images.flags.writeable
    for data in (made, read):
        np.testing.assert_array_equal(data.images, memory.images)
        np.testing.assert_array_equal(data.masks, memory.masks)
        np.testing.assert_array_equal(data.has_mask, memory.has_mask)
        assert data.fingerprint == memory.fingerprint
    assert len(list(cache.iterdir())) == 1, "no scratch folder stays behind"
    load(root, 8, cache)
    load(root, cache=cache, fit="stretch")
    assert len(list(cache.iterdir())) == 3
    (root / "a.png").write_bytes((root / "b.png").read_bytes())
    changed = load(root, cache=cache)
    np.testing.assert_array_equal(changed.images[0], changed.images[1])
    assert changed.fingerprint != memory.fingerprint


def test_the_cache_is_not_written_by_a_failure(tmp_path):
    root = write(tmp_path / "data", "path,patient_id,A\na.png,p,1", {"a.png": b"no image"})
    with pytest.raises(ValueError, match="a.png"):
        load(root, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_fingerprint_is_of_the_contents(tmp_path):
    one_place = load(write(tmp_path / "one", MANIFEST))
    other = load(write(tmp_path / "two", MANIFEST))
    assert one_place.fingerprint == other.fingerprint, "neither place nor time matters"
    assert load(tmp_path / "two", labels="A").fingerprint != other.fingerprint
    os.utime(tmp_path / "two" / "a.png", (1, 1))
    assert load(tmp_path / "two").fingerprint == other.fingerprint
    relabelled = write(tmp_path / "three", MANIFEST.replace("p3,PA,M", "p4,PA,M"))
    assert load(relabelled).fingerprint != other.fingerprint


# Messages name the place of an error


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("path,A\na.png,1", "no column 'patient_id'"),
        ("file,patient_id,A\na.png,p,1", "no column 'path'"),
        ("path,patient_id,A\na.png,p,1\nb.png,,0", "row 3: 'patient_id' is blank"),
        ("path,patient_id,A\na.png,p,1\n,q,0", "row 3: 'path' is blank"),
        ("path,patient_id,A\na.png,p,1\n\na.png,q,0", "row 4: the path 'a.png' is the same file as in row 2"),
        ("path,patient_id,A\na.png,p,1\n./a.png,q,0", "row 3: .* is the same file as in row 2"),
        ("path,patient_id,A\n../a.png,p,1", "row 2: the path '../a.png' leads out"),
        ("path,patient_id,A\n/etc/passwd,p,1", "row 2: .* leads out"),
        ("path,patient_id,A\nout.png,p,1", "row 2: the path 'out.png' leads out"),
        ("path,patient_id,site\na.png,p,x", "no finding"),
        ("path,patient_id,A\na.png,p,", "no finding"),
        ("path,patient_id,A,A\na.png,p,1,1", "two columns 'A'"),
        ("path,patient_id,A", "no rows"),
        ("path,patient_id,A\na.png,p,1,1,1", "CSV"),
        ("path,patient_id,A\na.png,p,1\nb.png,p,1,1", "CSV"),
        ("path,patient_id,split,A\na.png,p,train,1\nb.png,q,dev,1", "row 3: the split is 'dev'"),
        ("path,patient_id,split,A\na.png,p,train,1\nb.png,q,,1", "row 3: the split is ''"),
        (
            "path,patient_id,split,A\na.png,p,train,1\nb.png,q,val,1\nc.png,p,test,0",
            r"'p' is in two splits, train \(row 2\) and test \(row 4\)",
        ),
    ],
)
def test_a_wrong_manifest(tmp_path, manifest, message):
    root = write(tmp_path / "data", manifest, {f"{name}.png": picture(9, 9) for name in "abc"})
    Image.fromarray(picture(9, 9)).save(tmp_path / "a.png")
    (root / "out.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message) as caught:
        load(root)
    assert str(root / "manifest.csv") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ("path,mask\na.png,m.png", "no column 'finding'"),
        ("path,finding,x,y,w\na.png,A,1,1,1", "no column 'h'"),
        ("path,finding,x,y,w,h\na.png,A,1,1,0,5", "row 2: .* above 0"),
        ("path,finding,x,y,w,h\na.png,A,1,1,5,5\na.png,A,1,1,five,5", "row 3: .* must be numbers"),
        ("path,finding,x,y,w,h\na.png,A,1,1,nan,5", "row 2: .* above 0"),
        ("path,finding,x,y,w,h\na.png,A,10,10,15,5", "row 2: .* outside its image of 20 x 20"),
        ("path,finding,mask\na.png,A,", "row 2: 'mask' is blank"),
        ("path,finding,mask\na.png,A,../m.png", "row 2: .* leads out"),
        ("path,finding,mask\na.png,A,small.png", "row 2: .*9 x 8 pixels.* 20 x 20"),
    ],
)
def test_wrong_masks(tmp_path, masks, message):
    images = {"a.png": picture(20, 20), "small.png": picture(8, 9)}
    root = write(tmp_path, "path,patient_id,A\na.png,p,1", images, masks)
    with pytest.raises(ValueError, match=message):
        load(root)


def test_too_many_findings_for_masks(tmp_path):
    names = [f"f{i}" for i in range(17)]
    manifest = f"path,patient_id,{','.join(names)}\na.png,p{',1' * 17}"
    root = write(tmp_path, manifest, None, "path,finding,x,y,w,h\na.png,f16,1,1,5,5")
    with pytest.raises(ValueError, match="at most 16 findings.*17"):
        load(root)
    assert load(root, labels="f16").masks.max() == 1


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "nowhere")):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty/manifest.csv"):
        load(tmp_path / "empty")
    root = write(tmp_path / "data", "path,patient_id,A\na.png,p,1\nb.png,p,1\nc.png,p,1", {"a.png": picture(9, 9)})
    with pytest.raises(FileNotFoundError, match="data/b.png .and 1 more.*manifest.csv"):
        load(root)
    masks = "path,finding,mask\na.png,A,m.png"
    with pytest.raises(FileNotFoundError, match="m.png"):
        load(write(tmp_path / "masks", "path,patient_id,A\na.png,p,1", {"a.png": picture(9, 9)}, masks))


def truncated() -> bytes:
    whole = png16(np.random.default_rng(0).integers(0, 65535, (64, 64)))
    return whole[: len(whole) // 2]


def bomb() -> bytes:
    """Make the header of an image of 30,000 x 30,000 pixels."""
    small = bytearray(png16(np.zeros((2, 2))))
    small[16:24] = struct.pack(">II", 30_000, 30_000)
    small[29:33] = struct.pack(">I", zlib.crc32(bytes(small[12:29])))
    return bytes(small)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"GIF89a" + bytes(50), "damaged"),
        (truncated(), "damaged"),
        (bomb(), "30000 x 30000|pixels"),
    ],
)
def test_a_damaged_image_is_named(tmp_path, content, message):
    write(
        tmp_path,
        "path,patient_id,A\ngood.png,p,1\nbad.png,q,0",
        {"good.png": picture(9, 9), "bad.png": content},
    )
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path / "bad.png") in str(caught.value)


def test_wrong_options(tmp_path):
    root = write(tmp_path, MANIFEST)
    for options, message in (
        ({"uncertain": "maybe"}, "uncertain=maybe"),
        ({"fit": "squeeze"}, "fit=squeeze"),
        ({"labels": "A,Z"}, "no finding column 'Z'"),
        ({"labels": "empty"}, "'empty' is blank"),
        ({"labels": "A,site"}, "row 2: the finding 'site' is 'x'"),
        ({"label": "A"}, "no option 'label'"),
    ):
        with pytest.raises(ValueError, match=message):
            load(root, **options)


def test_real_masks_lie_in_the_images(tmp_path):
    root = os.environ.get("BENCH_DATA")
    if not root:
        pytest.skip("BENCH_DATA is not set: it names the folder with the real chest X-rays")
    import csv

    data = load(Path(root) / "nih", 64, tmp_path)
    with (Path(root) / "nih" / "masks.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with (Path(root) / "nih" / "manifest.csv").open() as stream:
        place = {row["path"]: i for i, row in enumerate(csv.DictReader(stream))}
    assert data.has_mask.sum() == len({(row["path"], row["finding"]) for row in rows})
    errors = []
    for row in rows:
        bit = 1 << data.label_names.index(row["finding"])
        share = ((data.masks[place[row["path"]]] & bit) > 0).mean()
        errors.append(share - float(row["area_share"]))
    assert abs(np.mean(errors)) < 0.002 and np.abs(errors).max() < 0.03


@pytest.mark.parametrize(
    ("fit", "words"), [("pad", "padded with black"), ("stretch", "stretched"), ("crop", "cropped")]
)
def test_how_images_that_are_not_square_come_to_one_is_said(tmp_path, fit, words):
    manifest = "path,patient_id,A\na.png,p,1\nb.png,q,0\nc.png,r,1"
    pictures = {"a.png": picture(20, 20), "b.png": picture(10, 20), "c.png": picture(20, 15)}
    data = load(write(tmp_path, manifest, pictures), fit=fit)
    ((what, numbers),) = data.counted.items()
    assert what.startswith("Images that are not square, ")
    assert words in what
    assert numbers.tolist() == [0, 1, 1]
    assert (data.frames is not None) == (fit == "pad")
    square = load(write(tmp_path / "square", manifest), fit=fit)
    assert square.counted == {}


def test_padding_by_patch_is_what_pixels_say(tmp_path):
    """White images: what is black was added. Bars end inside patches, and at their edges."""
    shapes = [(16, 16), (8, 16), (16, 10), (11, 16)]
    manifest = "path,patient_id,A\n" + "".join(f"{i}.png,p{i},1\n" for i in range(4))
    pictures = {f"{i}.png": np.full(shape, 255, np.uint8) for i, shape in enumerate(shapes)}
    data = load(write(tmp_path, manifest, pictures), size=16)
    index = np.array([3, 0, 1, 2])
    black = np.asarray(data.images[index]) == 0
    for grid in (4, 3, 7):  # patches of 3 and 7 end inside pixels
        fine = black.repeat(grid, axis=1).repeat(grid, axis=2).reshape(4, grid, 16, grid, 16)
        np.testing.assert_allclose(data.padding(index, grid), fine.mean((2, 4)).reshape(4, -1))
        assert (data.padding(index, grid) != 0).any(1).tolist() == [True, False, True, True]
        assert (data.replace(frames=None).padding(index, grid) == 0).all()
