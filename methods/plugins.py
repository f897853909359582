"""Plug-ins: files that add strategies and objectives to the registry (README, "Your own method")."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import methods
from methods import BASELINES, Entry, Option


def load_plugin(path: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> list[str]:
    """Run a plug-in file and register the entries of its dicts `STRATEGIES` and `OBJECTIVES`; return their names.

    Entries locate their class as ":Class". The file is read once with `read`, so that the code which runs is the code
    which is hashed, and no bytecode is written next to it.

    Raises FileNotFoundError for a missing file, ValueError for a file that fails to run, that defines no valid entry or
    that uses a name which is taken, and whatever `read` raises.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no plug-in at {path}: --plugin takes a Python file.")
    content = read(path)
    code = hashlib.sha256(content).hexdigest()[:16]
    module = ModuleType(f"plugin_{re.sub('[^A-Za-z0-9]', '_', path.stem)}_{code}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and `Entry.load` look it up there
    try:
        exec(compile(content, path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        raise ValueError(f"plug-in {path} can't be run: {type(error).__name__}: {error}; correct it.") from error
    found: list[tuple[dict[str, Entry], str, Entry]] = []
    for kind, registry in (("STRATEGIES", methods.STRATEGIES), ("OBJECTIVES", methods.OBJECTIVES)):
        entries = getattr(module, kind, {})
        if not isinstance(entries, dict):
            raise ValueError(f"plug-in {path}: {kind} is not a dict; write {kind} = {{'name': Entry(':Class', ...)}}.")
        for name, entry in entries.items():
            _check_entry(f"plug-in {path}", name, entry, module)
            if name in BASELINES or name == "all" or (name in registry and registry[name].code != code):
                raise ValueError(f"plug-in {path} defines '{name}', a name that is taken: choose another one.")
            found.append((registry, name, replace(entry, target=module.__name__ + entry.target, code=code)))
    if not found:
        raise ValueError(
            f"plug-in {path} defines neither STRATEGIES nor OBJECTIVES: see 'Your own method' in README.md."
        )
    for registry, name, entry in found:
        registry[name] = entry
    return [name for _, name, _ in found]


def _check_entry(where: str, name: Any, entry: Any, module: ModuleType) -> None:
    """Raise ValueError unless `name` is valid in --methods and `entry` locates a class of the plug-in."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", name):
        raise ValueError(f"{where} defines {name!r}: use 1 to 60 letters, digits, '_', '-' or '.' in a name.")
    if not isinstance(entry, Entry):
        raise ValueError(f"{where}: '{name}' is not an Entry; write Entry(':Class', 'what it is', 'its source').")
    if not entry.target.startswith(":"):
        raise ValueError(
            f"{where}: '{name}' has the target '{entry.target}'; write ':Class', naming a class of the same file."
        )
    if not isinstance(getattr(module, entry.target[1:], None), type):
        raise ValueError(f"{where}: '{name}' has the target '{entry.target}', but the file has no such class.")
    if not isinstance(entry.options, dict) or not all(isinstance(one, Option) for one in entry.options.values()):
        raise ValueError(
            f"{where}: the options of '{name}' are not a dict of Option; write {{'keep': Option(0.5, '...')}}."
        )
    shown = [what for what in ("colour", "marker", "line", "diagnostics") if getattr(entry, what)]
    if shown:
        raise ValueError(
            f"{where}: '{name}' sets {' and '.join(shown)}: leave {'it' if len(shown) == 1 else 'them'} out; reports "
            "choose how plug-ins look, because they are also made without them."
        )
