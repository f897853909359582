"""manifest.csv and masks.csv of a folder: what is missing, twice, contradictory, huge, or no table at all; and data
that nothing can be learnt from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import load
from datasets.limits import FIELD_CHARACTERS, NAME_CHARACTERS, TABLE_COLUMNS
from tests.hostile.harness import Commands, check, error_line

PATIENTS = 40


def rows(*, label: str = "", patients: int = PATIENTS, finding: str = "alternate") -> str:
    """A manifest with `patients` patients that is all right, but for what the case changes."""
    value = {"alternate": lambda i: i % 2, "present": lambda i: 1, "absent": lambda i: 0}[finding]
    lines = ["path,patient_id,opacity", *(f"{i}.png,p{i},{value(i)}" for i in range(patients))]
    if label:
        lines[10] = lines[10].rsplit(",", 1)[0] + f",{label}"
    return "\n".join(lines) + "\n"


GOOD = rows()
# id: (manifest.csv, what the message says)
MANIFESTS: dict[str, tuple[str | bytes, str]] = {
    "nothing in it": ("", "manifest.csv has no header in its first row"),
    "white space in it": ("  \n \n", "manifest.csv has no header in its first row"),
    "a header alone": ("path,patient_id,opacity\n", "has no rows below its header"),
    "no header": ("0.png,p0,1\n1.png,p1,0\n", "no column 'path'"),
    "no path": ("file,patient_id,opacity\n0.png,p0,1\n", "no column 'path'; its columns are: file"),
    "no patient": ("path,opacity\n0.png,1\n", "no column 'patient_id'"),
    "no finding": ("path,patient_id\n0.png,p0\n", "has no finding"),
    "a blank line first": ("\n" + GOOD, "manifest.csv has no header in its first row; begin it with"),
    "a semicolon for a comma": (GOOD.replace(",", ";"), "no column 'path'.* separated by commas"),
    "a row that ends early": (GOOD + "0.png,p99\n", "row 42 has 2 cells, but the header has 3; blank cells need"),
    "a path twice": (GOOD + "0.png,p0,1\n", "row 42: the path '0.png' is the same file as in row 2"),
    "a path twice, by a link": (GOOD + "link.png,p99,1\n", "row 42: the path 'link.png' is the same file as in row 2"),
    "a column twice": ("path,patient_id,opacity,opacity\n0.png,p0,1,1\n", "two columns 'opacity'; rename one"),
    "a column without a name": ("path,patient_id,,opacity\n0.png,p0,1,1\n", "column 3 has no name; name it"),
    "a column of two lines": ('path,patient_id,"opa\ncity"\n0.png,p0,1\n', "the name of column 3 .*rename it"),
    "a column of escape codes": ("path,patient_id,\x1b[2Jx\n0.png,p0,1\n", "the name of column 3 .*rename it"),
    "a column with a long name": (f"path,patient_id,{'x' * 300}\n0.png,p0,1\n", "column 3 .*more than 200 characters"),
    "columns without end": (
        ",".join(["path", "patient_id", *(f"f{i}" for i in range(TABLE_COLUMNS))]) + "\n",
        "has 1,002 columns, but the limit is 1,000",
    ),
    "a row too long": (GOOD + "0.png,p0,1,1,1\n", "can't be read as a CSV file"),
    "a quote left open": (GOOD + '"0.png,p0,1\n', "can't be read as a CSV file"),
    "a label of 7": (rows(label="7"), "row 11: the finding 'opacity' is '7'; it must be 1, 0, -1 or blank"),
    "a label of 0.5": (rows(label="0.5"), "row 11: the finding 'opacity' is '0.5'"),
    "a label in words": (rows(label="yes"), "row 11: the finding 'opacity' is 'yes'"),
    "a label of nan": (rows(label="nan"), "row 11: the finding 'opacity' is 'nan'"),
    "a label of a page": (rows(label="x" * 90_000), r"row 11: the finding 'opacity' is 'x+ \.\.\. x+'"),
    "a patient in two splits": (
        "path,patient_id,split,opacity\n0.png,p0,train,1\n1.png,p0,test,0\n",
        r"'p0' is in two splits, train \(row 2\) and test \(row 3\); put each patient into one",
    ),
    "a split of another name": (
        "path,patient_id,split,opacity\n0.png,p0,fold1,1\n",
        "the split is 'fold1'; it must be",
    ),
    "a path that is blank": (GOOD + ",p99,1\n", "row 42: 'path' is blank; fill it in"),
    "a patient that is blank": (GOOD + "0.png,,1\n", "row 42: 'patient_id' is blank; fill it in"),
    "a path that is missing": (GOOD + "gone.png,p99,1\n", "gone.png does not exist"),
    "a path that is a folder": (GOOD + "folder,p99,1\n", "folder does not exist"),
    "a path that is a pipe": (GOOD + "pipe,p99,1\n", "pipe does not exist"),
    "a path that is a circle": (GOOD + "circle,p99,1\n", "row 42: the path 'circle' is invalid"),
    "a path that is a device": (GOOD + "/dev/zero,p99,1\n", "row 42: the path '/dev/zero' leads out of the folder"),
    "a path out of the folder": (GOOD + "../home/thesis.txt,p99,1\n", "row 42: .* leads out of the folder"),
    "a path out and in again": (GOOD + "../../*/data/0.png,p99,1\n", "row 42: .* leads out of the folder"),
    "a link out of the folder": (GOOD + "out.png,p99,1\n", "row 42: the path 'out.png' leads out of the folder"),
    "a link to a folder outside": (GOOD + "outside/secret.png,p99,1\n", "row 42: .* leads out of the folder"),
    "a path with a long name": (
        GOOD + "x" * 5000 + ",p99,1\n",
        r"The image .*x \.\.\. x.* does not exist",
    ),
    "a cell of a million characters": (
        "path,patient_id,note,opacity\n0.png,p0," + "x" * 1_000_000 + ",1\n",
        f"row 2: 'note' has 1,000,000 characters, but the limit is {FIELD_CHARACTERS:,}",
    ),
    "a header of a million characters": ("x" * 1_000_000, "field larger than field limit"),
    "a patient of a million characters": (
        GOOD + "0.png," + "p" * 1_000_000 + ",1\n",
        f"row 42: 'patient_id' has 1,000,000 characters, but the limit is {NAME_CHARACTERS}",
    ),
    "a view of a page": (
        "path,patient_id,view,opacity\n0.png,p0," + "v" * 1000 + ",1\n",
        "row 2: 'view' has 1,000 characters",
    ),
    "latin-1": (GOOD.replace("opacity", "Verschattung über").encode("latin-1"), "in UTF-8: 'utf-8' codec .*save it"),
    "UTF-16": (GOOD.encode("utf-16"), r"NUL bytes, .*\(perhaps UTF-16\); save it as CSV in UTF-8"),
    "NUL bytes": (GOOD.encode() + b"0.png\0,p0,1\n", "NUL bytes"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(range(1, 256)) * 4, "manifest.csv can't be read as a CSV file in UTF-8"),
    "a spreadsheet": (b"PK\x03\x04" + bytes(100), "NUL bytes"),
    "a web page": ("<!DOCTYPE html>\n<html><body>Sign in, please</body></html>\n", "can't be read as a CSV file"),
    "one patient": (
        "path,patient_id,opacity\n" + "".join(f"{i}.png,p0,{i % 2}\n" for i in range(PATIENTS)),
        "has 1 labelled training patients, too few",
    ),
    "two patients": (rows(patients=2), "has 2 labelled training patients, too few"),
    "no positives": (rows(finding="absent"), r"no finding .*\(opacity\) is both present and absent in the test images"),
    "no negatives": (rows(finding="present"), "no finding .* is both present and absent in the test images"),
    "no labels": (GOOD.replace(",0\n", ",\n").replace(",1\n", ",\n"), "has no finding"),
    "no test image of one class": (
        "path,patient_id,split,opacity\n"
        + "".join(
            f"{i}.png,p{i},{'test' if i < 10 else 'val' if i < 16 else 'train'},{int(i > 9) * i % 2}\n"
            for i in range(40)
        ),
        "is both present and absent in the test images, so nothing can be scored",
    ),
    "no training image of one class": (
        "path,patient_id,split,opacity\n"
        + "".join(
            f"{i}.png,p{i},{'test' if i < 10 else 'val' if i < 16 else 'train'},{int(i < 16) * i % 2}\n"
            for i in range(40)
        ),
        "is both present and absent in 50 % of the labels",
    ),
    "no training patient": (
        "path,patient_id,split,opacity\n"
        + "".join(f"{i}.png,p{i},{'test' if i % 2 else 'val'},{i % 3 % 2}\n" for i in range(40)),
        "training|train",
    ),
}
MASKS: dict[str, tuple[str | bytes, str]] = {
    "nothing in them": ("", "masks.csv has no header"),
    "a box without end": ("path,finding,x,y,w,h\n0.png,opacity,1e308,1,1e308,5\n", "row 2: the box is .*finite"),
    "a box in words": ("path,finding,x,y,w,h\n0.png,opacity,a,b,c,d\n", "x, y, w and h must be numbers"),
    "a box outside": ("path,finding,x,y,w,h\n0.png,opacity,900,900,5,5\n", "lies outside its image of 32 x 32 pixels"),
    "a mask that climbs out": ("path,finding,mask\n0.png,opacity,../home/thesis.txt\n", "leads out of the folder"),
    "a mask that is a link out": ("path,finding,mask\n0.png,opacity,out.png\n", "leads out of the folder"),
    "a mask that is missing": (
        "path,finding,mask\n0.png,opacity,gone.png\n",
        "gone.png does not exist",
    ),
    "a mask that is no image": ("path,finding,mask\n0.png,opacity,manifest.csv\n", "is damaged, or not a PNG or JPEG"),
    "an image that climbs out": ("path,finding,x,y,w,h\n../x.png,opacity,1,1,2,2\n", "leads out of the folder"),
    "a finding of a page": (
        "path,finding,x,y,w,h\n0.png," + "f" * 1000 + ",1,1,2,2\n",
        "'finding' has 1,000 characters",
    ),
    "NUL bytes": (b"path,finding,mask\n0.png,opac\0ity,1.png\n", "NUL bytes"),
}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(PATIENTS):
        Image.fromarray(np.full((32, 32), 5 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def folder(bench: Commands, images: Path) -> Commands:
    """A data set that is all right, with traps beside the images."""
    for path in images.iterdir():
        os.link(path, bench.data / path.name)
    bench.write("outside/secret.png", (images / "0.png").read_bytes())
    bench.write("data/manifest.csv", GOOD)
    (bench.data / "folder").mkdir()
    os.mkfifo(bench.data / "pipe")
    for name, target in {
        "link.png": "0.png",
        "circle": "circle",
        "out.png": "../outside/secret.png",
        "outside": "../outside",
    }.items():
        (bench.data / name).symlink_to(bench.data / target)
    return bench


def use(bench: Commands) -> list[str]:
    return ["--data", "folder", "--data-root", str(bench.data), "--cache", str(bench.folder / "cache")]


@pytest.mark.parametrize(("content", "says"), MANIFESTS.values(), ids=MANIFESTS)
def test_manifest(folder: Commands, content: str | bytes, says: str) -> None:
    folder.write("data/manifest.csv", content)
    check(folder.run(*use(folder)), says)


@pytest.mark.parametrize(("content", "says"), MASKS.values(), ids=MASKS)
def test_masks(folder: Commands, content: str | bytes, says: str) -> None:
    folder.write("data/masks.csv", content)
    check(folder.run(*use(folder)), says)


OPTIONS = {
    "labels of an unknown column": ("labels=pneumonia", "no finding column 'pneumonia'; it has: opacity"),
    "labels of a column with a role": ("labels=path", "no finding column 'path'"),
    "labels a number": ("labels=5", "labels=5 names no finding column; write labels=A,B"),
    "labels blank": ("labels=''", "names no finding column"),
    "uncertain misspelt": ("uncertain=ignroe", "uncertain=ignroe is not a policy; choose ignore, positive or negative"),
    "fit misspelt": ("fit=padd", "fit=padd is not possible; choose pad, stretch, crop"),
    "fit a number": ("fit=3", "fit=3 is not possible"),
}


@pytest.mark.parametrize(("option", "says"), OPTIONS.values(), ids=OPTIONS)
def test_options_of_a_folder(folder: Commands, option: str, says: str) -> None:
    check(folder.run(*use(folder), "--set", f"data.options.{option}"), says)


def test_the_good_one_is_good(folder: Commands) -> None:
    """Else every case above could fail for another reason."""
    done = folder.run(*use(folder), "--dry-run")
    assert done.exit_code == 0, done.output


def test_columns_that_are_blank_and_have_no_name_are_no_mistake(folder: Commands) -> None:
    """Spreadsheets write them."""
    folder.write("data/manifest.csv", "".join(f"{line},,\n" for line in GOOD.splitlines()))
    assert load("folder", 32, folder.data).label_names == ("opacity",)


CELL = st.sampled_from(
    ["0.png", "1.png", "gone.png", "p", "1", "0", "-1", "", "7", '"', "x" * 300, "../a", "test", "\x00"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.lists(
        st.sampled_from(["path", "patient_id", "split", "sex", "age", "view", "A", "B", "", "A "]), max_size=6
    ),
    body=st.lists(st.lists(CELL | st.text(max_size=5), max_size=6), max_size=6),
)
def test_any_table_is_a_manifest_or_a_mistake(folder: Commands, header: list[str], body: list[list[str]]) -> None:
    path = folder.data / "manifest.csv"
    path.unlink()
    path.write_text("\n".join(map(",".join, [header, *body])), encoding="utf-8", errors="surrogatepass")
    try:
        data = load("folder", 32, folder.data)
    except (ValueError, FileNotFoundError) as error:
        mistake = error
        assert str(folder.data) in error_line(lambda: (_ for _ in ()).throw(mistake))
    else:
        assert set(np.unique(data.labels[~np.isnan(data.labels)])) <= {0.0, 1.0} and "" not in data.label_names
