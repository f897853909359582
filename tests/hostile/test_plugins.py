"""Plug-ins that can't be run, define nothing or something else, take a name that is taken, or fail later."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from methods import STRATEGIES
from methods.names import parse_methods
from methods.plugins import load_plugin
from tests.hostile.harness import Commands, check

HEAD = "from methods import Entry, Option\nfrom methods.strategies.selection import Choice, Selection\n"
CLASS = """
import torch
class Mine(Selection):
    def __init__(self, geometry):
        super().__init__(geometry, keep=0.5)
    def choose(self, images, call):
        index = torch.arange(0, self.geometry.patches, 2)
        return Choice(index.expand(len(images), -1))
"""
GOOD = HEAD + CLASS + "STRATEGIES = {'mine': Entry(':Mine', 'mine', 'me')}\n"


def defines(what: str) -> str:
    return HEAD + CLASS + what


BAD: dict[str, tuple[str | bytes, str]] = {
    "nothing in it": ("", "mine.py defines neither STRATEGIES nor OBJECTIVES: see 'Your own method' in README.md"),
    "a syntax error": (
        "def f(:\n",
        r"mine.py can't be run: SyntaxError: invalid syntax \(mine.py, line 1\)|SyntaxError",
    ),
    "a tab too many": ("x = 1\n\ty = 2\n", "can't be run: (IndentationError|TabError)"),
    "Python 2": ("print 'hello'\n", "can't be run: SyntaxError"),
    "no Python": (b"\x89PNG\r\n\x1a\n\xff\xfe", "can't be run: SyntaxError|can't be run: ValueError"),
    "NUL bytes": (b"x = 1\0", "can't be run: (ValueError|SyntaxError): source code.*null bytes"),
    "latin-1": ("# é\nx = 'é'\n".encode("latin-1"), "can't be run: SyntaxError"),
    "larger than a plug-in can be": (b"#" * (2**20 + 1), "mine.py has 1,048,577 bytes, but the limit is 1,048,576"),
    "imports what is not there": ("import nothing_like_this\n", "can't be run: ModuleNotFoundError: No module named"),
    "raises": ("raise RuntimeError('by design')\n", "can't be run: RuntimeError: by design; correct it"),
    "raises several lines": (
        "raise RuntimeError('one\\ntwo\\x1b[2J')\n",
        r"can't be run: RuntimeError: one two\\x1b\[2J",
    ),
    "divides by zero": ("1 / 0\n", "can't be run: ZeroDivisionError"),
    "ends Python": ("import sys\nsys.exit(0)\n", "can't be run: SystemExit: 0"),
    "recurses": ("def f(): f()\nf()\n", "can't be run: RecursionError"),
    "strategies in a list": (defines("STRATEGIES = [Entry(':Mine', 'a', 'b')]"), "STRATEGIES is not a dict; write"),
    "strategies that are a number": ("STRATEGIES = 5\n", "STRATEGIES is not a dict; write STRATEGIES = {'name': Entry"),
    "no Entry": (defines("STRATEGIES = {'mine': Mine}"), "'mine' is not an Entry; write Entry"),
    "a text for an Entry": ("STRATEGIES = {'mine': ':Mine'}\n", "'mine' is not an Entry; write Entry"),
    "no class": (defines("STRATEGIES = {'mine': Entry(':Yours', 'a', 'b')}"), "the file has no such class"),
    "a function for a class": (defines("def f(): pass\nSTRATEGIES = {'mine': Entry(':f', 'a', 'b')}"), "no such class"),
    "a class of another file": (
        defines("STRATEGIES = {'mine': Entry('os:Mine', 'a', 'b')}"),
        "'mine' has the target 'os:Mine'; write ':Class'",
    ),
    "options in a list": (
        defines("STRATEGIES = {'mine': Entry(':Mine', 'a', 'b', ['keep'])}"),
        "the options of 'mine' are not a dict of Option",
    ),
    "options that are none": (
        defines("STRATEGIES = {'mine': Entry(':Mine', 'a', 'b', {'keep': 0.5})}"),
        "the options of 'mine' are not a dict of Option",
    ),
    "a colour of its own": (
        defines("STRATEGIES = {'mine': Entry(':Mine', 'a', 'b', colour='red', diagnostics={'x': 'y'})}"),
        "'mine' sets colour and diagnostics: leave them out; reports choose how plug-ins look",
    ),
    "a marker that is none": (
        defines("OBJECTIVES = {'mine': Entry(':Mine', 'a', 'b', marker=5)}"),
        "'mine' sets marker: leave it out",
    ),
    "shadows a strategy": (
        defines("STRATEGIES = {'dense': Entry(':Mine', 'a', 'b')}"),
        "'dense', a name that is taken",
    ),
    "shadows an objective": (
        defines("OBJECTIVES = {'simclr': Entry(':Mine', 'a', 'b')}"),
        "'simclr', a name that is taken",
    ),
    "shadows a baseline": (
        defines("STRATEGIES = {'untrained': Entry(':Mine', 'a', 'b')}"),
        "'untrained', a name that is taken",
    ),
    "shadows all": (defines("STRATEGIES = {'all': Entry(':Mine', 'a', 'b')}"), "'all', a name that is taken"),
    "a name with a slash": (
        defines("STRATEGIES = {'a/b': Entry(':Mine', 'a', 'b')}"),
        "'a/b': use 1 to 60 letters, dig",
    ),
    "a name with a bracket": (defines("STRATEGIES = {'a[b': Entry(':Mine', 'a', 'b')}"), "use 1 to 60 letters"),
    "a name with a comma": (defines("STRATEGIES = {'a,b': Entry(':Mine', 'a', 'b')}"), "use 1 to 60 letters"),
    "a name with a star": (defines("STRATEGIES = {'*': Entry(':Mine', 'a', 'b')}"), "use 1 to 60 letters"),
    "a name of two lines": (
        defines("STRATEGIES = {'a\\nb': Entry(':Mine', 'a', 'b')}"),
        r"'a\\nb': use 1 to 60 letters",
    ),
    "a name of nothing": (defines("STRATEGIES = {'': Entry(':Mine', 'a', 'b')}"), "use 1 to 60 letters"),
    "a name that is a number": (
        defines("STRATEGIES = {5: Entry(':Mine', 'a', 'b')}"),
        "defines 5: use 1 to 60 letters",
    ),
    "a name without end": (defines("STRATEGIES = {'x' * 999: Entry(':Mine', 'a', 'b')}"), "use 1 to 60"),
}
BUILT: dict[str, tuple[str, str]] = {
    "a class that takes nothing": (
        HEAD + "class Mine:\n    pass\nSTRATEGIES = {'mine': Entry(':Mine', 'a', 'b')}",
        "simclr/mine, defined by a plug-in, can't be built: TypeError: .*; fix its class",
    ),
    "a class that fails": (
        HEAD + "class Mine(Selection):\n    def __init__(self, geometry):\n        raise KeyError('x')\n"
        "STRATEGIES = {'mine': Entry(':Mine', 'a', 'b')}",
        "can't be built: KeyError: 'x'; fix its class",
    ),
    "a class that lacks its option": (
        defines("STRATEGIES = {'mine': Entry(':Mine', 'a', 'b', {'deepth': Option(1, 'x')})}"),
        "simclr/mine has no option 'depth': did you mean deepth",
    ),
    "a class that is no strategy": (
        HEAD + "class Mine:\n    def __init__(self, geometry): pass\nSTRATEGIES = {'mine': Entry(':Mine', 'a', 'b')}",
        "can't be built: |no strategy",
    ),
}


@pytest.mark.parametrize(("content", "says"), BAD.values(), ids=BAD)
def test_bad(bench: Commands, registries: None, content: str | bytes, says: str) -> None:
    before = dict(STRATEGIES)
    path = bench.write("home/mine.py", content)
    check(bench.run("--plugin", str(path)), says)
    assert before == STRATEGIES, "of a plug-in that is refused nothing is registered"


@pytest.mark.parametrize(("content", "says"), BUILT.values(), ids=BUILT)
def test_bad_when_built(bench: Commands, registries: None, content: str, says: str) -> None:
    path = bench.write("home/mine.py", content)
    method = "mine[depth=2]" if "depth" in says else "mine"
    check(bench.run("--plugin", str(path), "--methods", method), says)


def test_what_is_no_file(bench: Commands) -> None:
    check(
        bench.run("--plugin", str(bench.folder / "nowhere.py")), "no plug-in at .*nowhere.py: --plugin takes a Python"
    )
    check(bench.run("--plugin", str(bench.folder / "home")), "no plug-in at .*home: --plugin takes a Python file")


def test_the_good_one_leaves_nothing_beside_it(
    bench: Commands, registries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = bench.write("home/mine.py", GOOD)
    done = bench.run("--plugin", str(path), "--methods", "mine", "--dry-run")
    assert done.exit_code == 0, done.output


def test_one_that_fails_in_training_is_a_failed_run(bench: Commands, registries: None) -> None:
    content = GOOD.replace("index = torch", "raise RuntimeError('by design')\n        index = torch")
    path = bench.write("home/mine.py", content)
    done = bench.run("--plugin", str(path), "--methods", "mine")
    check(done, "simclr-mine-phantom-.*: RuntimeError: by design", code=1)


def test_two_of_one_file_name_are_two(tmp_path: Path, registries: None) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(GOOD.replace("'mine':", f"'{name}':") + f"Mine.where = '{name}'\n")
        load_plugin(tmp_path / name / "mine.py")
    assert [STRATEGIES[name].load().where for name in ("a", "b")] == ["a", "b"]
    assert [method.name for method in parse_methods("a,b")] == ["simclr/a", "simclr/b"]


def test_what_runs_is_what_is_hashed(tmp_path: Path, registries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file changed within the clock's resolution is read anew, no stale bytecode."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "mine.py"
    codes = []
    for value in (1, 2):
        path.write_text(GOOD.replace("'mine':", f"'mine{value}':") + f"Mine.value = {value}\n")
        load_plugin(path)
        codes.append(STRATEGIES[f"mine{value}"].code)
        assert STRATEGIES[f"mine{value}"].load().value == value
    assert len(set(codes)) == 2 and not (tmp_path / "__pycache__").exists()
