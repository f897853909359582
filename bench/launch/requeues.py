"""How often a run's SLURM job was requeued, and whether it got on in between: a run that does not fails by name,
instead of being requeued for ever. `results/.jobs/<run id>.progress.json`"""

from __future__ import annotations

import json

from bench.records.environment import slurm_job
from bench.records.store import Store, write_atomically


class Requeues:
    """Of one run's job."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self.run_id = store, run_id
        self.path = store.jobs / f"{run_id}.progress.json"

    def reason_to_stop(self, steps: int, most: int) -> str:
        """Note that the job starts (again) with `steps` steps done; why it shall not go on, "" if it may.

        It may not after more than `most` requeues, nor when it stands at its start where it stood at the start before,
        which was a requeue too. Outside of SLURM it always may.
        """
        job, restart = slurm_job()
        if not job:
            return ""
        trained, evaluations = self.store.done(self.run_id), self.store.folder(self.run_id) / "evaluations"
        starts = [*self._earlier(job), [steps, trained + len(list(evaluations.glob("*.json")))]]
        write_atomically(self.path, json.dumps({"job": job, "starts": starts}).encode())
        if restart > most:
            return f"its job {job} was requeued {restart} times, and {most} is the most: see --slurm requeues=N"
        if len(starts) > 2 and starts[-1] == starts[-2]:
            where, more = f"at step {steps}", ", or checkpoints more often with --checkpoint-minutes"
            if trained:  # its checkpoints are gone, and an evaluation makes none
                where, more = "in the same evaluation", ""
            return (
                f"its job {job} made no progress between two requeues ({where} both times): give it more time with "
                f"--slurm time=MINUTES{more}"
            )
        return ""

    def _earlier(self, job: str) -> list[list[int]]:
        """What was done at the earlier starts of this job: steps, and the record with the evaluations after it."""
        try:
            known = json.loads(self.path.read_bytes())
            return [[int(steps), int(made)] for steps, made in known["starts"]] if known["job"] == job else []
        except (OSError, ValueError, KeyError, TypeError):
            return []
