"""A results folder with known truth: scores are drawn so that a method's AUROC is Phi(strength / sqrt 2)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

LABELS = ("nodule", "consolidation", "effusion", "cardiomegaly", "pneumothorax")
PREVALENCE = (0.12, 0.15, 0.2, 0.18, 0.1)
FRACTIONS = {1.0: 0.55, 10.0: 0.8, 100.0: 1.0}  # per cent -> share of the strength that is reached
ENVIRONMENT = {
    "python": "3.11.9",
    "versions": {"torch": "2.14.1", "timm": "1.0.20"},
    "machine": "AMD EPYC 7763, 2 cores",
    "threads": 1,
    "git": {"commit": "0123abc", "dirty": False},
}

SELECTION = {
    "sparsecontrast": {"logit_spread": 0.9, "noise_spread": 0.06, "spread_over_noise": 0.7, "static_share": 0.4},
    "dynamicvit": {
        **{"kept_share_1": 0.742, "kept_share_2": 0.511, "kept_share_3": 0.402, "kept_inference": 0.342},
        **{"kept_inference_1": 0.699, "kept_inference_2": 0.49, "kept_inference_3": 0.342},
    },
}


def strength(auroc: float) -> float:
    return float(np.sqrt(2) * norm.ppf(auroc))


@dataclass
class Method:
    """`auroc` at 100 % of the labels, and in `modes` that of other inference modes; `wobble` is the spread of a seed's
    own strength."""

    name: str
    auroc: float
    keep: float | None = None
    wobble: float = 0.02
    inference: str = "pruned"
    speed: tuple[float, float, float] = (1.0, 1.0, 1.0)  # inference, step, run
    execution: str = "gathered"
    verdict: str = "learned"
    modes: dict[str, float] = field(default_factory=dict)

    @property
    def objective(self) -> str:
        return self.name.split("/")[0] if "/" in self.name else "none"

    @property
    def strategy(self) -> str:
        return self.name.split("/")[-1].split("[")[0]


def headline() -> list[Method]:
    return [
        Method("untrained", 0.62, inference="dense", verdict="not trained"),
        Method("supervised", 0.74, inference="dense", verdict="not trained"),
        Method("simclr/dense", 0.82),
        Method("moco/dense", 0.81, speed=(1.0, 0.86, 0.86)),
        Method("simclr/dynamicvit", 0.80, 0.7, speed=(1.38, 0.93, 0.93), execution="masked"),
        Method("simclr/tokenlearner", 0.77, speed=(1.55, 1.44, 1.44)),
        Method("simclr/sparsecontrast", 0.82, 0.5, speed=(1.75, 1.82, 1.40)),
        Method("simclr/fixed", 0.75, 0.5, speed=(1.80, 1.88, 1.55)),
        Method("simclr/patchdropout", 0.815, 0.5, inference="dense", speed=(1.01, 1.86, 1.54)),
    ]


@dataclass
class World:
    """What all methods of the folder share: the test images and the noise that no method escapes."""

    patients: int = 400
    seeds: tuple[int, ...] = (0, 1, 2)
    labels: tuple[str, ...] = LABELS
    draws: int = 5
    data: str = "phantom"
    preset: str = "quick"
    fractions: dict[float, float] = field(default_factory=lambda: dict(FRACTIONS))
    notes: tuple[str, ...] = (
        "The phantom is synthetic: it shows how methods compare on it, and nothing about patients.",
    )
    predictions: bool = True
    probes: tuple[str, ...] = ("linear", "knn")
    validation: int = 0  # patients; 0 for records from before they were scored
    flat: tuple[str, ...] = ()  # findings that nobody tells among the validation patients

    def __post_init__(self) -> None:
        random = np.random.default_rng(7)
        count = len(self.labels)
        self.who = np.repeat([f"p{i:04d}" for i in range(self.patients)], 2)
        share = np.resize(PREVALENCE, count)
        self.truth = (random.random((self.patients, count)) < share).astype(np.float32).repeat(2, axis=0)
        own = random.normal(0, np.sqrt(0.5), (self.patients, count)).repeat(2, axis=0)
        self.noise = own + random.normal(0, np.sqrt(0.4), (2 * self.patients, count))  # variance 0.9 of 1
        self.validation_truth = (random.random((self.validation, count)) < share).astype(np.float32)
        self.validation_noise = random.normal(0, np.sqrt(0.9), (self.validation, count))


def _subset(tag: str, patients: int, labels: tuple[str, ...]) -> dict[str, Any]:
    positives = {
        name: max(1, int(patients * 2 * p)) for name, p in zip(labels, np.resize(PREVALENCE, len(labels)), strict=True)
    }
    return {
        "hash": f"{tag}-{patients:05d}",
        "patients": patients,
        "images": 2 * patients,
        "positives": positives,
    }


def write_run(results: Path, world: World, method: Method, seed: int, **changes: Any) -> Path:
    """One finished run; `changes` replace top-level fields of its record. Returns its folder."""
    run_id = f"{method.name.replace('/', '-').replace('[', '-').replace(']', '')}-{world.data}-s{seed}-{world.preset}"
    if method.keep is not None:
        run_id += f"-k{method.keep:g}"
    trained = method.objective != "none"
    factor = 1.0 if method.keep is None else method.keep
    spec: dict[str, Any] = {
        "method": method.name,
        "seed": seed,
        "preset": world.preset,
        "data": {"name": world.data},
        "encoder": {"name": "conv_vit_d64", "image_size": 64, "channels": 1},
        "train": {"epochs": 10, "batch": 64, "lr": 1e-3, "weight_decay": 0.05, "ramp": 0.3},
        "views": {"crop_area": [0.45, 1.0], "rotation": 10.0},
        "labels": None,
    }
    record: dict[str, Any] = {
        "science_version": 1,
        "run_id": run_id,
        "status": "done",
        "method": method.name,
        "objective": method.objective,
        "strategy": method.strategy,
        "spec": spec,
        "data": {
            "name": world.data,
            "fingerprint": "f" * 64,
            "label_names": world.labels,
            "patient_ids_known": True,
            "notes": world.notes,
        },
        "splits": {
            "hash": "5e11" * 16,
            "train": _subset("tr", 720, world.labels),
            "val": _subset("va", 180, world.labels),
            "test": _subset("te", world.patients, world.labels),
        },
        "keep": method.keep,
        "keep_effective": None
        if method.keep is None
        else round(method.keep + (0.03 if method.strategy in ("fixed", "patchdropout") else 0), 3),
        "train_execution": method.execution if trained else "none",
        "macs": {
            "inference": 4.1e6 * (factor if method.inference == "pruned" else 1),
            "train_step": 2.6e7 * factor,
            "whole_run": 3.7e11 * (0.3 + 0.7 * factor) * (1.2 if method.objective == "moco" else 1),
            **({"all_tokens": 4.1e6} if "dense" in method.modes else {}),
            "inference_parts": {"encoder": 4.1e6},
            "counters": {"fvcore": 4.1e6},
        },
        "time": {"steps": 225, "steps_per_second": 4.0, "wall_seconds": 57.0},
        "memory": {"saved_bytes_per_image": 1.4e6 * factor, "peak_mib": 610.0, "peak_of": "process"},
        "learning": {
            "final_loss": 4.84 if method.verdict == "plateaued" else 1.3 + 0.05 * seed,
            "plateau_loss": 4.84,
            "feature_std": 0.002 if method.verdict == "plateaued" else 0.09,
            "rankme": 21.0 + seed,
            "verdict": method.verdict,
            "selection": SELECTION.get(method.strategy, {}),
        },
        "weights_sha256": "ab" * 32,
        "environment": ENVIRONMENT,
        "started": "2026-01-01T00:00:00Z",
        "finished": "2026-01-01T00:01:00Z",
    }
    folder = results / run_id
    if method.strategy == "supervised":  # one run a fraction
        for fraction in world.fractions:
            one = folder.with_name(f"{run_id}-{fraction:g}pct")
            mine = record | {"run_id": one.name, "spec": spec | {"labels": fraction}} | changes
            _write(one, mine, world, method, seed, {fraction: world.fractions[fraction]}, ("finetune",))
        return folder
    _write(folder, record | changes, world, method, seed, world.fractions, world.probes)
    if trained:
        _history(folder, method, seed)
    return folder


def _write(
    folder: Path,
    record: dict[str, Any],
    world: World,
    method: Method,
    seed: int,
    fractions: dict[float, float],
    probes: tuple[str, ...],
) -> None:
    (folder / "evaluations").mkdir(parents=True)
    (folder / "predictions").mkdir()
    (folder / "record.json").write_text(json.dumps(record))
    if record["status"] == "failed":
        return
    key = [ord(letter) for letter in method.name] + [seed, int(100 * (method.keep or 0))]
    modes = [(probe, method.inference, method.auroc) for probe in probes]
    modes += [("linear", mode, auroc) for mode, auroc in method.modes.items()]
    for probe, mode, auroc in modes:
        for fraction, share in fractions.items():
            own_mode = [] if mode == method.inference else [len(mode)]
            random = np.random.default_rng([*key, int(fraction * 10), len(probe), *own_mode])
            draws = 1 if fraction == 100 or method.strategy == "supervised" else world.draws
            power = strength(auroc) * share * (0.9 if probe == "knn" else 1.0)
            power += np.random.default_rng(key).normal(0, method.wobble)
            own = random.normal(0, np.sqrt(0.1), (draws, *world.truth.shape))
            scores = (power * world.truth + world.noise + own).astype(np.float32)
            name = f"{probe}-{fraction:g}-{mode}"
            write_evaluation(folder, name, record["run_id"], world, probe, fraction, mode, scores)
            beside = _on_validation(world, power, draws, random)
            if world.validation:
                path, truth = folder / "evaluations" / f"{name}.json", world.validation_truth
                values = [
                    np.mean([roc_auc_score(truth[:, i], one[:, i]) for one in beside]) for i in range(truth.shape[1])
                ]
                one = json.loads(path.read_text()) | {"validation": dict(zip(world.labels, values, strict=True))}
                path.write_text(json.dumps(one))
            if world.predictions:
                np.savez(
                    folder / "predictions" / f"{name}.npz",
                    scores=scores,
                    labels=world.truth,
                    patients=world.who,
                    index=np.arange(len(world.who)),
                    **(
                        {
                            "validation_scores": beside,
                            "validation_labels": world.validation_truth,
                            "validation_patients": np.array([f"v{i:04d}" for i in range(world.validation)]),
                            "validation_index": np.arange(world.validation),
                        }
                        if world.validation
                        else {}
                    ),
                )


def _on_validation(world: World, power: float, draws: int, random: np.random.Generator) -> Any:
    """Scores (draws, images, findings) of validation patients with one image each."""
    told = np.array([name not in world.flat for name in world.labels])
    own = random.normal(0, np.sqrt(0.1), (draws, *world.validation_truth.shape))
    return (power * told * world.validation_truth + world.validation_noise + own).astype(np.float32)


def write_evaluation(
    folder: Path,
    name: str,
    run_id: str,
    world: World,
    probe: str,
    fraction: float,
    inference: str,
    scores: Any,
) -> None:
    per, undefined = {}, {}
    for number, label in enumerate(world.labels):
        truth, found = world.truth[:, number], scores[:, :, number]
        if np.isnan(found).any():
            undefined[label] = "draw 0 holds a single class"
            continue
        value = float(np.mean([roc_auc_score(truth, one) for one in found]))
        per[label] = {
            "auroc": value,
            "auroc_interval": [value - 0.03, value + 0.03],
            "auprc": float(np.mean([average_precision_score(truth, one) for one in found])),
            "positives": int(truth.sum()),
            "negatives": int((truth == 0).sum()),
        }
    macro = float(np.mean([one["auroc"] for one in per.values()]))
    patients = max(8, int(720 * fraction / 100))
    draws = [
        {
            "draw": d,
            "subset": _subset(f"d{d}", patients, world.labels),
            "macro_auroc": macro,
            "macro_auprc": 0.4,
            "chosen": {"lr": 1e-3} if probe == "finetune" else {"C": 10.0 ** (d - 2), "at_edge": float(d == 0)},
        }
        for d in range(len(scores))
    ]
    out = {
        "run_id": run_id,
        "probe": probe,
        "labels": fraction,
        "inference": inference,
        "split": "test",
        "macro_auroc": macro,
        "macro_auprc": 0.4,
        "interval": [macro - 0.03, macro + 0.03],
        "per_label": per,
        "undefined": undefined,
        "draws": draws,
        "draw_std": 0.01,
        "subgroups": {"sex": {"F": macro + 0.01, "M": macro - 0.01}, "view": {"AP": macro - 0.02, "PA": macro}},
        "n_patients": world.patients,
        "n_images": 2 * world.patients,
    }
    (folder / "evaluations" / f"{name}.json").write_text(json.dumps(out))


def _history(folder: Path, method: Method, seed: int) -> None:
    random = np.random.default_rng([seed, len(method.name)])
    top = 4.84 if method.objective == "simclr" else 8.4
    lines = []
    for epoch in range(1, 11):
        gone = 0 if method.verdict == "plateaued" else 1 - np.exp(-epoch / 3)
        loss = top - (top - 1.3 - 2 * (0.82 - method.auroc)) * gone + random.normal(0, 0.04)
        lines.append(
            json.dumps(
                {
                    "epoch": epoch,
                    "step": 22 * epoch,
                    "loss": loss,
                    "keep": 1.0,
                    "lr": 1e-3,
                    "images_per_second": 250.0,
                    "selection": {},
                }
            )
        )
    (folder / "history.jsonl").write_text("\n".join(lines) + "\n")


def write_cost(
    results: Path,
    methods: list[Method],
    width: float = 0.02,
    finished: str = "2026-01-02T00:00:00Z",
    **changes: Any,
) -> None:
    """One paired measurement; an interval is value x (1 -+ width), the A/A row 1 -+ 0.02."""
    rows = []
    trained = [m for m in methods if m.objective != "none"]
    again = Method("simclr/dense#2", 0.8)
    for method in [*trained, again]:
        infer, train, run = method.speed
        row = {
            "method": method.name,
            "encoder": "conv_vit_d64",
            "image_size": 64,
            "channels": 1,
            "keep": method.keep,
            "keep_effective": method.keep,
            "train_execution": method.execution,
            "infer_gmacs": 0.0041,
            "train_gmacs": 0.026,
            "infer_ms": 0.8 / infer,
            "train_ms": 4.0 / train,
            "ramp": 0.3,
            "saved_mib": 1.3,
            "batch": 32,
            "rounds": 15,
            "repeated_rounds": 1,
            "threads": 1,
            "machine": "AMD EPYC 7763, 2 cores",
            "device": "cpu",
            "precision": "32-true",
        }
        for kind, value in (("infer", infer), ("train", train), ("run", run)):
            spread = 0.0 if method.name == "simclr/dense" else 0.02 if method is again else width
            row |= {
                f"{kind}_speedup": value,
                f"{kind}_speedup_low": value * (1 - spread),
                f"{kind}_speedup_high": value * (1 + spread),
            }
        if method.keep is not None:
            along = {0.3: run, 0.5: 0.95 * run, 1.0: 0.85 * run}
            row["ramps"] = [
                {"ramp": ramp, "speedup": value, "low": value * (1 - width), "high": value * (1 + width)}
                for ramp, value in along.items()
            ]
        rows.append(row | changes)
    (results / "cost").mkdir(parents=True, exist_ok=True)
    table = {"rows": rows, "environment": ENVIRONMENT, "started": finished, "finished": finished}
    (results / "cost" / f"{len(list((results / 'cost').iterdir()))}.json").write_text(json.dumps(table))


def write_selection(folder: Path, kind: str, images: int = 6, size: int = 64, grid: int = 8) -> None:
    """Kept patches of a toy chest: "near" keeps patches about the lesion, "fixed" the same ones in every image."""
    random = np.random.default_rng(3)
    y, x = np.mgrid[:size, :size] / size
    pictures, masks, kept = [], [], []
    fixed = np.random.default_rng(5).permutation(grid * grid)[: grid * grid // 2]
    for number in range(images):
        lungs = sum(np.exp(-(((x - at) / 0.13) ** 2 + ((y - 0.5) / 0.28) ** 2)) for at in (0.3, 0.7))
        cy, cx, r = (
            random.uniform(0.3, 0.7),
            random.choice([0.3, 0.7]) + random.uniform(-0.05, 0.05),
            random.uniform(0.05, 0.1),
        )
        lesion = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        picture = 190 - 130 * lungs + 55 * lesion * (number != images - 1) + random.normal(0, 6, (size, size))
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
        masks.append((lesion & (number != images - 1)).astype(np.uint16))
        centre = (np.arange(grid) + 0.5) / grid
        far = (centre[None] - cx) ** 2 + (centre[:, None] - cy) ** 2 + random.random((grid, grid)) * 0.1
        keep = np.zeros(grid * grid, dtype=bool)
        keep[np.argsort(far.ravel())[: grid * grid // 2] if kind == "near" else fixed] = True
        kept.append(keep.reshape(grid, grid))
    labels = np.zeros((images, len(LABELS)), dtype=np.float32)
    labels[np.arange(images - 1), np.arange(images - 1) % len(LABELS)] = 1
    np.savez(
        folder / "selection.npz",
        images=np.array(pictures),
        kept=np.array(kept),
        masks=np.array(masks),
        labels=labels,
        rule="the first test patient with each finding, then the first without any",
    )


def write_results(
    results: Path, world: World | None = None, methods: list[Method] | None = None, cost: bool = True
) -> Path:
    """The whole folder: every method x seed, cost, kept tokens of the first seed. Returns `results`."""
    world, methods = world or World(), methods if methods is not None else headline()
    for method in methods:
        for seed in world.seeds:
            folder = write_run(results, world, method, seed)
            if method.strategy in ("sparsecontrast", "fixed") and seed == world.seeds[0]:
                write_selection(folder, "near" if method.strategy == "sparsecontrast" else "fixed")
    if cost:
        write_cost(results, methods)
    return results
