"""Strict reading of the tables of an image folder: manifest.csv and masks.csv.

Every cell is read as text. Every error names the file, the row as in a spreadsheet (the header is row 1) and what would
be valid. A column that is not a finding is left out and named in a note.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets.dataset import SPLIT_NAMES, Array
from datasets.limits import FIELD_CHARACTERS, NAME_CHARACTERS, TABLE_BYTES, TABLE_COLUMNS, read_within

ROLES = ("path", "patient_id", "split", "view", "sex", "age")
LEVELS = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0, "": np.nan}
SPLIT_WORDS = {name: name for name in SPLIT_NAMES} | dict.fromkeys(("valid", "validate", "validation"), "val")
SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
POLICIES = {"ignore": np.nan, "positive": 1.0, "negative": 0.0}
SHORT = ("patient_id", "split", "view", "finding")  # columns whose cells are names
MOSTLY = 0.9  # a column with this share of valid cells is taken for a finding with mistakes


@dataclass(frozen=True)
class Manifest:
    """Contents of manifest.csv, with N rows."""

    names: list[str]  # paths as written
    files: list[Path]  # resolved paths, all inside the root
    patients: Array  # (N,) str
    labels: Array  # (N, L) float32, uncertain ones resolved
    counted: dict[str, Array]  # as in `Dataset`
    label_names: tuple[str, ...]
    split: Array | None  # (N,) of "train", "val", "test"
    subgroups: dict[str, Array]  # (N,) str by name
    notes: list[str]


def read_manifest(root: Path, labels: Sequence[str] | None, uncertain: str) -> Manifest:
    """Read root/manifest.csv.

    labels: names of the finding columns, or None to detect them. uncertain: a key of POLICIES.

    Raises FileNotFoundError for a missing table or image, ValueError for invalid or contradictory contents.
    """
    path = root / "manifest.csv"
    table = read_table(path, "it must list the images, with the columns path, patient_id and one per finding")
    for column in ("path", "patient_id"):
        if column not in table:
            between = " Columns must be separated by commas." if table.shape[1] == 1 else ""
            raise ValueError(
                f"{path} has no column '{column}'; its columns are: {', '.join(map(str, table))}.{between} Add the "
                "column, or rename the one that holds it."
            )
        blank = np.flatnonzero(table[column].to_numpy() == "")
        if len(blank):
            raise ValueError(f"{path}, row {_row(table, blank[0])}: '{column}' is blank; fill it in.")
    names = table["path"].tolist()
    files = _files(root, table, path)
    findings, notes = _findings(table, labels, path)
    levels = np.stack([_levels(table, column, path) for column in findings], axis=1)
    unsure = levels == -1
    what = f"Uncertain labels (-1), taken as {_meaning(uncertain)} (uncertain={uncertain})"
    levels[unsure] = POLICIES[uncertain]
    return Manifest(
        names=names,
        files=files,
        patients=table["patient_id"].to_numpy(dtype=np.str_),
        labels=levels.astype(np.float32),
        counted={what: unsure.sum(axis=1)} if unsure.any() else {},
        label_names=tuple(findings),
        split=_split(table, path),
        subgroups=_subgroups(table),
        notes=notes,
    )


def read_table(path: Path, purpose: str) -> pd.DataFrame:
    """Read a CSV file in UTF-8, with or without a byte-order mark, as stripped text indexed by the row in the file.

    `purpose` completes the message for a missing file. Raises FileNotFoundError for a missing file, ValueError for one
    that is not a valid table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The file {path} does not exist; {purpose}.")
    content = read_within(path, TABLE_BYTES)
    if b"\0" in content:
        raise ValueError(f"{path} holds NUL bytes, so it is not UTF-8 text (perhaps UTF-16); save it as CSV in UTF-8.")
    try:
        text = content.decode("utf-8-sig")
        header = [cell.strip() for cell in next(csv.reader(io.StringIO(text, newline="")), [])]
        _check_header(path, header)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table: pd.DataFrame = pd.read_csv(
                io.StringIO(text, newline=""),
                dtype=str,
                keep_default_na=False,
                na_filter=False,
                index_col=False,
                skip_blank_lines=False,
            )
    except (
        pd.errors.ParserError,
        pd.errors.ParserWarning,
        pd.errors.EmptyDataError,
        UnicodeError,
        csv.Error,
    ) as error:
        reason = str(error).strip().rstrip(".")
        raise ValueError(
            f"{path} can't be read as a CSV file in UTF-8: {reason}; correct it or save it again."
        ) from error
    with suppress(csv.Error):  # cells that are too long are refused below
        _refuse_short_rows(text, len(header), path)
    table.columns = pd.Index(header)
    table = table.fillna("").apply(lambda column: column.str.strip())
    table.index = pd.RangeIndex(2, len(table) + 2)
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise ValueError(f"{path} has no rows below its header; add at least one.")
    table = table.loc[:, [name != "" or bool((table.iloc[:, i] != "").any()) for i, name in enumerate(header)]]
    if "" in table:
        raise ValueError(f"{path}: column {header.index('') + 1} has no name; name it or delete it.")
    for column in table:
        _check_lengths(table, str(column), path)
    return table


