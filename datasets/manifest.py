"""The tables of a folder of images: manifest.csv and masks.csv, read strictly.

Every cell is read as text, and every complaint names the file, the row as a spreadsheet counts it (the header
is row 1) and what would be right. Nothing is guessed: a column that is no finding is left out and named.
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
SHORT = ("patient_id", "split", "view", "finding")  # cells that are names
MOSTLY = 0.9  # of a column's filled cells: it is a finding, with mistakes


@dataclass(frozen=True)
class Manifest:
    """manifest.csv: N rows. `files` are resolved and lie inside the root; `names` are as written."""

    names: list[str]
    files: list[Path]
    patients: Array
    labels: Array  # (N, L) float32, uncertain ones resolved
    label_names: tuple[str, ...]
    split: Array | None
    subgroups: dict[str, Array]
    notes: list[str]


def read_manifest(root: Path, labels: Sequence[str] | None, uncertain: str) -> Manifest:
    """root/manifest.csv; `labels` names the finding columns, `uncertain` is a key of POLICIES.

    Raises FileNotFoundError for a missing table or image, ValueError for everything that contradicts itself.
    """
    path = root / "manifest.csv"
    table = read_table(path, "it lists the images, with the columns path, patient_id and one a finding")
    for column in ("path", "patient_id"):
        if column not in table:
            between = " Columns are separated by commas." if table.shape[1] == 1 else ""
            raise ValueError(
                f"{path} has no column '{column}'; its columns are: {', '.join(map(str, table))}.{between} Add it, or "
                "rename the one that is meant."
            )
        blank = np.flatnonzero(table[column].to_numpy() == "")
        if len(blank):
            raise ValueError(f"{path}, row {_row(table, blank[0])}: '{column}' is blank; fill it in.")
    names = table["path"].tolist()
    files = _files(root, table, path)
    findings, notes = _findings(table, labels, path)
    levels = np.stack([_levels(table, column, path) for column in findings], axis=1)
    unsure = int((levels == -1).sum())
    if unsure:
        notes.append(f"{unsure:,} uncertain labels (-1) are taken as {_meaning(uncertain)} (uncertain={uncertain}).")
    levels[levels == -1] = POLICIES[uncertain]
    unlabelled = int(np.isnan(levels).all(axis=1).sum())
    if unlabelled:
        notes.append(f"{unlabelled:,} of {len(table):,} images have no label and take part in pre-training only.")
    return Manifest(
        names=names,
        files=files,
        patients=table["patient_id"].to_numpy(dtype=np.str_),
        labels=levels.astype(np.float32),
        label_names=tuple(findings),
        split=_split(table, path),
        subgroups=_subgroups(table),
        notes=notes,
    )


def read_table(path: Path, purpose: str) -> pd.DataFrame:
    """A CSV file as text, cells stripped; the index is the row number in the file. UTF-8, with or without a
    mark."""
    if not path.is_file():
        raise FileNotFoundError(f"The file {path} was looked for and is not there; {purpose}.")
    content = read_within(path, TABLE_BYTES)
    if b"\0" in content:
        raise ValueError(
            f"{path} holds NUL bytes, so it is no text in UTF-8 (perhaps UTF-16); save it as CSV in UTF-8."
        )
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
        raise ValueError(f"{path} can't be read as a CSV file in UTF-8: {reason}; mend it or save it anew.") from error
    with suppress(csv.Error):  # a cell that is too long is refused below
        _refuse_short_rows(text, len(header), path)
    table.columns = pd.Index(header)
    table = table.fillna("").apply(lambda column: column.str.strip())
    table.index = pd.RangeIndex(2, len(table) + 2)
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise ValueError(f"{path} has no rows under its header; list at least one image.")
    table = table.loc[:, [name != "" or bool((table.iloc[:, i] != "").any()) for i, name in enumerate(header)]]
    if "" in table:
        raise ValueError(f"{path}: column {header.index('') + 1} has no name; give it one or delete it.")
    for column in table:
        _check_lengths(table, str(column), path)
    return table


def _refuse_short_rows(text: str, columns: int, path: Path) -> None:
    """pandas would fill them up: but a blank cell is there, and one that is not may be the end of another row."""
    for number, cells in enumerate(csv.reader(io.StringIO(text, newline="")), start=1):
        if cells and len(cells) < columns and any(map(str.strip, cells)):
            raise ValueError(
                f"{path}, row {number} has {len(cells)} cells, and the header {columns}: write a comma for each that "
                "is blank."
            )


def _check_header(path: Path, header: list[str]) -> None:
    if not any(header):
        raise ValueError(f"{path} has no header in its first row; begin it with the names of the columns.")
    if len(header) > TABLE_COLUMNS:
        raise ValueError(f"{path} has {len(header):,} columns, and at most {TABLE_COLUMNS:,} are read; leave some out.")
    for place, name in enumerate(header, start=1):
        if len(name) > NAME_CHARACTERS or not name.isprintable():
            raise ValueError(
                f"{path}: the name of column {place} ({name[:20]!r}) holds line breaks or control characters, or more "
                f"than {NAME_CHARACTERS} characters; rename it."
            )
        if name and name in header[: place - 1]:
            raise ValueError(f"{path} has the column '{name}' twice; rename one.")


def _check_lengths(table: pd.DataFrame, column: str, path: Path) -> None:
    """Cells that are names are short; the memory of all goes with the longest."""
    most = NAME_CHARACTERS if column in SHORT else FIELD_CHARACTERS
    lengths = table[column].str.len().to_numpy()
    place = int(lengths.argmax())
    if lengths[place] > most:
        raise ValueError(
            f"{path}, row {_row(table, place)}: '{column}' has {lengths[place]:,} characters, and at most {most:,} are "
            "read; shorten it or leave the column out."
        )


def inside(root: Path, name: str, where: str) -> Path:
    """The file of that name, links resolved; ValueError when it lies outside the root."""
    try:
        base = root.resolve()
        file = (base / name).resolve()
    except (OSError, RuntimeError) as error:  # too long a name; links in a circle
        raise ValueError(f"{where}: the path '{name[:80]}' leads nowhere ({error}); name a file.") from error
    if not file.is_relative_to(base):
        raise ValueError(f"{where}: the path '{name}' leads out of the folder {root}; keep all files inside it.")
    return file


def _row(table: pd.DataFrame, position: Any) -> int:
    return int(table.index[int(position)])


def _files(root: Path, table: pd.DataFrame, path: Path) -> list[Path]:
    seen: dict[Path, int] = {}
    missing: list[Path] = []
    for row, name in table["path"].items():
        file = inside(root, name, f"{path}, row {row}")
        if file in seen:
            raise ValueError(f"{path}, row {row}: the path '{name}' is that of row {seen[file]} again; drop one.")
        seen[file] = int(str(row))
        if not os.path.isfile(file):  # nor where its name is too long to be one
            missing.append(file)
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"The image {missing[0]}{more} was looked for and is not there; {path} lists it.")
    return list(seen)


def _findings(table: pd.DataFrame, labels: Sequence[str] | None, path: Path) -> tuple[list[str], list[str]]:
    """The finding columns, and notes that name what is left out."""
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
        raise ValueError(f"{path} has no finding: a column that holds only 1, 0, -1 and blanks, not all of them blank.")
    notes = []
    empty = [column for column in blank if column not in findings]
    rest = [column for column in others if column not in findings and column not in blank]
    if rest:
        notes.append(f"Columns left out, as they are no findings: {', '.join(rest)}.")
    if empty:
        notes.append(f"Columns left out, as they are blank in every row: {', '.join(empty)}.")
    return findings, notes


def _levels(table: pd.DataFrame, column: str, path: Path) -> Array:
    """(N,) 1, 0, -1 or NaN."""
    levels = table[column].map(LEVELS)
    _refuse_level(table, column, path, "name other columns as findings")
    return levels.to_numpy(dtype=np.float64)


def _share_of_levels(cells: pd.Series) -> float:
    """Of the filled cells of a column, those that a finding may have."""
    filled = cells[cells != ""]
    return float(filled.isin(list(LEVELS)).mean())


def _refuse_level(table: pd.DataFrame, column: str, path: Path, otherwise: str) -> None:
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
    """(N,) the official split, or None without one."""
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
                f"(row {row}); give each patient to one."
            )
    return words.to_numpy(dtype=np.str_)


def _subgroups(table: pd.DataFrame) -> dict[str, Array]:
    """sex, age (bands of years) and view, those that are there and not all unknown."""
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
