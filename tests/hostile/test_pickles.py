"""No pickle from a user's files, or from results, is ever loaded: a pickle that would make a file never makes it."""

from __future__ import annotations

import ast
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.hostile.harness import Commands, check
from tests.hostile.test_archives import npz

ROOT = Path(__file__).parents[2]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


@pytest.fixture
def bomb(bench: Commands) -> Bomb:
    """Proved to be one; where it would go off is under the folder that is compared before and after."""
    path = bench.folder / "went_off"
    os.close(pickle.loads(pickle.dumps(Bomb(path))))
    path.unlink()
    return Bomb(path)


def in_npz(bench: Commands, bomb: Bomb) -> None:
    bench.write("data/pneumoniamnist.npz", npz(test_labels=np.array([[bomb]] * 20, object)))
    options = ["--data", "pneumoniamnist", "--data-root", str(bench.data), "--cache", str(bench.folder / "cache")]
    check(bench.run(*options), "holds pickled Python objects in 'test_labels', which are never loaded")


def test_in_npz(bench: Commands, bomb: Bomb) -> None:
    in_npz(bench, bomb)


@pytest.mark.parametrize("how", ["a pickle", "torch.save", "torch.save, the old format"])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_in_weights(bench: Commands, bomb: Bomb, how: str, name: str) -> None:
    path = bench.write(f"home/{name}", pickle.dumps(bomb))
    if how != "a pickle":
        torch.save({"blocks": bomb}, path, _use_new_zipfile_serialization="old" not in how)
    check(
        bench.run("--set", f"encoder.weights={path}"),
        (f"weights in .*{name} can't be read", "give a .safetensors file. Other formats are not loaded"),
    )


WEIGHTS: dict[str, tuple[Any, str]] = {
    "nothing in them": (b"", "can't be read"),
    "cut in half": (b'\x40\0\0\0\0\0\0\0{"a":', "can't be read"),
    "a header without end": (b"\xff" * 8, "can't be read"),
    "text": (b"weights", "can't be read"),
    "of another network": ({"x": torch.zeros(3)}, "do not fit the encoder: .* missing or unexpected; give weights"),
    "of another shape": ({"patch_embed.layers.0.weight": torch.zeros(1)}, "do not fit the encoder"),
    "none at all": ({}, "do not fit the encoder: .* missing"),
}


@pytest.mark.parametrize(("content", "says"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights(bench: Commands, content: Any, says: str) -> None:
    path = bench.folder / "home" / "weights.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content, path)
    check(bench.run("--set", f"encoder.weights={path}"), ("weights in .*weights.safetensors", says))


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "_pickle"}
LOADERS = {("torch", "load"), ("joblib", "load"), ("pd", "read_pickle"), ("pandas", "read_pickle")}


@pytest.mark.parametrize(
    "path", sorted(p for top in ("bench", "methods", "datasets") for p in (ROOT / top).rglob("*.py"))
)
def test_no_module_of_ours_loads_a_pickle(path: Path) -> None:
    """Read off the source: nothing imports pickle or its kin, calls torch.load, or lets numpy unpickle."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not FORBIDDEN & {alias.name.split(".")[0] for alias in node.names}, path
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN, path
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                assert (called.value.id, called.attr) not in LOADERS, f"{path}:{node.lineno}"
            given = {word.arg: word.value for word in node.keywords}
            allowed = given.get("allow_pickle")
            assert allowed is None or (isinstance(allowed, ast.Constant) and allowed.value is False), path
