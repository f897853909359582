"""`bench.run` killed by `kill -9` at random moments, again and again: does it end as if nothing had happened?

    python -m tests.bench.kill --kills 50

A grid of two runs is made once undisturbed, which also tells how long it takes. Then the same command is started and
killed, with all its children, after a random part of that time; what it left is where the next one begins. When a grid
is finished all the same, another is begun. Exit code 1 if one differs from the undisturbed one. With `--fork` the
commands are forks of this process, so that no time passes, and no kill falls, while Python imports torch.
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
from tests.processes import Forked

METHODS = "sparsecontrast,moco/fixed"
Start = type[subprocess.Popen[bytes]] | type[Forked]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", default="inline", choices=["inline", "local"])
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--fork", dest="start", action="store_const", const=Forked, default=subprocess.Popen)
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    (folder / "small.toml").write_text(small.TOML, encoding="utf-8")
    _finish(options.start, folder, folder / "cache-made", options.launcher)
    started = time.monotonic()
    _finish(options.start, folder, folder / "whole", options.launcher)
    takes = time.monotonic() - started
    expected = {path.name: outcome(path) for path in _runs(folder / "whole")}
    chance, grids, differing, killed = random.Random(options.seed), 0, 0, 0
    results = folder / "killed"
    while killed < options.kills:
        killed += _kill(options.start, folder, results, options.launcher, chance.uniform(0, takes))
        if killed == options.kills or all((results / name / "evaluations").is_dir() for name in expected):
            _finish(options.start, folder, results, options.launcher)
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


def _finish(start: Start, folder: Path, results: Path, launcher: str) -> None:
    with open(os.devnull, "wb") as nowhere:
        code = start(_command(folder, results, launcher), stdout=nowhere).wait()
    if code:
        raise RuntimeError(f"the command that nobody killed ended with exit code {code}")


def _kill(start: Start, folder: Path, results: Path, launcher: str, after: float) -> bool:
    """Start the command and kill it and its children; False if it had ended by then."""
    with open(folder / "log", "ab") as log:
        process = start(_command(folder, results, launcher), stdout=log, stderr=log, start_new_session=True)
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
