"""Which counts can be repeated from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.specs.run_spec import EncoderSpec
from bench.training.build import build
from bench.verification import recount
from methods import OBJECTIVES
from methods.names import parse_methods
from tests.bench import small

ENCODER = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=32)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_checkpoint_lacks_the_encoder_of_a_teacher(objective: str) -> None:
    built = build(parse_methods(f"{objective}/dense")[0], ENCODER, seed=0)
    names = {name.split(".")[0] for name, _ in built.named_parameters()}
    assert recount._keeps_all_encoders(built) == ("teacher_encoder" not in names)


@pytest.mark.parametrize(
    ("method", "code", "depends"),
    [
        ("simclr/sparsecontrast", "", False),
        ("simclr/sparsecontrast[select=threshold]", "", True),
        ("simclr/frozen[select=budget,keep=0.3]", "", True),
        ("simclr/fixed[keep=0.3]", "", False),
        ("simclr/dense", "of a plug-in", True),
    ],
)
def test_counts_depend_on_content_where_tokens_are_not_counted_out(
    tmp_path: Path, method: str, code: str, depends: bool
) -> None:
    spec = small.run_spec(tmp_path, method).model_copy(update={"code": code})
    assert recount._by_content(spec) is depends
