"""What a finished run leaves on disk: the frozen models of `record.json` and of an evaluation.

Everything that analysis reads is defined here, once. MACs are multiply-accumulates; times are seconds unless the
name says otherwise; an interval is 95 %, `(low, high)`. A `digest` seals all other fields (bench.records.seal); it is blank in
what was written before there were digests.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from bench.specs.frozen import Frozen
from datasets.limits import THREADS

SCHEMA_VERSION = 1
SIDE_FILES = ("history.jsonl", "selection.npz")  # made with a record, written before it


def _readable(environment: dict[str, Any]) -> dict[str, Any]:
    """What is computed with, of an environment, is of its kind; all else is only told."""
    threads, others = environment.get("threads", 1), environment.get("also_trained_under", [])
    if type(threads) is not int or not 1 <= threads <= THREADS:
        raise ValueError(f"threads are a whole number from 1 to {THREADS}")
    if not isinstance(others, list) or not all(isinstance(one, dict) for one in others):
        raise ValueError("also_trained_under is a list of conditions")
    return environment


def _beside(files: dict[str, str]) -> dict[str, str]:
    """Names of ours alone: they are joined to the run's folder, and must not lead out of it."""
    if strangers := files.keys() - set(SIDE_FILES):
        raise ValueError(f"no file of a run's is {min(strangers)!r}: they are {' and '.join(SIDE_FILES)}")
    return files


Environment = Annotated[dict[str, Any], AfterValidator(_readable)]
Many = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=0)]
Interval = tuple[float, float]


class Subset(Frozen):
    """One part of the data: how much of it there is, and a hash of exactly which images."""

    hash: str
    patients: int
    images: int
    positives: dict[str, int]  # by finding


class SplitRecord(Frozen):
    """The splits that a run saw; `fractions["1"][d]` is draw `d` of the 1 % subset."""

    hash: str
    train: Subset
    val: Subset
    test: Subset


class DataRecord(Frozen):
    """Which data: `fingerprint` identifies the images and labels, `notes` are sentences the report repeats."""

    name: str
    fingerprint: str
    label_names: tuple[str, ...]
    patient_ids_known: bool
    notes: tuple[str, ...]


class Macs(Frozen):
    """Multiply-accumulates. `inference` and `train_step` are per image (a step: both views, forward and backward,
    teacher, predictor and heads, at the target keep ratio); `whole_run` is the total with the ramp integrated."""

    inference: float
    train_step: float
    whole_run: float
    inference_parts: dict[str, float]
    counters: dict[str, float]  # inference per image by each witness: "fvcore", "flop_counter", "formula"
    train_parts: dict[str, float] = {}  # of `train_step`
    train_counters: dict[str, float] = {}  # a step at the target by each witness: "flop_counter", "formula"


class Timing(Frozen):
    """Wall-clock of this run alone. Runs may have shared the machine: no evidence for a speed-up."""

    steps: int
    steps_per_second: float
    wall_seconds: float
    resumed: int = 0  # how often the training went on from a checkpoint


class Memory(Frozen):
    """Bytes kept for the backward pass per image, and the peak of the process (or of the device)."""

    saved_bytes_per_image: float
    peak_mib: float
    peak_of: Literal["process", "device"]


class Learning(Frozen):
    """Whether the run learnt. `plateau_loss` is the loss of features that tell nothing apart; `selection` holds the
    strategy's diagnostics (averages over the last epoch, and on the test images at inference)."""

    final_loss: float
    plateau_loss: float
    feature_std: float
    rankme: float  # of centred features
    verdict: Literal["learned", "plateaued", "collapsed", "not trained"]
    selection: dict[str, float]


class Record(Frozen):
    """`results/<run id>/record.json`."""

    schema_version: int = SCHEMA_VERSION
    science_version: int
    run_id: str
    status: Literal["done", "failed"]
    reason: str = ""
    method: str  # canonical, e.g. "simclr/sparsecontrast" or "simclr/sparsecontrast[gate=key_bias]"
    objective: str  # "simclr", "moco", or "none" for the baselines
    strategy: str  # "dense", "sparsecontrast", ..., or "untrained", "supervised"
    spec: dict[str, Any]  # the full RunSpec
    settings: str = ""  # hash of what all runs of one comparison share; runs that differ in it are never averaged
    evidence: bool = True  # False for a preset that only tests the machinery
    data: DataRecord | None = None
    splits: SplitRecord | None = None
    keep: float | None = None  # asked for; None where the strategy has none
    keep_effective: float | None = None  # used, e.g. by a control at equal MACs
    train_execution: Literal["gathered", "masked", "none"] = "gathered"
    macs: Macs | None = None
    time: Timing | None = None
    memory: Memory | None = None
    learning: Learning | None = None
    weights_sha256: str = ""
    files: Annotated[dict[str, str], AfterValidator(_beside)] = {}  # SHA-256 of those SIDE_FILES it
    environment: Environment
    started: str  # ISO 8601, UTC
    finished: str
    digest: str = ""