def _refuse_short_rows(text: str, columns: int, path: Path) -> None:
    """Refuse rows with too few cells, which pandas would fill up although cells may be missing anywhere in the row."""
    for number, cells in enumerate(csv.reader(io.StringIO(text, newline="")), start=1):
        if cells and len(cells) < columns and any(map(str.strip, cells)):
            raise ValueError(
                f"{path}, row {number} has {len(cells)} cells, but the header has {columns}; blank cells need their "
                "commas too."
            )


def _check_header(path: Path, header: list[str]) -> None:
    """Raise ValueError for a header that is blank, too long, or has invalid or duplicate names."""
    if not any(header):
        raise ValueError(f"{path} has no header in its first row; begin it with the names of the columns.")
    if len(header) > TABLE_COLUMNS:
        raise ValueError(f"{path} has {len(header):,} columns, but the limit is {TABLE_COLUMNS:,}; leave some out.")
    for place, name in enumerate(header, start=1):
        if len(name) > NAME_CHARACTERS or not name.isprintable():
            raise ValueError(
                f"{path}: the name of column {place} ({name[:20]!r}) has line breaks, control characters or more than "
                f"{NAME_CHARACTERS} characters; rename it."
            )
        if name and name in header[: place - 1]:
            raise ValueError(f"{path} has two columns '{name}'; rename one.")


def _check_lengths(table: pd.DataFrame, column: str, path: Path) -> None:
    """Raise ValueError for cells that are too long: the longest name determines the memory of a whole array."""
    limit = NAME_CHARACTERS if column in SHORT else FIELD_CHARACTERS
    lengths = table[column].str.len().to_numpy()
    place = int(lengths.argmax())
    if lengths[place] > limit:
        raise ValueError(
            f"{path}, row {_row(table, place)}: '{column}' has {lengths[place]:,} characters, but the limit is "
            f"{limit:,}; shorten it or leave the column out."
        )


def inside(root: Path, name: str, where: str) -> Path:
    """Return the file `name` with links resolved. Raises ValueError if it lies outside `root`."""
    try:
        base = root.resolve()
        file = (base / name).resolve()
    except (OSError, RuntimeError) as error:  # a name that is too long; a cycle of links
        raise ValueError(f"{where}: the path '{name[:80]}' is invalid ({error}); name a file.") from error
    if not file.is_relative_to(base):
        raise ValueError(f"{where}: the path '{name}' leads out of the folder {root}; keep all files inside it.")
    return file


def _row(table: pd.DataFrame, position: Any) -> int:
    """Return the row in the file of a position in the table."""
    return int(table.index[int(position)])


def _files(root: Path, table: pd.DataFrame, path: Path) -> list[Path]:
    """Return the resolved image files. Raises ValueError for duplicates, FileNotFoundError for missing ones."""
    seen: dict[Path, int] = {}
    missing: list[Path] = []
    for row, name in table["path"].items():
        file = inside(root, name, f"{path}, row {row}")
        if file in seen:
            raise ValueError(
                f"{path}, row {row}: the path '{name}' is the same file as in row {seen[file]}; remove one row."
            )
        seen[file] = int(str(row))
        if not os.path.isfile(file):  # False also for a name that is too long, where Path.is_file raises
            missing.append(file)
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"The image {missing[0]}{more} does not exist; it is listed in {path}.")
    return list(seen)


