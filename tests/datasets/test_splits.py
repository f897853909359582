"""Splits and fractions of made-up and real data: no patient twice, nested, every finding represented."""

import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
from datasets.dataset import Dataset
from datasets.splits import draws, fraction, index_hash, make_splits, usage_notes

PREVALENCE = (0.3, 0.1, 0.03)


def made_up(patients: int = 600, seed: int = 0, **changes) -> Dataset:
    """Make a data set with 1 to 4 images per patient, findings that vary by image, and missing labels."""
    rng = np.random.default_rng(seed)
    of = rng.permutation(np.repeat(np.arange(patients), rng.integers(1, 5, patients)))
    n = len(of)
    frailty = rng.random(patients)[of]
    labels = np.stack([(rng.random(n) < 2 * p * frailty) for p in PREVALENCE], axis=1).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    labels[np.isin(of, rng.permutation(patients)[: patients // 10])] = np.nan
    labels[rng.random(n) < 0.1] = np.nan
    values = dict(
        name="made-up",
        images=np.zeros((n, 2, 2), dtype=np.uint8),
        labels=labels,
        label_names=("A", "B", "C"),
        patients=np.array([f"p{i}" for i in of]),
        fingerprint=f"{seed:064x}",
    )
    return Dataset(**{**values, **changes})


def test_every_count_in_a_note_is_of_what_is_used():
    """Unlabelled images of validation and test patients are in no part, so they are not counted as pre-training."""
    data = made_up(patients=200)
    unsure = np.random.default_rng(1).integers(0, 3, len(data))
    data = data.replace(counted={"Uncertain labels": unsure})
    splits = make_splits(data)
    held_out = set(data.patients[np.concatenate([splits.val, splits.test])].tolist())
    bare = [i for i in range(len(data)) if np.isnan(data.labels[i]).all()]
    unused = [i for i in bare if data.patients[i] in held_out]
    assert 0 < len(unused) < len(bare)
    train, val, test = (sum(unsure[i] for i in part) for part in (splits.train, splits.val, splits.test))
    assert train + val + test < unsure.sum()
    assert usage_notes(data, splits) == (
        f"{len(bare) - len(unused)} images without any label are used in pre-training only.",
        f"{len(unused)} images without any label, of validation or test patients, are not used at all.",
        f"Uncertain labels: {train} in pre-training, {val} in the validation and {test} in the test split.",
    )


def test_a_data_set_that_is_all_used_needs_no_note():
    data = made_up(patients=60)
    data = data.replace(labels=np.nan_to_num(data.labels))
    assert usage_notes(data, make_splits(data)) == ()


def test_draws_are_the_fractions_of_their_numbers():
    data = made_up(patients=200)
    splits = make_splits(data)
    found = draws(data, splits, 10, 3)
    assert [one.tolist() for one in found] == [fraction(data, splits, 10, draw).tolist() for draw in range(3)]
    assert [one.tolist() for one in draws(data, splits, 100, 3)] == [fraction(data, splits, 100, 0).tolist()]


def check(data: Dataset, draws: int = 3) -> None:
    """Check what must hold on every data set, from the definition and without the code under test."""
    splits = make_splits(data)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    people = {name: set(data.patients[part].tolist()) for name, part in parts.items()}
    has_label = [not all(np.isnan(row)) for row in np.asarray(data.labels)]
    for name, part in parts.items():
        assert len(part) and part.tolist() == sorted(set(part.tolist()))
        for other in parts:
            assert name == other or not people[name] & people[other]
        if name != "train":
            assert all(has_label[i] for i in part)
    left_out = set(range(len(data))) - set(np.concatenate(list(parts.values())).tolist())
    assert not any(has_label[i] for i in left_out)
    assert all(data.patients[i] in people["val"] | people["test"] or data.official_split is not None for i in left_out)
    training = {i for i in splits.train.tolist() if has_label[i]}
    n = len({data.patients[i] for i in training})
    orders = []
    for draw in range(draws):
        nested = [set(fraction(data, splits, percent, draw).tolist()) for percent in (1, 10, 100)]
        assert nested[0] < nested[1] < nested[2] == training
        for percent, chosen in zip((1, 10), nested, strict=False):
            who = {data.patients[i] for i in chosen}
            assert len(who) == max(1, round(percent / 100 * n))
            assert chosen == {i for i in training if data.patients[i] in who}  # whole patients
        orders.append(frozenset(nested[1]))
    assert len(set(orders)) == draws  # all draws differ


def test_made_up_data():
    check(made_up())


def test_splits_have_the_sizes_and_the_prevalence_asked_for():
    data = made_up(1000)
    splits = make_splits(data, val=0.15, test=0.25)
    labelled = set(data.patients[data.labelled].tolist())
    for part, share in ((splits.val, 0.15), (splits.test, 0.25)):
        assert len(set(data.patients[part].tolist())) == round(share * len(labelled))
        for label in range(3):
            positive = len(set(data.patients[data.labels[:, label] == 1].tolist()))
            here = len(set(data.patients[part[data.labels[part, label] == 1]].tolist()))
            assert abs(here - share * positive) <= 2.5


def test_patients_without_any_label_are_for_pretraining():
    data = made_up()
    unlabelled = set(data.patients.tolist()) - set(data.patients[data.labelled].tolist())
    assert unlabelled and unlabelled <= set(data.patients[make_splits(data).train].tolist())


def test_the_split_depends_on_its_seed_alone():
    data = made_up()
    one, again, other = make_splits(data, 1), make_splits(data, 1), make_splits(data, 2)
    assert one.hash == again.hash and np.array_equal(one.train, again.train)
    assert other.hash != one.hash and not np.array_equal(one.test, other.test)


def test_the_order_of_rows_does_not_matter():
    """Results are positions: after shuffling the rows they denote the same patients."""
    data = made_up()
    shuffle = np.random.default_rng(3).permutation(len(data))
    other = data.replace(labels=data.labels[shuffle], patients=data.patients[shuffle])
    splits, shuffled = make_splits(data), make_splits(other)
    for part in ("train", "val", "test"):
        assert set(data.patients[getattr(splits, part)]) == set(other.patients[getattr(shuffled, part)])
    small, small_shuffled = fraction(data, splits, 5, 1), fraction(other, shuffled, 5, 1)
    assert sorted(shuffle[small_shuffled].tolist()) == small.tolist()


def test_the_official_split_is_kept():
    data = made_up()
    official = np.array([("train", "val", "test")[int(p[1:]) % 3] for p in data.patients])
    splits = make_splits(data.replace(official_split=official))
    assert splits.train.tolist() == np.flatnonzero(official == "train").tolist()
    assert splits.test.tolist() == np.flatnonzero((official == "test") & data.labelled).tolist()
    check(data.replace(official_split=official))


@pytest.mark.parametrize("missing", ["val", "test"])
def test_a_part_that_the_official_split_lacks_is_carved_from_train(missing):
    data = made_up()
    given = "test" if missing == "val" else "val"
    official = np.array([given if int(p[1:]) % 4 == 0 else "train" for p in data.patients])
    data = data.replace(official_split=official)
    splits = make_splits(data)
    assert getattr(splits, given).tolist() == np.flatnonzero((official == given) & data.labelled).tolist()
    carved = getattr(splits, missing)
    assert set(official[carved]) == {"train"}
    free = set(data.patients[data.labelled & (official == "train")].tolist())
    share = {"val": 0.15, "test": 0.25}[missing]
    assert len(set(data.patients[carved].tolist())) == round(share * len(free))
    check(data)


def test_a_patient_in_two_official_splits_is_refused():
    data = made_up()
    official = np.full(len(data), "train")
    twice = data.patients[0]
    where = np.flatnonzero(data.patients == twice)
    assert len(where) > 1
    official[where[0]] = "test"
    with pytest.raises(ValueError, match=f"'{twice}'.*test and train"):
        make_splits(data.replace(official_split=official))


def test_too_little_data_is_refused():
    two = made_up().replace(official_split=None)
    keep = np.isin(two.patients, np.unique(two.patients[two.labelled])[:2])
    few = two.replace(images=two.images[keep], labels=two.labels[keep], patients=two.patients[keep])
    with pytest.raises(ValueError, match="2 labelled training patients"):
        make_splits(few)
    with pytest.raises(ValueError, match="Shares"):
        make_splits(two, val=0.5, test=0.5)
    for percent, draw in ((0, 0), (101, 0), (1, -1)):
        with pytest.raises(ValueError, match="not possible"):
            fraction(two, make_splits(two), percent, draw)


def test_every_prefix_is_stratified():
    """After the few patients that cover all classes, every prefix has about its share of each finding."""
    data = made_up(2000)
    splits = make_splits(data)
    rows = splits.train[data.labelled[splits.train]]
    people = np.unique(data.patients[rows])
    share = [len(set(data.patients[rows[data.labels[rows, k] == 1]])) / len(people) for k in range(3)]
    worst_random = 0.0
    for percent in (1, 2, 3, 5, 10, 20, 40, 70, 95):
        chosen = fraction(data, splits, percent, draw=2)
        count = len(set(data.patients[chosen]))
        for k in range(3):
            positive = len(set(data.patients[chosen[data.labels[chosen, k] == 1]]))
            assert abs(positive - share[k] * count) <= 2, (percent, k)
            worst_random = max(worst_random, 2 * np.sqrt(count * share[k] * (1 - share[k])))
    assert worst_random > 10  # a random order would deviate more


@pytest.mark.parametrize("draw", range(5))
def test_the_smallest_fraction_has_both_classes_of_every_finding(draw):
    data = made_up(1000)
    chosen = fraction(data, make_splits(data), 1, draw)
    assert len(set(data.patients[chosen])) <= 6
    for k in range(3):
        assert {0.0, 1.0} <= set(data.labels[chosen, k].tolist()), "C is found in 3 % of the images only"


def test_even_one_patient_is_a_fraction_and_none_is_no_fraction():
    data = made_up(40)
    splits = make_splits(data)
    count = len(set(data.patients[splits.train[data.labelled[splits.train]]]))
    chosen = fraction(data, splits, 60 / count, 0)
    assert len(set(data.patients[chosen])) == 1
    with pytest.raises(ValueError, match=f"% of {count} labelled training patients is less than half a patient"):
        fraction(data, splits, 40 / count, 0)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    percents=st.lists(st.floats(3, 100), min_size=2, max_size=4),
    draw=st.integers(0, 9),
)
def test_fractions_are_nested(seed, percents, draw):
    data = made_up(60, seed)
    splits = make_splits(data, seed=seed)
    chosen = [set(fraction(data, splits, percent, draw).tolist()) for percent in sorted(percents)]
    for smaller, larger in zip(chosen, chosen[1:], strict=False):
        assert smaller <= larger


def test_the_hash_is_of_the_set_and_the_data():
    data = made_up()
    assert index_hash(data, np.array([3, 1, 2])) == index_hash(data, np.array([1, 2, 3]))
    others = [
        index_hash(data, np.array([1, 2])),
        index_hash(data.replace(fingerprint="f" * 64), np.array([1, 2, 3])),
        index_hash(data.replace(patients=np.char.add(data.patients, "x")), np.array([1, 2, 3])),
    ]
    assert len({index_hash(data, np.array([1, 2, 3])), *others}) == 4
    text = f"{data.fingerprint}\n0\t{data.patients[0]}\n7\t{data.patients[7]}"
    assert index_hash(data, np.array([7, 0])) == hashlib.sha256(text.encode()).hexdigest()


def real(name: str, folder: str, tmp_path_factory) -> Dataset:
    root = os.environ.get("BENCH_DATA")
    if not root:
        pytest.skip("BENCH_DATA is not set: it names the folder with the real chest X-rays")
    if not (Path(root) / folder).is_dir():
        pytest.skip(f"the folder {folder} is not in BENCH_DATA")
    return datasets.load(name, 16, Path(root) / folder, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(("name", "folder"), [("folder", "nih"), ("folder", "kermany"), ("pneumoniamnist", "medmnist")])
def test_real_data(name, folder, tmp_path_factory):
    data = real(name, folder, tmp_path_factory)
    check(data, draws=5)
    splits = make_splits(data)
    for draw in range(5):
        chosen = fraction(data, splits, 1, draw)
        for k, finding in enumerate(data.label_names):
            assert {0.0, 1.0} <= set(data.labels[chosen, k].tolist()), (finding, draw)


def test_the_phantom():
    if importlib.util.find_spec("datasets.phantom") is None:
        pytest.skip("this copy has no phantom")
    data = datasets.load("phantom", 16, patients=150, images_per_patient=2, seed=1)
    check(data)
