import re

import pytest

from methods import HEADLINE, OBJECTIVES, STRATEGIES
from methods.names import Method, parse_methods


def names(text: str) -> list[str]:
    return [method.name for method in parse_methods(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("simclr/dense", ["simclr/dense"]),
        ("sparsecontrast", ["simclr/sparsecontrast"]),
        (" moco/dense , simclr/dense ", ["moco/dense", "simclr/dense"]),
        ("dense,simclr/dense", ["simclr/dense"]),
        ("untrained,supervised", ["untrained", "supervised"]),
        ("sparsecontrast[keep=0.7]", ["simclr/sparsecontrast[keep=0.7]"]),
        ("sparsecontrast[keep=0.5]", ["simclr/sparsecontrast"]),
        ("sparsecontrast[noise=0,keep=0.7]", ["simclr/sparsecontrast[keep=0.7,noise=0]"]),
        ("sparsecontrast[keep=0.7,noise=0],dense", ["simclr/sparsecontrast[keep=0.7,noise=0]", "simclr/dense"]),
        ("simclr/d*[temperature=0.5]", ["simclr/dense[temperature=0.5]", "simclr/dynamicvit[temperature=0.5]"]),
        ("*/dense", ["simclr/dense", "moco/dense"]),
        ("moco/*", [f"moco/{strategy}" for strategy in STRATEGIES]),
        ("all", list(HEADLINE)),
        ("all,untrained,dense", [*HEADLINE, "untrained"]),
        ("fixed[equal_macs=false]", ["simclr/fixed[equal_macs=false]"]),
        ("fixed[equal_macs=0]", ["simclr/fixed[equal_macs=false]"]),
        ("tokenlearner[tokens=16,version=v1]", ["simclr/tokenlearner[tokens=16,version=v1]"]),
        ("dense[]", ["simclr/dense"]),
    ],
)
def test_what_is_understood(text: str, expected: list[str]) -> None:
    assert names(text) == expected


@pytest.mark.parametrize("text", ["sparsecontrast[keep=0.7,gate=key_bias]", "moco/dense[momentum=0.9]", "untrained"])
def test_a_canonical_name_reads_back_as_itself(text: str) -> None:
    (method,) = parse_methods(text)
    assert parse_methods(method.name) == [method]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--methods is empty"),
        (" , ", "--methods is empty"),
        ("simclr/sparsecontrats", "did you mean simclr/sparsecontrast"),
        ("byol/dense", "unknown method 'byol/dense': did you mean"),
        ("zzz", "unknown method 'zzz': choose from simclr/dense"),
        ("dense[keep=0.5]", "has no option 'keep'"),
        ("sparsecontrast[kepe=0.5]", "has no option 'kepe': did you mean keep?"),
        ("sparsecontrast[keep]", "has no value: write"),
        ("sparsecontrast[keep=half]", "'keep' of simclr/sparsecontrast is 'half': it must be a number"),
        ("sparsecontrast[keep=1.5]", "is 1.5: it must be at least 0.02 and at most 1.0"),
        ("sparsecontrast[keep=nan]", "it must be finite and at least 0.02"),
        ("dynamicvit[ratio_weight=-1]", "it must be at least 0.0."),
        ("sparsecontrast[keep=0.5,keep=0.6]", "'keep' of simclr/sparsecontrast is given twice"),
        ("sparsecontrast[gate=tokens]", "did you mean token?"),
        ("tokenlearner[tokens=2.5]", "it must be a whole number"),
        ("fixed[equal_macs=maybe]", "it must be true or false"),
        ("all[keep=0.5]", "'all' takes no options"),
        ("untrained[keep=0.5]", "'untrained' takes no options"),
        ("dense[", "can't be read"),
        ("dense]x", "can't be read"),
    ],
)
def test_what_is_refused_and_how(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_methods(text)


def test_options_go_to_the_strategy_or_the_objective() -> None:
    (method,) = parse_methods("moco/sparsecontrast[keep=0.7,momentum=0.9,gate=key_bias]")
    assert method.strategy_options == {"keep": 0.7, "gate": "key_bias"}
    assert method.objective_options == {"momentum": 0.9}
    assert Method("none", "untrained").strategy_options == {}


def test_no_objective_and_strategy_share_an_option() -> None:
    """Otherwise a method's name would be ambiguous."""
    for objective in OBJECTIVES.values():
        for strategy in STRATEGIES.values():
            assert not objective.options.keys() & strategy.options.keys()