class LabelScore(Frozen):
    """One finding on the test split, averaged over the draws of the label fraction."""

    auroc: float
    auroc_interval: Interval
    auprc: float
    positives: int  # test images
    negatives: int


class Draw(Frozen):
    """One draw of a label fraction: what was trained on, what was chosen inside it, what came out."""

    draw: int
    subset: Subset
    macro_auroc: float
    macro_auprc: float
    chosen: dict[str, float]  # e.g. {"C": 0.1}


class Evaluation(Frozen):
    """`evaluations/<probe>-<labels>-<inference>.json`: one probe at one label fraction. Macro values are means over
    the findings in `per_label`; `interval` is a bootstrap over the test patients, draws averaged inside."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    probe: Literal["linear", "knn", "finetune"]
    labels: float  # per cent
    inference: Literal["pruned", "dense"]  # the strategy acts, or all tokens are computed
    split: Literal["test", "val"]
    macro_auroc: float
    macro_auprc: float
    interval: Interval
    per_label: dict[str, LabelScore]
    undefined: dict[str, str]  # finding -> why it has no score
    validation: dict[str, float] = {}  # finding -> AUROC on the validation patients; by an earlier version {}
    draws: tuple[Draw, ...]
    draw_std: float  # of macro AUROC over draws; 0 where there is one
    subgroups: dict[str, dict[str, float]]  # "sex" -> {"F": macro AUROC, ...}
    n_patients: int
    n_images: int
    settings: str = ""  # hash of how it was evaluated
    spec: dict[str, Any] = {}  # how it was evaluated: the EvaluationSpec, of this probe and fraction alone
    finetune: dict[str, Any] = {}  # likewise, the FinetuneSpec of a probe that trains the network
    conditions: Environment = {}  # what its numbers depend on to the last bit besides; by an earlier version {}
    predictions_sha256: str = ""  # of predictions/<the same name>.npz
    digest: str = ""


PARTS = {
    "views": "making the views",
    "embedding": "patch embedding",
    "predictor": "predictor",
    "selection": "selection, pooling, rest",
    "blocks": "blocks",
    "heads": "heads and loss",
    "teacher": "teacher",
    "optimizer": "optimizer",
}


AA_SUFFIX = "#2"  # ends the name of the row in which dense is measured against itself


class CostRow(Frozen):
    """One method in a paired measurement; a row of `cost.csv`. ms are per image, a step's with both views; a speed-up
    is dense time / method time, median over rounds, with its 95 % interval. The A/A row is `simclr/dense#2`.

    What is about training is None where training was left out. The `..._ms` of PARTS say where a step's time goes,
    forward and backward together: all but `views_ms` add up to `train_ms`, in which making the views is not."""

    method: str
    encoder: str
    image_size: int
    channels: int
    keep: float | None
    keep_effective: float | None
    train_execution: str
    infer_gmacs: float
    train_gmacs: float
    infer_ms: float
    train_ms: float | None
    infer_speedup: Ratio
    infer_speedup_low: Ratio
    infer_speedup_high: Ratio
    train_speedup: Ratio | None
    train_speedup_low: Ratio | None
    train_speedup_high: Ratio | None
    run_speedup: Ratio | None
    run_speedup_low: Ratio | None
    run_speedup_high: Ratio | None
    ramp: float | None
    saved_mib: float | None  # kept for backward, per image
    batch: Many
    rounds: Many
    repeated_rounds: int  # rounds measured again because the process did not get its cores
    threads: int
    machine: str
    device: str
    precision: str
    attention: str = "sdpa"  # backend
    infer_attention_gmacs: float | None = None  # queries x keys, weights x values: of infer_gmacs
    infer_attention_share: float | None = None  # of the time of inference, in fused attention
    peak_mib: float | None = None  # of a few train steps of this batch in a process of their own; see peak_of
    peak_of: Literal["", "process", "device"] = ""  # resident memory above what was there before the model, or a GPU's
    views_ms: float | None = None
    embedding_ms: float | None = None
    predictor_ms: float | None = None
    selection_ms: float | None = None
    blocks_ms: float | None = None
    heads_ms: float | None = None
    teacher_ms: float | None = None
    optimizer_ms: float | None = None

    @model_validator(mode="after")
    def _training_is_whole(self) -> CostRow:
        """There in all its numbers, or left out."""
        ratios = [getattr(self, f"{kind}_speedup{end}") for kind in ("train", "run") for end in ("", "_low", "_high")]
        if len({value is None for value in [self.train_ms, *ratios]}) > 1:
            raise ValueError("of training (train_ms, train_speedup and run_speedup with their ends) a part is missing")
        return self

    def part(self, name: str) -> float | None:
        """ms of a part of a step, by its key in PARTS."""
        value: float | None = getattr(self, f"{name}_ms")
        return value


class CostTable(Frozen):
    """`results/cost/<hash>.json`: one paired, interleaved measurement of several methods in one process."""

    schema_version: int = SCHEMA_VERSION
    rows: tuple[CostRow, ...]
    environment: Environment
    started: str
    finished: str
    digest: str = ""
