"""What every case of bad input is held to: one message that names the thing and the mend, the right exit code, no
traceback, nothing written outside the results, reports and cache folders, and nothing lost that was there.

The last two are looked at twice: the whole tree is compared before and after, byte by byte; and while a command runs,
an audit hook of Python's sees what is opened for writing, made, renamed or removed anywhere on the machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

OURS = ("results", "reports", "cache")  # where a command may write
IMPORTS = ("__pycache__", "/torchinductor", os.devnull)  # what importing libraries writes
PRIVATE = "home"  # a user's folder, which nothing shall be written to
CHANGES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod"}


def snapshot(root: Path) -> dict[str, str]:
    """Every path under `root`: what it is, and the SHA-256 of what it holds."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file() and path.stat().st_size < 2**27:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = f"{path.stat().st_mode} {path.stat().st_size if path.is_file() else ''}"
    return found


@dataclass
class Watch:
    """The audit hook (there is one a process, for none can be taken off): it notes while `allowed` is not None."""

    allowed: tuple[str, ...] | None = None
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "open":
            name, mode, flags = arguments
            written = set(mode or "") & set("wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            paths = [name] if written else []
        else:
            paths = [one for one in arguments[:2] if isinstance(one, str | bytes)] if event in CHANGES else []
            if -1 not in arguments[1:]:  # relative to an open folder: the comparison of the tree sees it
                paths = [one for one in paths if os.path.isabs(one)]
        for path in paths:
            if isinstance(path, int):
                continue
            text = os.path.abspath(os.fsdecode(path))
            if not any(part in text for part in IMPORTS) and not text.startswith(self.allowed):
                self.seen.append((event, text))


WATCH = Watch()
sys.addaudithook(WATCH)


@contextmanager
def nothing_outside(folder: Path, *others: Path) -> Iterator[None]:
    """Fails the test when something under `folder` was lost or changed, or when something was written elsewhere than
    in its results, reports and cache, and `others`."""
    before, WATCH.seen = snapshot(folder), []
    WATCH.allowed = tuple(map(str, [*(folder / name for name in OURS), *others]))
    try:
        yield
    finally:
        WATCH.allowed = None
    after = snapshot(folder)
    changed = {name for name in before if after.get(name) != before[name]}
    assert not changed, f"lost or changed: {sorted(changed)}"
    new = {name for name in after.keys() - before.keys() if not name.split("/")[0].startswith(OURS)}
    assert not new, f"written outside results, reports and cache: {sorted(new)}"
    seen = [one for one in WATCH.seen if one[0] != "os.mkdir" or os.path.isdir(one[1])]  # it may have been refused
    assert not seen, f"written outside results, reports and cache: {seen}"


@dataclass
class Commands:
    """The commands, in this process, on a folder of the test's own."""

    folder: Path
    cache: Path

    def __post_init__(self) -> None:
        for name in (*OURS, PRIVATE, "data"):
            (self.folder / name).mkdir(exist_ok=True)
        (self.folder / PRIVATE / "thesis.txt").write_text("two years of work")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def write(self, name: str, content: str | bytes) -> Path:
        """A file of the user's."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def options(self, options: tuple[str, ...]) -> list[str]:
        """Options of `bench.run` that end in a plan of seconds, and `options`, which win."""
        values = {
            "--preset": "smoke",
            "--methods": "dense",
            "--launcher": "inline",
            "--results": str(self.folder / "results"),
            "--reports": str(self.folder / "reports"),
            "--cache": str(self.cache),
        }
        fixed = [part for key, value in values.items() if key not in options for part in (key, value)]
        if "--spec" not in options:
            fixed += ["--spec", str(self.write("small.toml", SMALL + PHANTOM * ("--data" not in options)))]
        return [*fixed, *(part.replace("{folder}", str(self.folder)) for part in options)]

    def run(self, *options: str) -> Result:
        from bench.run import app

        return self.invoke(app, ["--no-measure", *self.options(options)])

    def report(self) -> Result:
        from bench.report import app

        where = ["--results", str(self.folder / "results"), "--reports", str(self.folder / "reports")]
        return self.invoke(app, where)

    def invoke(self, app: Any, arguments: list[str]) -> Result:
        """A command in this process, watched."""
        with nothing_outside(self.folder, self.cache):
            return CliRunner().invoke(app, arguments)


SMALL = """
baselines = []
encoder = { name = "vit_stem_d64_l4_patch8", image_size = 32 }
train = { epochs = 1, batch = 16 }
evaluation = { labels = [50, 100], probes = ["linear"], draws = 2, resamples = 50, c = [0.01] }
"""
PHANTOM = "data.options = { patients = 60, images_per_patient = 2.0 }\n"

MANY = re.compile(r"^(Error: |Failed: |The report is refused\. )", re.M)


def check(result: Result, says: str | tuple[str, ...], code: int = 2) -> None:
    """The command ended with `code` and one message, which has each of the patterns `says` in it."""
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    said = result.stderr.strip()
    assert result.exit_code == code, f"exit code {result.exit_code}: {result.output}"
    assert "Traceback" not in result.output and "Traceback" not in said
    if "╭" not in said:  # else it is typer's own, framed
        assert len(MANY.findall(said)) == 1, said
        lines = said.split("\n")
        assert all(line.isprintable() for line in lines), repr(said)
        assert len(lines) == 1 or "differ in" in lines[0], said  # an account of what doesn't belong together is a list
    assert len(said) < 2500, f"a message of {len(said)} characters"
    flat = " ".join(re.sub("[│╭╮╰╯─]", " ", said).split())
    for pattern in (says,) if isinstance(says, str) else says:
        assert re.search(pattern, flat), f"{pattern!r} is not in: {flat}"


def error_line(call: Callable[[], Any]) -> str:
    """The one line that a user would read of the mistake that `call` raises."""
    from bench.messages import error_line as line

    with pytest.raises((ValueError, OSError)) as caught:
        call()
    text = line(caught.value)
    assert text.isprintable() and "Traceback" not in text
    return text
