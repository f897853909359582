"""Figures: their geometry against brute force, their content drawn, their colours told apart."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest

from bench.analysis.judge.scores import Scores
from bench.analysis.read.frames import cost_frame, history_frame
from bench.analysis.read.results import group_runs, read_runs
from bench.analysis.show import plots, saliency
from methods import BASELINES, STRATEGIES


@pytest.fixture(scope="module")
def made(tmp_path_factory, synthetic):
    results = tmp_path_factory.mktemp("plots")
    world = synthetic.World(patients=60, seeds=(0, 1), draws=1, probes=("linear",))
    synthetic.write_results(results, world)
    (group,) = group_runs(read_runs(results))
    return group, Scores(group, "linear"), cost_frame(results)


def colours_in(path):
    picture = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    assert picture.shape[0] > 300
    assert picture.shape[1] > 500
    return {tuple(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0)}


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def of(*strategies):
    return {rgb((STRATEGIES | BASELINES)[name].colour) for name in strategies}


def test_label_efficiency_draws_every_method_in_its_colour(made, tmp_path):
    group, scores, _ = made
    plots.label_efficiency(scores, tmp_path, "labels")
    found = colours_in(tmp_path / "labels.png")
    assert of(*(arm.strategy for arm in group.arms)) <= found
    text = (tmp_path / "labels.svg").read_text()
    assert "Date" not in text


def test_trade_off_draws_trained_methods_in_both_panels(made, tmp_path):
    _, scores, cost = made
    assert plots.trade_off(scores, cost, tmp_path, "cost")
    found = colours_in(tmp_path / "cost.png")
    assert of("sparsecontrast", "dynamicvit", "fixed") <= found
    named = (tmp_path / "cost.svg").read_text()  # matplotlib names each text in a comment
    assert "<!-- simclr/sparsecontrast -->" in named
    assert "<!-- supervised -->" not in named


def test_training_curves_need_a_history(made, tmp_path):
    group, _, _ = made
    frame = history_frame(group)
    assert set(frame["arm"]) == {arm.label for arm in group.arms if not arm.baseline}
    assert len(frame) == 7 * 2 * 10
    assert plots.curves(frame, group, tmp_path, "training")
    assert of("sparsecontrast") <= colours_in(tmp_path / "training.png")
    assert not plots.curves(frame.iloc[:0], group, tmp_path, "nothing")


def test_run_time_is_paired_step_time_over_the_run_speed_up(made):
    group, _, cost = made
    times = {arm.strategy: plots.run_hours(arm, group, cost) for arm in group.arms if arm.objective == "simclr"}
    dense = 4.0e-3 * 225 * 64 / 3600  # 4 ms an image, 225 steps of 64 images
    assert times["dense"] == pytest.approx(dense)
    assert times["sparsecontrast"] == pytest.approx(dense / 1.40)


def test_the_front_is_what_no_point_beats():
    points = [tuple(p) for p in np.random.default_rng(0).integers(0, 12, (40, 2)).astype(float)]
    beaten = {p for p in points for q in points if q[0] <= p[0] and q[1] >= p[1] and q != p}
    assert plots.front(points) == sorted(set(points) - beaten)


def test_near_points_are_set_side_by_side_and_far_ones_stay():
    found = plots.beside([1.0, 5.0, 1.01, 1.02], 0.1)
    assert found[1] == 5.0
    assert [found[0], found[2], found[3]] == pytest.approx([0.91, 1.01, 1.11])


def test_a_strategy_has_one_colour_and_an_objective_one_marker(made):
    group, _, _ = made
    styles = {arm.label: plots.style_of(arm, group) for arm in group.arms}
    assert styles["simclr/dense"]["color"] == styles["moco/dense"]["color"]
    assert styles["simclr/dense"]["marker"] != styles["moco/dense"]["marker"]


def test_an_outline_is_every_edge_between_inside_and_outside():
    mask = np.random.default_rng(1).random((6, 7)) < 0.5
    edges = {tuple(map(tuple, edge)) for edge in saliency.outline(mask).tolist()}
    expected = set()
    for y in range(6):
        for x in range(7):
            if not mask[y, x]:
                continue
            for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                inside = 0 <= y + dy < 6 and 0 <= x + dx < 7 and mask[y + dy, x + dx]
                if inside:
                    continue
                if dx == 0:
                    at = y + dy / 2
                    expected.add(((x - 0.5, at), (x + 0.5, at)))
                else:
                    at = x + dx / 2
                    expected.add(((at, y - 0.5), (at, y + 0.5)))
    assert edges == expected


def test_patches_cover_the_image_in_equal_blocks():
    kept = np.array([[True, False], [False, True]])
    assert np.array_equal(saliency.upscale(kept, (4, 4)), np.kron(kept, np.ones((2, 2), bool)))
    assert saliency.upscale(np.ones((3, 3), bool), (10, 11)).all()


def test_the_selection_figure_shows_lesions_and_what_each_strategy_keeps(made, tmp_path):
    group, _, _ = made
    found = saliency.read(group)
    assert [one.arm.strategy for one in found] == ["sparsecontrast", "fixed"]
    caption = saliency.draw(group, group.runs[0].record.data.label_names, tmp_path, "selection")
    assert "simclr/sparsecontrast (seed 0) keeps 50 %" in caption
    assert "the first test patient with each finding" in caption
    colours = colours_in(tmp_path / "selection.png")
    assert {rgb(saliency.LESION)} | of("sparsecontrast", "fixed") <= colours


def test_padding_is_marked_in_the_selection_figure(synthetic, tmp_path):
    world = synthetic.World(patients=40, seeds=(0,), probes=("linear",), fractions={10.0: 1.0})
    run = synthetic.write_run(tmp_path, world, synthetic.Method("simclr/sparsecontrast", 0.8, 0.5), 0)
    synthetic.write_selection(run, "near")
    (group,) = group_runs(read_runs(tmp_path))
    blue = 255 * np.array(saliency.PADDING)
    captions = []
    for bars in (0, 8):
        with np.load(run / "selection.npz") as saved:
            count, height, width = saved["images"].shape
            frames = np.tile([bars, 0, width - bars, height], (count, 1))
            np.savez(run / "selection.npz", **{**saved, "frames": frames})
        captions.append(saliency.draw(group, synthetic.LABELS, tmp_path, "selection"))
        apart = np.abs(np.array(list(colours_in(tmp_path / "selection.png"))) - blue).max(1)
        assert (apart.min() < 1) == (bars > 0)
    assert ["shown in blue" in caption for caption in captions] == [False, True]


def test_a_selection_over_other_images_is_not_set_beside(made, synthetic, tmp_path):
    world = synthetic.World(patients=40, seeds=(0,), probes=("linear",), fractions={10.0: 1.0})
    make = synthetic.Method
    for name, images in (("simclr/sparsecontrast", 6), ("simclr/fixed", 5)):
        synthetic.write_selection(synthetic.write_run(tmp_path, world, make(name, 0.8, 0.5), 0), "near", images)
    (group,) = group_runs(read_runs(tmp_path))
    assert [one.arm.label for one in saliency.read(group)] == ["simclr/sparsecontrast"]
