"""Requeues of a run's SLURM job, and the progress between them, in `results/.jobs/<run id>.progress.json`: a run that
makes no progress is recorded as failed instead of being requeued forever."""

from __future__ import annotations

import json

from bench.records.environment import slurm_job
from bench.records.store import Store, write_atomically


class Requeues:
    """Requeues and progress of one run's SLURM job."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self.run_id = store, run_id
        self.path = store.jobs / f"{run_id}.progress.json"

    def reason_to_stop(self, steps: int, most: int) -> str:
        """Note that the job starts with `steps` steps done; returns why it should stop, "" if it may continue.

        It stops after more than `most` requeues, or when it made no progress between two requeues. Outside SLURM it
        always continues.
        """
        job, restart = slurm_job()
        if not job:
            return ""
        trained, evaluations = self.store.done(self.run_id), self.store.folder(self.run_id) / "evaluations"
        starts = [*self._earlier(job), [steps, trained + len(list(evaluations.glob("*.json")))]]
        write_atomically(self.path, json.dumps({"job": job, "starts": starts}).encode())
        if restart > most:
            return f"its job {job} was requeued {restart} times, and the limit is {most}: see --slurm requeues=N"
        if len(starts) > 2 and starts[-1] == starts[-2]:
            where, more = f"at step {steps}", ", or checkpoints more often with --checkpoint-minutes"
            if trained:  # its checkpoints are gone, and an evaluation writes none
                where, more = "in the same evaluation", ""
            return (
                f"its job {job} made no progress between two requeues ({where} both times): give it more time with "
                f"--slurm time=MINUTES{more}"
            )
        return ""

    def _earlier(self, job: str) -> list[list[int]]:
        """Progress at the earlier starts of this job: steps done, and the number of results (record, evaluations)."""
        try:
            known = json.loads(self.path.read_bytes())
            return [[int(steps), int(made)] for steps, made in known["starts"]] if known["job"] == job else []
        except (OSError, ValueError, KeyError, TypeError):
            return []
