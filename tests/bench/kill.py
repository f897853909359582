"""`bench.run` killed by `kill -9` at random moments, again and again: does it end as if nothing had happened?

    python -m tests.bench.kill --kills 50

A grid of two runs is made once undisturbed, which also tells how long it takes. Then the same command is started and
killed, with all its children, after a random part of that time; what it left is where the next one begins. When a grid
is finished all the same, another is begun. Exit code 1 if one differs from the undisturbed one.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import small
from tests.bench.test_crash import outcome

METHODS = "sparsecontrast,moco/fixed"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", default="inline", choices=["inline", "local"])
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    (folder / "small.toml").write_text(small.TOML, encoding="utf-8")
    _finish(folder, folder / "cache-made", options.launcher)
    started = time.monotonic()
    _finish(folder, folder / "whole", options.launcher)
    takes = time.monotonic() - started
    expected = {path.name: outcome(path) for path in _runs(folder / "whole")}
    chance, grids, differing, killed = random.Random(options.seed), 0, 0, 0
    results = folder / "killed"
    while killed < options.kills:
        killed += _kill(folder, results, options.launcher, chance.uniform(0, takes))
        if killed == options.kills or all((results / name / "evaluations").is_dir() for name in expected):
            _finish(folder, results, options.launcher)
            found = {path.name: outcome(path) for path in _runs(results)}
            differing += found != expected
            grids += 1
            shutil.rmtree(results)
    print(f"{killed} kills over {grids} grids of {takes:.0f} s: {differing} differ from the undisturbed one.")
    return 1 if differing else 0


def _command(folder: Path, results: Path, launcher: str) -> list[str]:
    fixed = ["--preset", "smoke", "--spec", str(folder / "small.toml"), "--no-measure", "--checkpoint-minutes", "0"]
    where = ["--results", str(results), "--reports", str(folder / "reports"), "--cache", str(folder / "cache")]
    return [sys.executable, "-m", "bench.run", "--methods", METHODS, "--launcher", launcher, *fixed, *where]


def _finish(folder: Path, results: Path, launcher: str) -> None:
    subprocess.run(_command(folder, results, launcher), check=True, stdout=subprocess.DEVNULL)


def _kill(folder: Path, results: Path, launcher: str, after: float) -> bool:
    """Start the command and kill it and its children; False if it had ended by then."""
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(_command(folder, results, launcher), stdout=log, stderr=log, start_new_session=True)
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def _runs(results: Path) -> list[Path]:
    return sorted(path.parent for path in results.glob("*/record.json"))


if __name__ == "__main__":
    raise SystemExit(main())
