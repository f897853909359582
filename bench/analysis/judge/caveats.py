"""What has to be known before a finding is read: whether it is evidence, which runs are missing or did not learn, how
many seeds there are, and what the amounts of data can't carry."""

from __future__ import annotations

from bench.analysis.judge.claims import ANOTHER_PROCESSOR, SEEDS
from bench.analysis.judge.scores import Scores
from bench.analysis.read.groups import UNLEARNED, Arm, Group
from bench.statistics import small_data
from bench.statistics.accuracy import LEVELS
from bench.statistics.small_data import Amounts, Training, scored_of
from methods import REFERENCE


def caveats(group: Group, scores: Scores | None, planned: int = 0) -> list[str]:
    """Sentences that come before all others; `planned` is the number of runs of the grid, or 0 if unknown."""
    out = []
    if not group.evidence:
        out.append(
            f"This is the {group.preset} preset: it shows that the machinery runs and is no evidence about any method."
        )
    missing = provisional(group, scores, planned)
    if missing:
        out.append(f"Provisional: {missing}.")
    out += _did_not_learn(group)
    if scores is not None and scores.fractions and len(group.seeds) < SEEDS:
        out.append(
            f"No verdict on accuracy: it needs {SEEDS} seeds, and there {_seeds(group, '')}. What follows on accuracy"
            f" are estimates: {ANOTHER_PROCESSOR}, because training that selects tokens amplifies rounding"
            " (docs/intervals.md)."
        )
    return out


def provisional(group: Group, scores: Scores | None, planned: int = 0) -> str:
    """Why the report is not the last word, or an empty string."""
    parts = []
    if planned > len(group.runs) + len(group.failed):
        parts.append(f"{len(group.runs)} of {planned} planned runs are done")
    if group.failed:
        parts.append(f"{len(group.failed)} {'runs' if len(group.failed) > 1 else 'run'} failed")
    short = [arm.label for arm in group.arms if scores and any(_incomplete(arm, scores, f) for f in scores.fractions)]
    if short:
        parts.append(f"seeds are missing for {', '.join(short)}")
    if len(group.seeds) < LEVELS:
        parts.append(f"there {_seeds(group)}, so intervals are over test patients alone")
    return "; ".join(parts)


def _seeds(group: Group, noun: str = " seeds") -> str:
    return f"is one{noun[:-1]}" if len(group.seeds) == 1 else f"are {len(group.seeds)}{noun}"


def _incomplete(arm: Arm, scores: Scores, fraction: float) -> bool:
    return len(arm.evaluations(scores.probe, fraction)) < len(scores.group.seeds)


def _did_not_learn(group: Group) -> list[str]:
    """A sentence on the runs that plateaued or collapsed: how many, of which methods, and where their scores are."""
    trained = [run for run in group.runs if run.record.objective != "none"]
    parts = []
    for verdict, what in (("plateaued", "did not leave the plateau of their loss"), ("collapsed", "collapsed")):
        count = sum(run.unlearned == verdict for run in trained)
        by_arm = {arm: sum(run.unlearned == verdict for run in arm.runs) for arm in group.trained}
        named = ", ".join(f"{arm.label} ({n} of {len(arm.runs)})" for arm, n in by_arm.items() if n)
        if count:
            parts.append(f"{count} of {len(trained)} runs {what}: {named}")
    if not parts:
        return []
    text = f"{'. '.join(parts)}. Their scores are in the means."
    if any(arm.unlearned for arm in group.trained if arm.strategy == REFERENCE):
        text += f" Differences to {REFERENCE} are differences to networks that did not all learn."
    return [text]


def mark_explained(group: Group) -> str:
    """What the mark UNLEARNED at a label means; empty where no label has it."""
    marked = [
        f"{arm.label.removesuffix(UNLEARNED).rstrip()} ({arm.unlearned} of {len(arm.runs)})"
        for arm in group.trained
        if arm.unlearned
    ]
    return f"{UNLEARNED} Means include runs that did not learn: {', '.join(marked)}." if marked else ""


def unlearned(group: Group) -> list[str]:
    """Runs that failed, plateaued or collapsed, by name, with the reason."""
    out = failed(group)
    for run in group.runs:
        learning = run.record.learning
        if learning and run.unlearned:
            out.append(
                f"{run.record.run_id} {learning.verdict} (loss {learning.final_loss:.2f}, plateau at "
                f"{learning.plateau_loss:.2f}, feature spread {learning.feature_std:.3g})"
            )
    return out


def failed(group: Group) -> list[str]:
    """Runs that failed, by name, with the reason."""
    return [f"{record.run_id} failed ({record.reason or 'no reason recorded'})" for record in group.failed]


def little_data(scores: Scores) -> list[str]:
    """What the data of these runs can't carry, in the words of the plan; on scored patients only where predictions are
    kept."""
    return small_data.sentences(amounts_of(scores))


def amounts_of(scores: Scores) -> Amounts:
    """How much data the runs of a group had, by their records."""
    trained = [run.record.time for run in scores.group.runs if run.record.objective != "none"]
    return Amounts(
        steps=max((time.steps for time in trained if time), default=0),
        training={fraction: _training(scores, fraction) for fraction in scores.group.fractions(scores.probe)},
        scored={} if scores.sample is None else scored_of(scores.sample.labels, scores.sample.patients, scores.names),
    )


def _training(scores: Scores, fraction: float) -> Training:
    """The fewest patients, and positive images of each finding, of all draws of a fraction."""
    found = [arm.evaluations(scores.probe, fraction) for arm in scores.group.arms]
    subsets = [draw.subset for by_seed in found for _, one in by_seed.values() for draw in one.draws]
    return Training(
        patients=min(subset.patients for subset in subsets),
        positives={name: min(subset.positives.get(name, 0) for subset in subsets) for name in scores.names},
    )
