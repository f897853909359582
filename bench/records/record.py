"""The files that results consist of: the frozen models of a record, an evaluation and a cost table.

Everything that the analysis reads is defined here, once. MACs are multiply-accumulates; times are in seconds unless the
name says otherwise; an interval is 95 %, `(low, high)`. The field `digest` seals all other fields (bench.records.seal);
it is blank in files that were written before there were digests.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from bench.specs.frozen import Frozen
from bench.specs.run_spec import EvaluationKey
from datasets.limits import THREADS
from methods import Inference, Value

SCHEMA_VERSION = 1
SIDE_FILES = ("history.jsonl", "selection.npz", "lesions.npz")  # of a run, written before its record


def _readable(environment: dict[str, Any]) -> dict[str, Any]:
    """Check the fields of an environment that are computed with; all others are only shown."""
    threads, others = environment.get("threads", 1), environment.get("also_trained_under", [])
    if type(threads) is not int or not 1 <= threads <= THREADS:
        raise ValueError(f"threads must be a whole number from 1 to {THREADS}")
    if not isinstance(others, list) or not all(isinstance(one, dict) for one in others):
        raise ValueError("also_trained_under must be a list of conditions")
    return environment


def _beside(files: dict[str, str]) -> dict[str, str]:
    """Check that only SIDE_FILES are named: names are joined to the run's folder, and must not lead out of it."""
    if strangers := files.keys() - set(SIDE_FILES):
        raise ValueError(f"{min(strangers)!r} is not a file of a run, which has {' and '.join(SIDE_FILES)}")
    return files


Environment = Annotated[dict[str, Any], AfterValidator(_readable)]
Many = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=0)]
Interval = tuple[float, float]


class Subset(Frozen):
    """A part of the data: its size, and a hash that identifies its images."""

    hash: str
    patients: int
    images: int
    positives: dict[str, int]  # by finding


class SplitRecord(Frozen):
    """The splits of a run."""

    hash: str
    train: Subset
    val: Subset
    test: Subset


class DataRecord(Frozen):
    """The data of a run. `fingerprint` identifies images and labels; `notes` are sentences that the report repeats."""

    name: str
    fingerprint: str
    label_names: tuple[str, ...]
    patient_ids_known: bool
    notes: tuple[str, ...]


class Macs(Frozen):
    """Multiply-accumulates. `inference` and `train_step` are per image (a step: both views, forward and backward,
    teacher, predictor and heads, at the target keep ratio); `whole_run` is the total of all steps, with the ramp."""

    inference: float  # in the default inference mode of the strategy
    train_step: float
    whole_run: float
    all_tokens: float | None = None  # at inference with all tokens, where the strategy is evaluated so too
    inference_parts: dict[str, float]
    counters: dict[str, float]  # inference per image by each counter: "fvcore", "flop_counter", "formula"
    train_parts: dict[str, float] = {}  # of `train_step`
    train_counters: dict[str, float] = {}  # a step at the target by each counter: "flop_counter", "formula"


class Timing(Frozen):
    """Wall-clock time of this run alone. Runs may have shared the machine, so it is not evidence for a speed-up."""

    steps: int
    steps_per_second: float
    wall_seconds: float
    resumed: int = 0  # how often the training was resumed from a checkpoint


class Memory(Frozen):
    """Memory of training: bytes saved for the backward pass, per image, and the peak of the process or device."""

    saved_bytes_per_image: float
    peak_mib: float
    peak_of: Literal["process", "device"]


class Network(Frozen):
    """What was built: all options of the method with the values in use (0 for "computed" is replaced by the computed
    value), and numbers of parameters. `teacher` counts those that no optimizer changes, beside the encoder."""

    options: dict[str, Value]
    encoder: int
    strategy: int
    heads: int
    teacher: int


class Learning(Frozen):
    """Whether the run learned. `plateau_loss` is the loss of features that are the same for all images; `selection`
    holds the diagnostics of the strategy (averages over the last epoch, and on the test images at inference)."""

    final_loss: float
    plateau_loss: float
    feature_std: float
    rankme: float  # of centred features
    verdict: Literal["learned", "plateaued", "collapsed", "not trained"]
    selection: dict[str, float]


class Record(Frozen):
    """A run: `results/<run id>/record.json`."""

    schema_version: int = SCHEMA_VERSION
    science_version: int
    run_id: str
    status: Literal["done", "failed"]
    reason: str = ""
    method: str  # canonical, e.g. "simclr/sparsecontrast" or "simclr/sparsecontrast[gate=key_bias]"
    objective: str  # "simclr", "moco", or "none" for the baselines
    strategy: str  # "dense", "sparsecontrast", ..., or "untrained", "supervised"
    spec: dict[str, Any]  # the full RunSpec
    settings: str = ""  # hash of what the runs of a comparison share; runs that differ in it are never averaged
    evidence: bool = True  # False for a preset that only tests the code
    data: DataRecord | None = None
    splits: SplitRecord | None = None
    keep: float | None = None  # asked for; None where the strategy has none
    keep_effective: float | None = None  # used, e.g. by a control at equal MACs
    train_execution: Literal["gathered", "masked", "none"] = "gathered"
    network: Network | None = None
    macs: Macs | None = None
    time: Timing | None = None
    memory: Memory | None = None
    learning: Learning | None = None
    weights_sha256: str = ""
    files: Annotated[dict[str, str], AfterValidator(_beside)] = {}  # SHA-256 of each of SIDE_FILES it has
    environment: Environment
    started: str  # ISO 8601, UTC
    finished: str
    digest: str = ""


