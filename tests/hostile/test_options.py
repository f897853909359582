"""Options of the commands: unknown, misspelt, out of range, contradictory; and whatever hypothesis thinks of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.grid.options import seeds
from bench.specs.grid_spec import read_change
from bench.specs.options import numbers
from methods.names import parse_methods
from tests.hostile.harness import Commands, check, error_line

# id: (options, what the message says)
RUN: dict[str, tuple[tuple[str, ...], str | tuple[str, ...]]] = {
    "unknown option": (("--metods", "dense"), ("No such option", "--methods")),
    "unknown short option": (("-x",), "No such option"),
    "an argument too many": (("dense",), "unexpected extra argument"),
    "option without value": (("--labels",), "requires an argument"),
    "image size in words": (("--image-size", "big"), ("--image-size", "valid integer")),
    "image size below all": (("--image-size", "8"), r"encoder.image_size: .*16 .*given: 8"),
    "image size above all": (("--image-size", "1000000"), r"encoder.image_size: .*4096"),
    "image size negative": (("--image-size", "-32"), r"encoder.image_size: .*16"),
    "image size that patches do not tile": (
        ("--image-size", "36"),
        "36 is not a multiple of the patch size of .*, 8 pixels: use e.g. 32",
    ),
    "encoder misspelt": (("--encoder", "vit_tiny_patch16_242"), "did you mean vit_tiny_patch16_224"),
    "encoder blank": (("--encoder", ""), "unknown encoder ''"),
    "encoder with a path": (("--encoder", "../../etc/passwd"), "unknown encoder '../../etc/passwd': use a plain ViT"),
    "encoder convnext misspelt": (("--encoder", "convnext_tin"), "did you mean convnext_tiny"),
    "encoder resnet misspelt": (("--encoder", "resnet5o"), "did you mean resnet50"),
    "data misspelt": (("--data", "phantm"), "did you mean phantom"),
    "data option misspelt": (("--set", "data.options.patient=9"), "did you mean patients"),
    "data option of another kind": (("--set", "data.options.patients=1.5"), "patients is 1.5; give a whole number"),
    "data option a list": (("--set", "data.options.patients=[1]"), "patients: Input should be true, false, a number"),
    "phantom without end": (("--set", "data.options.patients=1000000000000"), "patients .*give at most 1,000,000"),
    "phantom larger than the disk": (
        ("--image-size", "4096", "--set", "data.options.patients=1000000"),
        r"GB free, but the images take .* GB; use fewer patients",
    ),
    "data root that is not there": (("--data", "folder", "--data-root", "{folder}/no"), "folder .*no does not exist"),
    "data root that is a file": (
        ("--data", "folder", "--data-root", "{folder}/home/thesis.txt"),
        "does not exist; give",
    ),
    "data root in a circle": (("--data", "folder", "--data-root", "{folder}/circle"), "circle does not exist"),
    "labels none": (("--labels", " , "), "is not a comma-separated list of numbers: write e.g. --labels 1,10,100"),
    "labels nan": (("--labels", "nan"), "is not a comma-separated list of numbers"),
    "labels infinite": (("--labels", "1e999"), "is not a comma-separated list of numbers"),
    "labels negative": (("--labels", "-10"), "above 0 and up to 100, and -10 is not"),
    "labels below one patient": (("--labels", "0.01"), ("0.01 % of 36 labelled", "a single patient is 2.8 %")),
    "labels with too many digits": (("--labels", "10.00000001"), "at most six digits, .*write 10"),
    "keep none": (("--keep", "nan"), "is not a comma-separated list of numbers: write e.g. --keep 0.5,0.7"),
    "keep negative": (("--methods", "fixed", "--keep", "-0.5"), "keep.0: .*greater than or equal to 0"),
    "keep of nobody": (("--keep", "0.5"), ("--keep 0.5 applies to no method: simclr/dense", "leave --keep out")),
    "keep of a method with rho": (("--methods", "evit", "--keep", "0.5"), r"for evit write evit\[rho=0.5\]"),
    "keep twice": (
        ("--methods", "fixed[keep=0.3]", "--keep", "0.5"),
        r"applies to no method: simclr/fixed\[keep=0.3\]",
    ),
    "keep twice, of the default": (("--methods", "fixed[keep=0.5]", "--keep", "0.7"), "or sets it already"),
    "seeds in words": (("--seeds", "three"), "--seeds 'three' can't be read: 3 means 0,1,2"),
    "seeds in another script": (("--seeds", "²"), "can't be read"),
    "seeds without end": (("--seeds", "1000000000"), "more than 1000 seeds"),
    "seed without end": (("--seeds", "9" * 30 + ","), "can't be read"),
    "seed too large": (("--seeds", "4294967296,"), r"seeds.0: .*less than 2147483648"),
    "seeds too many": (("--set", f"seeds={list(range(1001))}"), r"seeds: .*at most 1000 items"),
    "probes misspelt": (("--probes", "liner"), "'linear', 'knn' or 'finetune'"),
    "probes none": (("--probes", ","), "name at least one of --labels and one of --probes"),
    "preset misspelt": (("--preset", "smokey"), r"unknown preset 'smokey': did you mean smoke\?"),
    "preset with a path": (("--preset", "../suite"), "unknown preset '../suite'"),
    "preset blank": (("--preset", ""), "unknown preset ''"),
    "spec that is a folder": (("--spec", "{folder}/home"), "no spec at .*home"),
    "spec with a name too long": (("--spec", "x" * 5000), "File name too long"),
    "launcher misspelt": (("--launcher", "inlin"), r"did you mean inline\?"),
    "slurm options without SLURM": (
        ("--slurm", "time=60"),
        "--slurm is for --launcher slurm, and this is",
    ),
    "ranks in one process": (("--ranks", "2"), "--ranks 2 needs several processes: use --launcher local or slurm"),
    "ranks below one": (("--ranks", "0"), "--ranks"),
    "ranks that share no batch": (
        ("--launcher", "local", "--ranks", "3"),
        "a batch of 16 images can't be shared equally by 3 ranks: use --ranks",
    ),
    "workers below none": (("--workers", "-2"), "--workers"),
    "methods misspelt": (("--methods", "sparsecontrst"), "did you mean .*sparsecontrast"),
    "methods of an unknown objective": (("--methods", "byol/dense"), "unknown method 'byol/dense'"),
    "methods without end": (("--methods", "dense," * 5000), "30,000 characters, but the limit is 10,000"),
    "methods with brackets left open": (("--methods", "fixed[keep=0.5"), "can't be read"),
    "method option infinite": (
        ("--methods", "dynamicvit[ratio_weight=inf]"),
        "is inf: it must be finite and at least 0.0",
    ),
    "method option misspelt": (("--methods", "sparsecontrast[noize=0]"), r"did you mean noise\?"),
    "method option of 400 digits": (("--methods", "tome[r=" + "9" * 400 + "]"), "must be at least 0 and at most 4096"),
    "method option of 5000 digits": (("--methods", "tome[r=" + "9" * 5000 + "]"), "it must be a whole number"),
    "method with control characters": (("--methods", "\x1b[31mdense"), r"can't be read|\\x1b"),
    "method of several lines": (("--methods", "den\nse"), "unknown method"),
    "set misspelt": (("--set", "trian.epochs=1"), r"unknown key 'trian': did you mean train\?"),
    "set without a key": (("--set", "=1"), "write key=value"),
    "set a table to a number": (("--set", "train=5"), r"train: .*\(given: 5\)"),
    "set a number to a table": (("--set", "train.epochs.more=5"), r"train.epochs: .*valid integer"),
    "set very deep": (("--set", ".".join("a" * 3000) + "=1"), "unknown key"),
    "set nested without end": (("--set", "seeds=" + "[" * 5000), r"seeds: .*valid tuple"),
    "set true for a number": (("--set", "train.lr=true"), r"train.lr: .*valid number .*given: True"),
    "set a number in quotes": (("--set", 'train.epochs="5"'), r"train.epochs: .*valid integer"),
    "set a learning rate of nan": (("--set", "train.lr=nan"), r"train.lr: .*finite number"),
    "set a learning rate without end": (("--set", "train.lr=inf"), r"train.lr: .*finite number"),
    "set a learning rate of nothing": (("--set", "train.lr=0.0"), r"train.lr: .*greater than 0"),
    "set epochs without end": (("--set", "train.epochs=1000000000"), r"train.epochs: .*1000000"),
    "set two keys at once": (("--set", "train.epochs=5\nmethods='x'"), r"train.epochs: .*valid integer"),
    "set the preset": (("--set", "preset=quick"), "a preset can't be set in a spec: choose it with --preset"),
    "set draws without end": (("--set", "evaluation.draws=1000000"), r"evaluation.draws: .*1000"),
    "set no regularisation": (("--set", "evaluation.c=[]"), r"evaluation.c: .*at least 1 item"),
    "steps that contradict each other": (
        ("--set", "finetune.min_steps=9", "--set", "finetune.max_steps=3"),
        "min_steps 9 is above max_steps 3",
    ),
    "a view's range upside down": (("--set", "views.crop_area=[0.9,0.1]"), "crop_area"),
    "a view's range that is negative": (("--set", "views.gamma=[-1.0,1.0]"), "gamma"),
    "a view turned too far": (("--set", "views.rotation=1000.0"), "rotation"),
    "a blur wider than the image": (("--set", "views.blur=[1.0,100.0]"), "blur"),
    "shares without a rest": (("--set", "data.val=0.5", "--set", "data.test=0.5"), "Shares of val 0.5 and test 0.5"),
    "share of nothing": (("--set", "data.test=0.0"), "Shares of val .* and test 0"),
    "batch above the data": (("--set", "train.batch=500"), "do not fill a batch of 500: use --set train.batch=N"),
    "batch of one": (("--set", "train.batch=1"), "train.batch: .*greater than or equal to 2"),
    "a tuned rate of an unknown method": (
        ("--set", "tuned={'simclr/dnse'=0.1}"),
        r"tuned: unknown method 'simclr/dnse': did you mean simclr/dense",
    ),
    "oracle without masks": (
        ("--methods", "oracle", "--data", "folder", "--data-root", "{folder}/data"),
        "needs lesion masks",
    ),
    "results that are a file": (
        ("--results", "{folder}/home/thesis.txt"),
        "thesis.txt is a file: --results takes a fol",
    ),
    "results below a file": (
        ("--results", "{folder}/home/thesis.txt/x"),
        "can't be made .*another folder with --results",
    ),
    "reports that are a file": (("--reports", "{folder}/home/thesis.txt"), "is a file: --reports takes a folder"),
    "cache that is a file": (("--cache", "{folder}/home/thesis.txt"), "is a file: --cache .*takes a folder"),
    "results with a name too long": (("--results", "x" * 5000), "can't be made|File name too long"),
    "reports that hold a page of someone else's": (
        ("--reports", "{folder}/paper"),
        "report.md was not written by bench.report",
    ),
    "reports that hold a table of someone else's": (
        ("--reports", "{folder}/tables"),
        "results.csv was not written by bench",
    ),
    "weights that are not there": (("--set", "encoder.weights=nowhere"), "no encoder weights at nowhere"),
}


@pytest.fixture
def furnished(bench: Commands) -> Commands:
    """What some of the options above name."""
    (bench.folder / "circle").symlink_to(bench.folder / "circle")
    bench.write("paper/report.md", "# My paper")
    bench.write("tables/results.csv", "patient,outcome\n1,dead\n")
    make_images(bench.data)
    return bench


def make_images(root: Path) -> None:
    from tests.bench.small import make_folder

    make_folder(root / "inner")
    for path in (root / "inner").iterdir():
        path.rename(root / path.name)
    (root / "inner").rmdir()


@pytest.mark.parametrize(("options", "says"), RUN.values(), ids=RUN)
def test_run(furnished: Commands, options: tuple[str, ...], says: str | tuple[str, ...]) -> None:
    check(furnished.run(*options), says)


def test_what_needs_no_data_is_found_before_they_are_loaded(bench: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("the data were loaded")

    monkeypatch.setattr("bench.grid.plan.load", never)
    for options in (
        ("--encoder", "vit_smal"),
        ("--image-size", "36"),
        ("--methods", "dynamicvit", "--encoder", "convnext_d64_l6_patch8"),
        ("--set", "views.rotation=1000.0"),
        ("--set", "train.attention=xformers"),
        ("--set", "data.val=0.6", "--set", "data.test=0.6"),
    ):
        check(bench.run(*options), "")


COST: dict[str, tuple[tuple[str, ...], str]] = {
    "methods misspelt": (("--methods", "dens"), "did you mean .*dense"),
    "threads none": (("--threads", "0"), "--threads is 0: it must be at least 1"),
    "keep in words": (
        ("--keep", "half"),
        "--keep 'half' is not a comma-separated list of numbers: write e.g. --keep 0.5,0.7",
    ),
    "keep of nobody": (("--methods", "dense", "--keep", "0.5"), "--keep 0.5 applies to no method"),
    "image size in words": (
        ("--image-size", "224,big"),
        "--image-size '224,big' is not a comma-separated list of whole numbers",
    ),
    "image size too large": (("--image-size", "100000"), "image_size: .*4096"),
    "channels of two": (("--channels", "2"), "channels: .*1 or 3"),
    "rounds none": (("--rounds", "0"), "measure.rounds: .*greater than or equal to 1"),
    "batch of one": (("--batch", "1"), "measure.batch: .*greater than or equal to 2"),
    "encoder misspelt": (("--encoder", "vit_smll_patch16_224"), "did you mean vit_small_patch16_224"),
    "preset misspelt": (("--preset", "qiuck"), r"did you mean quick\?"),
    "reports of someone else": (("--reports", "{folder}/tables"), "cost.csv was not written by bench.report"),
}


@pytest.mark.parametrize(("options", "says"), COST.values(), ids=COST)
def test_cost(bench: Commands, options: tuple[str, ...], says: str) -> None:
    from bench.cost import app

    bench.write("tables/cost.csv", "month,euros\n")
    where = ["--results", str(bench.folder / "results")]
    where += [] if "--reports" in options else ["--reports", str(bench.folder / "reports")]
    check(bench.invoke(app, [*where, *(one.format(folder=bench.folder) for one in options)]), says)


TUNE = {
    "rates in words": (("--rates", "fast"), "is not a comma-separated list of numbers: write e.g. --rates"),
    "rates of nothing": (("--rates", "0,1e-3"), "learning rates must be above 0"),
    "rates without end": (("--rates", "inf"), "is not a comma-separated list of numbers"),
    "preset misspelt": (("--preset", "smokr"), r"did you mean smoke\?"),
}


@pytest.mark.parametrize(("options", "says"), TUNE.values(), ids=TUNE)
def test_tune(bench: Commands, options: tuple[str, ...], says: str) -> None:
    from bench.tune import app

    check(bench.invoke(app, ["--results", str(bench.folder / "results"), *options]), says)


@pytest.mark.parametrize(
    ("command", "options", "code", "says"),
    [
        ("run", ["--methods", "sparsecontrats", "--preset", "smoke"], 2, "did you mean"),
        ("run", ["--spec", "/dev/zero"], 2, "no spec at /dev/zero"),
        ("report", ["--results", "nowhere"], 2, "There is no record in nowhere"),
        ("cost", ["--encoder", "swin_tiny_patch4_window7_224"], 2, "swin_tiny"),
    ],
)
def test_in_a_process_of_its_own(tmp_path: Path, command: str, options: list[str], code: int, says: str) -> None:
    """What a user's shell sees: the exit code, one line of error, nothing made where the command was given."""
    here = Path(__file__).parents[2]
    where = ["--reports", str(tmp_path / "r")] + ([] if command == "report" else ["--results", str(tmp_path / "s")])
    (tmp_path / "cwd").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{command}", *where, *options],
        cwd=tmp_path / "cwd",
        env={
            **os.environ,
            "PYTHONPATH": str(here),
            "HOME": str(tmp_path),
            "MPLCONFIGDIR": str(tmp_path / "r"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("r", "s")] == ["cwd"]
    assert not list((tmp_path / "cwd").iterdir())


TEXT = st.text(max_size=40) | st.sampled_from(["dense", "1,10", "fixed[keep=0.5]", "train.epochs=3", "nan", "0", "3,"])
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(text=TEXT | st.text(alphabet="dense,[]=/*?0.5 keptfixdall", max_size=30))
def test_any_text_is_a_list_of_methods_or_a_mistake(text: str) -> None:
    try:
        methods = parse_methods(text)
    except ValueError as mistake:
        error = mistake
        assert error_line(lambda: (_ for _ in ()).throw(error))
    else:
        assert methods and [m for one in methods for m in parse_methods(one.name)] == methods


@FUZZ
@given(text=TEXT | st.text(alphabet="0123456789,.-e ", max_size=20))
def test_any_text_is_numbers_or_seeds_or_a_mistake(text: str) -> None:
    for read in (lambda: numbers("--labels", text, "1,10"), lambda: seeds("--seeds", text)):
        try:
            found = read()
        except ValueError:
            continue
        assert 0 < len(found) <= 1000 and len(set(found)) == len(found)


@FUZZ
@given(text=TEXT | st.text(alphabet="a.=[]{}\"'0#\n", max_size=30))
def test_any_text_is_a_change_or_a_mistake(text: str) -> None:
    try:
        key, _ = read_change(text)
    except ValueError:
        return
    assert key == text.partition("=")[0].strip() != ""
