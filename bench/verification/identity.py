"""Checks that a record is about the run that its spec describes: run id and settings follow from the spec alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from bench.records.record import Record
from bench.specs.frozen import mistakes
from bench.specs.run_spec import SCIENCE_VERSION, RunSpec
from bench.verification.check import FAILS, OPEN, Check, compare
from bench.verification.files import Source
from methods import code_of

WHAT = "spec and run id"
ANOTHER = "another version of the code"


def identity(source: Source) -> tuple[RunSpec | None, list[Check]]:
    """The spec, None where it can't be rerun, and the check that the record follows from it.

    Raises ValueError where the run needs a plug-in that was not given, or that was given in another version.
    """
    record = source.record
    if record.science_version != SCIENCE_VERSION:
        return None, [Check(WHAT, OPEN, _made_by(f"science version {record.science_version}", record))]
    try:
        spec = RunSpec.model_validate(record.spec)
    except ValidationError as error:
        return None, [Check(WHAT, FAILS, mistakes(error, "spec"))]
    unknown = list(_missing(spec.model_dump(mode="json"), record.spec))
    if unknown:
        return None, [Check(WHAT, OPEN, f"the spec has no {unknown[0]}: {_made_by(ANOTHER, record)}")]
    if spec.run_id != record.run_id:
        return None, [Check(WHAT, FAILS, f"{record.run_id} recorded, {spec.run_id} follows from the spec")]
    try:
        method = spec.parsed
        code = code_of(method.objective, method.strategy)
    except ValueError as error:
        if spec.code:
            raise ValueError(_plugin(spec, str(error))) from None
        return None, [Check(WHAT, OPEN, f"{str(error).rstrip('.')}; {_made_by(ANOTHER, record)}")]
    if code != spec.code:
        raise ValueError(_plugin(spec, f"the {spec.method} that is known here has hash '{code}'"))
    follows = {
        "method": method.name,
        "objective": method.objective,
        "strategy": method.strategy,
        "settings": spec.settings,
        "evidence": spec.evidence,
        "keep": method.keep,
    }
    recorded = {name: getattr(record, name) for name in follows}
    return spec, [compare(WHAT, recorded, follows, "the run id and the settings follow from the spec")]


def _missing(full: Mapping[str, Any], given: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Keys of `full` that are missing in `given`."""
    for key, value in full.items():
        place = f"{at}.{key}" if at else key
        if key not in given:
            yield place
        elif isinstance(value, Mapping) and isinstance(given[key], Mapping):
            yield from _missing(value, given[key], place)


def _made_by(version: str, record: Record) -> str:
    """Which version of the code made the record, and how to get it."""
    commit = str(record.environment.get("commit", ""))
    get = f": check out commit {commit[:12]} to verify it" if commit else ""
    return f"it was made by {version}, and this code has science version {SCIENCE_VERSION}{get}"


def _plugin(spec: RunSpec, why: str) -> str:
    """The message that asks for the plug-in of a record."""
    return (
        f"the record {spec.run_id} was made with a plug-in with hash '{spec.code}', and {why.rstrip('.')}: give the "
        "file that it was made with, --plugin FILE.py."
    )
