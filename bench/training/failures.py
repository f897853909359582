"""Why a training or an evaluation failed, in sentences for records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.messages import FULL, disk_full

if TYPE_CHECKING:
    from bench.records.record import Record
    from bench.specs.run_spec import RunSpec

UNMET, LOST = "a rank did not come", "another of its ranks ended before its time"
"""How a reason begins that may be a fault of a rank's node rather than of the run."""


class TrainingFailed(Exception):
    """The training can't continue. The message is the reason."""


class EvaluationFailed(Exception):
    """An evaluation failed; the others of the run were made. The message is the reason."""


class RanksLost(Exception):
    """A training stopped on one rank, perhaps on that one alone, or a rank did not connect, so that the ranks can't
    continue together. `__cause__` is the error that stopped it."""


def lost_ranks(record: Record | None) -> bool:
    """Did the run fail because ranks exited or never connected? That says nothing about the run itself."""
    return record is not None and record.status == "failed" and record.reason.startswith((UNMET, LOST))


def reason_of(error: Exception, spec: RunSpec) -> str:
    """Say in a sentence for the record why a run failed."""
    import torch

    if isinstance(error, (TrainingFailed, EvaluationFailed)):
        return str(error)
    if isinstance(error, RanksLost) and isinstance(error.__cause__, Exception):
        error = error.__cause__
        if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
            return f"{LOST}: what that said stands in results/.workers"
    text = f"{error}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in text:
        return f"out of memory at batch {spec.train.batch}: use a smaller one with --set train.batch=N"
    if isinstance(error, OSError) and error.errno in FULL:
        return disk_full(error)
    return f"{type(error).__name__}: {text}"