class LabelScore(Frozen):
    """The score of one finding on the test split, averaged over the draws of the label fraction."""

    auroc: float
    auroc_interval: Interval
    auprc: float
    positives: int  # test images
    negatives: int


class Draw(Frozen):
    """One draw of a label fraction: the images to train on, the hyperparameters chosen on them, and the scores."""

    draw: int
    subset: Subset
    macro_auroc: float
    macro_auprc: float
    chosen: dict[str, float]  # e.g. {"C": 0.1}


class Evaluation(Frozen):
    """One probe at one label fraction: `evaluations/<probe>-<labels>-<inference>.json`. Macro values are means over the
    findings in `per_label`; `interval` is a bootstrap over the test patients of the mean over draws."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    probe: Literal["linear", "knn", "finetune"]
    labels: float  # per cent
    inference: Inference  # the strategy selects tokens, or all are computed
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
    settings: str = ""  # hash of `spec` and `finetune`
    spec: dict[str, Any] = {}  # the EvaluationSpec, reduced to this probe and fraction
    finetune: dict[str, Any] = {}  # the FinetuneSpec, for a probe that trains the network
    conditions: Environment = {}  # what else its numbers depend on to the last bit; {} by earlier versions
    predictions_sha256: str = ""  # of predictions/<probe>-<labels>-<inference>.npz
    digest: str = ""

    @property
    def key(self) -> EvaluationKey:
        """Which of the run's evaluations this is; its files are named by it."""
        return EvaluationKey(self.probe, self.labels, self.inference)


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


RAMPS = (0.3, 0.5, 1.0)
"""Ramps at which the time of a whole run is given side by side, whatever the ramp of the runs."""


class RampSpeedup(Frozen):
    """Time of a whole run of dense / time of a whole run of a method with this ramp: median and 95 % interval."""

    ramp: float
    speedup: Ratio
    low: Ratio
    high: Ratio


AA_SUFFIX = "#2"  # ends the name of the row in which dense is measured against itself


class CostRow(Frozen):
    """One method in a paired measurement; a row of `cost.csv`. Milliseconds are per image, those of a step with both
    views; a speed-up is dense time / method time, the median over rounds, with its 95 % interval. The A/A row is
    `simclr/dense#2`.

    `run_speedup` is at the ramp of the request, `ramps` at each of RAMPS; they come from the same measured steps.

    Fields of training are None where training was not measured. The `..._ms` of PARTS divide the time of a step,
    forward and backward together: all but `views_ms` add up to `train_ms`, which leaves out making the views."""

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
    saved_mib: float | None  # saved for the backward pass, per image
    batch: Many
    rounds: Many
    repeated_rounds: int  # rounds repeated because the process did not get its cores
    threads: int
    machine: str
    device: str
    precision: str
    attention: str = "sdpa"  # backend
    infer_attention_gmacs: float | None = None  # the part of infer_gmacs in queries x keys and weights x values
    infer_attention_share: float | None = None  # share of the inference time in fused attention
    peak_mib: float | None = None  # of a few train steps with this batch in a separate process; see peak_of
    peak_of: Literal["", "process", "device"] = ""  # resident memory beyond that before the model, or GPU memory
    views_ms: float | None = None
    embedding_ms: float | None = None
    predictor_ms: float | None = None
    selection_ms: float | None = None
    blocks_ms: float | None = None
    heads_ms: float | None = None
    teacher_ms: float | None = None
    optimizer_ms: float | None = None
    ramps: tuple[RampSpeedup, ...] = ()  # empty without a ramp, and in tables of an earlier version

    @model_validator(mode="after")
    def _training_is_whole(self) -> CostRow:
        """Check that the numbers of training are all there, or all left out."""
        ratios = [getattr(self, f"{kind}_speedup{end}") for kind in ("train", "run") for end in ("", "_low", "_high")]
        if len({value is None for value in [self.train_ms, *ratios]}) > 1:
            raise ValueError(
                "train_ms, train_speedup and run_speedup with their ends must all be there, or all be left out"
            )
        return self

    def part(self, name: str) -> float | None:
        """Milliseconds of a part of a step, by its key in PARTS."""
        value: float | None = getattr(self, f"{name}_ms")
        return value


class CostTable(Frozen):
    """A paired, interleaved measurement of several methods in one process: `results/cost/<hash>.json`."""

    schema_version: int = SCHEMA_VERSION
    rows: tuple[CostRow, ...]
    environment: Environment
    started: str
    finished: str
    digest: str = ""
