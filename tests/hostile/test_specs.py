"""TOML specs: what is no TOML, what is no spec, and whatever hypothesis puts in the place of a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.specs.grid_spec import GridSpec, load_grid, validated
from datasets.limits import SPEC_BYTES
from tests.hostile.harness import Commands, check, error_line

SPECS: dict[str, tuple[str | bytes, str]] = {
    "latin-1": ("methods = 'dënse'".encode("latin-1"), "is not TOML: 'utf-8' codec"),
    "UTF-16": ("methods = 'dense'".encode("utf-16"), "is not TOML"),
    "NUL bytes": (b"methods = 'den\0se'", "is not TOML: Found invalid character"),
    "half a line": (b"seeds = [1,", "is not TOML"),
    "JSON": (b'{"methods": "dense"}', "is not TOML"),
    "YAML": (b"methods: dense\n", "is not TOML"),
    "a key twice": (b"methods = 'dense'\nmethods = 'fixed'", "is not TOML: Cannot overwrite"),
    "a table twice": (b"[train]\nepochs = 1\n[train]\nbatch = 8", "is not TOML: Cannot declare"),
    "nested without end": (b"seeds = " + b"[" * 20_000, "is nested too deeply"),
    "an integer of 5000 digits": (b"seeds = [" + b"9" * 5000 + b"]", "is not TOML: Exceeds the limit"),
    "larger than a spec can be": (b"# " + b"x" * SPEC_BYTES, "has 1,048,578 bytes, but the limit is 1,048,576"),
    "an unknown table": (b"[trian]\nepochs = 1", r"unknown key 'trian': did you mean train\?"),
    "an unknown key": (b"[train]\nepochen = 1", r"unknown key 'train.epochen': did you mean epochs\?"),
    "a key with a line break": (b'"a\\nb" = 1', "unknown key 'a b'"),
    "a key of escape codes": (b'"\\u001b[31mred" = 1', r"unknown key '\\x1b\[31mred'"),
    "a value of a million characters": (b"seeds = '" + b"x" * 1_000_000 + b"'", r"seeds: .*valid tuple .*\.\.\. "),
    "ten thousand mistakes": (b"seeds = [" + b"-1," * 1000 + b"]", "; and 995 more"),
    "a date": (b"train.lr = 2024-01-01", "train.lr: Input should be a valid number"),
    "a table for a number": (b"[train.lr]\na = 1", "train.lr: Input should be a valid number"),
    "a number for a table": (b"train = 1", r"train: .*\(given: 1\)"),
    "a list for a name": (b"methods = ['dense']", "methods: Input should be a valid string"),
    "true for a seed": (b"seeds = [true]", "seeds.0: Input should be a valid integer"),
    "a fraction for a seed": (b"seeds = [0.5]", "seeds.0: Input should be a valid integer"),
    "text for a seed": (b"seeds = ['0']", "seeds.0: Input should be a valid integer"),
    "three ends of a range": (b"views.blur = [0.1, 0.2, 0.3]", "views.blur: .*at most 2 items"),
    "one end of a range": (b"views.blur = [0.1]", "views.blur.1: Field required"),
    "nan in a range": (b"views.gamma = [nan, 1.0]", "views.gamma.0: Input should be a finite number"),
    "an option of a data set that is a table": (b"data.options.patients = {}", "true, false, a number or a text"),
    "a keep of nobody": (b"methods = 'dense'\nkeep = [0.5]", "--keep 0.5 applies to no method"),
    "a preset": (b"preset = 'quick'", "a preset can't be set in a spec: choose it with --preset"),
    "no method": (b"methods = ''", "--methods is empty"),
    "no seed": (b"seeds = []", "the grid is empty"),
    "no fraction": (b"evaluation.labels = []", "nothing is evaluated"),
    "a data set's root": (b"data = { name = 'folder', root = '/nowhere/at/all' }", "/nowhere/at/all does not exist"),
}


@pytest.mark.parametrize(("content", "says"), SPECS.values(), ids=SPECS)
def test_spec(bench: Commands, content: str | bytes, says: str) -> None:
    path = bench.write("home/mine.toml", content)
    options = () if b"methods" in bytes(content) or b"data" in bytes(content) else ("--methods", "dense")
    check(bench.run("--spec", str(path), *options), says) if options else check(plain_run(bench, path), says)


def plain_run(bench: Commands, spec: Path) -> Any:
    """Without --methods, which would win over the spec's."""
    from bench.run import app

    where = ["--results", str(bench.folder / "results"), "--reports", str(bench.folder / "reports")]
    fixed = ["--preset", "smoke", "--spec", str(spec), "--cache", str(bench.cache), "--launcher", "inline"]
    return bench.invoke(app, [*fixed, *where, "--no-measure"])


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all values of nested tables."""
    if isinstance(value, dict) and value:
        return [found for key, inner in value.items() for found in leaves(inner, (*path, key))]
    return [path]


WHOLE = json.loads(load_grid("smoke").model_dump_json())
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from(leaves(WHOLE)), value=JUNK, drop=st.booleans())
def test_any_value_anywhere_is_a_suite_or_a_mistake(path: tuple[str, ...], value: Any, drop: bool) -> None:
    """A value of any kind, or a key of any name, in any place of a spec."""
    changed = json.loads(json.dumps(WHOLE))
    at = changed
    for key in path[:-1]:
        at = at[key]
    at.pop(path[-1])
    at[path[-1] + "x" if drop else path[-1]] = value
    try:
        grid = validated(GridSpec, changed, where="mine.toml")
    except ValueError as error:
        mistake = error
        text = error_line(lambda: (_ for _ in ()).throw(mistake))
        assert text.startswith("mine.toml: ") and len(text) < 2000
    else:
        assert not drop or path[:2] == ("data", "options")  # the data set's own
        assert json.loads(grid.model_dump_json()) is not None  # whatever was taken, JSON can hold
