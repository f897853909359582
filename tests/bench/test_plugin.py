"""A strategy and an objective from one plug-in file: a whole grid with tables and figures, and nothing else touched."""

from __future__ import annotations

import re

from bench.analysis.read.groups import UNLEARNED
from bench.analysis.show import styles
from tests.bench import small

PLUGIN = '''
import torch
import torch.nn.functional as F

from methods import Entry
from methods.objectives.objective import Objective, total
from methods.strategies.selection import Choice, Selection


class EveryOther(Selection):
    """Keeps every other patch, in reading order."""

    def __init__(self, geometry):
        super().__init__(geometry, keep=0.5)

    def choose(self, images, call):
        index = torch.arange(0, self.geometry.patches, 2, device=images.device)
        return Choice(index.expand(len(images), -1))


class Uniformity(Objective):
    """Alignment and uniformity on the sphere (Wang and Isola, ICML 2020), without heads."""

    def forward(self, views, call):
        encoding = self.encoder(views.flatten(0, 1), call)
        one, two = F.normalize(encoding.features, dim=1).chunk(2)
        spread = torch.pdist(one).square().mul(-2).exp().mean().log()
        return total((one - two).square().sum(1).mean() + spread, encoding)

    def plateau(self, batch):
        return 0.0


STRATEGIES = {"every": Entry(":EveryOther", "every other patch", "a test")}
OBJECTIVES = {"uniform": Entry(":Uniformity", "alignment and uniformity", "a test")}
'''
METHODS = ["simclr/dense", "uniform/every"]  # in the order of a report


def test_a_strategy_and_an_objective_of_one_file_go_through_a_whole_grid(world: small.World, registries: None) -> None:
    file = world.folder / "mine.py"
    file.write_text(PLUGIN, encoding="utf-8")
    result = world.run("--plugin", str(file), "--methods", ",".join(reversed(METHODS)))
    assert result.exit_code == 0, result.output
    page = (world.reports / "report.md").read_text(encoding="utf-8")
    for title in ("Macro AUROC, linear probe", "Multiply-accumulates and memory", "Did it learn?"):
        assert rows_of(page, title) == METHODS, title
    assert rows_of(page, "Selection diagnostics") == METHODS[1:]
    drawn = {path.stem.split("-")[-1]: path.read_text(encoding="utf-8") for path in world.reports.rglob("*.svg")}
    for figure in ("labels", "cost", "training", "selection"):
        assert styles.COLOURS[0].lower() in drawn[figure], figure


def rows_of(page: str, title: str) -> list[str]:
    """The first cells of the table whose title begins so, without its head and without marks of runs that did not
    learn: none does in so few steps, or all do, as rounding has it."""
    table = page[page.index(f"**{title}") :].split("\n\n")[1]
    cells = [re.sub(r"\\(.)", r"\1", line.split(" | ")[0].removeprefix("| ")) for line in table.splitlines()[2:]]
    return [cell.removesuffix(UNLEARNED).rstrip() for cell in cells]