def _findings(table: pd.DataFrame, labels: Sequence[str] | None, path: Path) -> tuple[list[str], list[str]]:
    """Return the names of the finding columns, and notes that name the columns which are left out."""
    others = [str(column) for column in table if column not in ROLES]
    blank = [column for column in others if (table[column] == "").all()]
    if labels is None:
        findings = [c for c in others if c not in blank and _share_of_levels(table[c]) == 1]
        for column in others:
            if column not in blank and MOSTLY <= _share_of_levels(table[column]) < 1:
                _refuse_level(table, column, path, "leave it out by naming the findings: --set data.options.labels=A,B")
    else:
        findings = list(dict.fromkeys(labels))
        for column in findings:
            if column not in others:
                raise ValueError(f"{path} has no finding column '{column}'; it has: {', '.join(others) or 'none'}.")
            if column in blank:
                raise ValueError(f"{path}: the finding column '{column}' is blank in every row; leave it out.")
    if not findings:
        raise ValueError(
            f"{path} has no finding; add a column that holds only 1, 0, -1 and blanks, not all of them blank."
        )
    notes = []
    empty = [column for column in blank if column not in findings]
    rest = [column for column in others if column not in findings and column not in blank]
    if rest:
        notes.append(f"Columns left out, as they are no findings: {', '.join(rest)}.")
    if empty:
        notes.append(f"Columns left out, as they are blank in every row: {', '.join(empty)}.")
    return findings, notes


def _levels(table: pd.DataFrame, column: str, path: Path) -> Array:
    """Convert a finding column to numbers (N,): 1, 0, -1 or NaN."""
    levels = table[column].map(LEVELS)
    _refuse_level(table, column, path, "name other columns as findings")
    return levels.to_numpy(dtype=np.float64)


def _share_of_levels(cells: pd.Series) -> float:
    """Return the share of the filled cells of a column that are valid in a finding."""
    filled = cells[cells != ""]
    return float(filled.isin(list(LEVELS)).mean())


def _refuse_level(table: pd.DataFrame, column: str, path: Path, otherwise: str) -> None:
    """Raise ValueError for the first invalid cell of a finding; `otherwise` is another way out, for the message."""
    wrong = np.flatnonzero(~table[column].isin(list(LEVELS)).to_numpy())
    if len(wrong):
        value = table[column].iloc[wrong[0]]
        raise ValueError(
            f"{path}, row {_row(table, wrong[0])}: the finding '{column}' is '{value}'; it must be 1, 0, -1 or blank "
            f"(or {otherwise})."
        )


def _meaning(uncertain: str) -> str:
    return {"ignore": "missing", "positive": "present", "negative": "absent"}[uncertain]


def _split(table: pd.DataFrame, path: Path) -> Array | None:
    """Return the official split (N,), or None without one. Raises ValueError for a patient in two splits."""
    if "split" not in table or (table["split"] == "").all():
        return None
    words = table["split"].str.lower().map(SPLIT_WORDS).fillna("")
    wrong = np.flatnonzero((words == "").to_numpy())
    if len(wrong):
        value = table["split"].iloc[wrong[0]]
        raise ValueError(
            f"{path}, row {_row(table, wrong[0])}: the split is '{value}'; it must be train, val or test in every row."
        )
    first: dict[str, tuple[str, Any]] = {}
    for row, patient, split in zip(table.index, table["patient_id"], words, strict=True):
        earlier, where = first.setdefault(patient, (split, row))
        if earlier != split:
            raise ValueError(
                f"{path}: patient '{patient}' is in two splits, {earlier} (row {where}) and {split} "
                f"(row {row}); put each patient into one split."
            )
    return words.to_numpy(dtype=np.str_)


def _subgroups(table: pd.DataFrame) -> dict[str, Array]:
    """Return sex, age (bands of years) and view, without those that are missing or always unknown."""
    groups: dict[str, Array] = {}
    if "sex" in table:
        groups["sex"] = table["sex"].str.lower().map(SEXES).fillna("").to_numpy(dtype=np.str_)
    if "age" in table:
        years = pd.to_numeric(table["age"].str.removesuffix("Y"), errors="coerce").to_numpy(dtype=np.float64)
        bands = np.select(
            [(years >= 0) & (years < 40), (years >= 40) & (years < 65), years >= 65],
            ["<40", "40-64", "65+"],
            "",
        )
        groups["age"] = np.where(years <= 130, bands, "").astype(np.str_)
    if "view" in table:
        groups["view"] = table["view"].to_numpy(dtype=np.str_)
    return {name: group for name, group in groups.items() if (group != "").any()}
