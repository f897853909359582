"""The table of lesion area kept: estimates and intervals of the stored pseudo-values, and what few patients allow."""

from __future__ import annotations

import numpy as np
import pytest

from bench.analysis.read.groups import ReportRefused
from bench.analysis.read.results import group_runs, read_runs
from bench.analysis.show.cells import NONE
from bench.analysis.show.lesion_tables import lesions
from bench.statistics.lesions import PARTS, part_interval

PATIENTS = 60


def group_of(folder, synthetic, seeds: int, patients_with: int = 30):
    """A group whose runs keep 0.7 of the lesions of the first finding: 0.5 share, 0.15 place, 0.05 image."""
    world = synthetic.World(
        patients=PATIENTS, seeds=tuple(range(seeds)), probes=("linear",), draws=1, fractions={10.0: 1.0}
    )
    random = np.random.default_rng(0)
    tables = []
    for seed in range(seeds):
        run = synthetic.write_run(folder, world, synthetic.Method("simclr/sparsecontrast", 0.8, 0.5), seed)
        count = len(synthetic.LABELS)
        pseudo = np.full((count, 3, PATIENTS), np.nan)
        pseudo[0] = np.array([0.7, 0.15, 0.05])[:, None] + 0.1 * random.normal(size=(3, PATIENTS))
        kept = {"share": np.full(count, 0.5), "by_area": np.full(count, 0.65)}
        with_it = np.zeros(count, dtype=int)
        with_it[0] = patients_with
        np.savez(run / "lesions.npz", pseudo=pseudo, images=2 * with_it, patients=with_it, **kept)
        tables.append(pseudo[0])
    (group,) = group_runs(read_runs(folder))
    return group, np.array(tables)


def test_a_row_holds_the_crossed_intervals_of_the_pseudo_values(tmp_path, synthetic) -> None:
    group, tables = group_of(tmp_path, synthetic, seeds=5)
    table = lesions(group)
    (row,) = table.rows  # findings without a lesion have none
    cells = dict(zip(table.columns, row, strict=True))
    assert [cells[name] for name in ("finding", "seeds", "images (patients)", "share", "by area")] == [
        synthetic.LABELS[0],
        "5",
        "60 (30)",
        "0.500",
        "0.650",
    ]
    expected = [part_interval(tables[:, part], name) for part, name in enumerate(PARTS)]
    assert cells["lesion area kept"] == f"{expected[0].value:.3f} [{expected[0].low:.3f}, {expected[0].high:.3f}]"
    signed = [f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]".replace("-", "−") for e in expected[1:]]
    assert [cells["place"], cells["image"]] == signed
    assert "nothing is concluded" not in table.note
    assert NONE not in " ".join(row)
    assert f"{NONE}:" not in table.note


def test_few_patients_and_few_seeds_are_said(tmp_path, synthetic) -> None:
    few, _ = group_of(tmp_path / "few", synthetic, seeds=5, patients_with=4)
    assert "(no interval)" in lesions(few).rows[0][-1]
    assert f"4 test patients with a lesion of {synthetic.LABELS[0]}, and an interval needs 5" in lesions(few).note
    rough, _ = group_of(tmp_path / "rough", synthetic, seeds=5, patients_with=9)
    assert lesions(rough).rows[0][-1].endswith("(rough)")
    assert "Rough: fewer than 10 patients" in lesions(rough).note
    alone, _ = group_of(tmp_path / "alone", synthetic, seeds=3)
    assert "Fewer than 5 seeds: these are estimates, from which nothing is concluded." in lesions(alone).note


def changed(folder, number: int, **arrays) -> None:
    path = sorted(folder.glob("*/lesions.npz"))[number]
    with np.load(path) as saved:
        np.savez(path, **{**saved, **arrays})


def test_without_a_comparison_there_is_no_number_and_a_reason(tmp_path, synthetic) -> None:
    group, tables = group_of(tmp_path, synthetic, seeds=5)
    pseudo = np.full((len(synthetic.LABELS), 3, PATIENTS), np.nan)
    pseudo[0, 0] = tables[0][0]
    changed(tmp_path, 0, pseudo=pseudo)
    table = lesions(group)
    assert table.rows[0][-2:] == (NONE, NONE)
    assert table.rows[0][5].startswith(f"{tables[:, 0].mean():.3f} [")
    assert f"{NONE}: no comparison with other patients" in table.note


def test_what_is_zero_in_every_image_needs_no_interval(tmp_path, synthetic) -> None:
    group, tables = group_of(tmp_path, synthetic, seeds=5)
    for number in range(5):
        pseudo = np.full((len(synthetic.LABELS), 3, PATIENTS), np.nan)
        pseudo[0] = tables[number]
        pseudo[0, 2] = 0
        changed(tmp_path, number, pseudo=pseudo)
    assert lesions(group).rows[0][-1] == "0"
    assert "exactly 0 for a selection that is the same for all images" in lesions(group).note
    assert "No interval" not in lesions(group).note


def test_seeds_whose_records_lack_the_file_are_not_counted(tmp_path, synthetic) -> None:
    group, _ = group_of(tmp_path, synthetic, seeds=5)
    sorted(tmp_path.glob("*/lesions.npz"))[0].unlink()
    table = lesions(group)
    assert table.rows[0][2] == "4"
    assert "nothing is concluded" in table.note


def test_files_about_other_patients_are_refused(tmp_path, synthetic) -> None:
    group, _ = group_of(tmp_path, synthetic, seeds=3)
    changed(tmp_path, 1, pseudo=np.zeros((len(synthetic.LABELS), 3, PATIENTS + 1)))
    with pytest.raises(ReportRefused, match="other test patients for some seeds: rerun"):
        lesions(group)


@pytest.mark.parametrize("seeds", [1, 3])
def test_records_without_the_file_have_no_table(tmp_path, synthetic, seeds) -> None:
    world = synthetic.World(patients=40, seeds=tuple(range(seeds)), probes=("linear",), fractions={10.0: 1.0})
    synthetic.write_results(tmp_path, world, [synthetic.Method("simclr/sparsecontrast", 0.8, 0.5)])
    (group,) = group_runs(read_runs(tmp_path))
    assert lesions(group) is None
