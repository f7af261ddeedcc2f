"""Images with several labels each, or none: read, divided, sampled, packed and loaded."""

import numpy as np
import pytest

from imgcls.data.sampling import balanced, with_unlabelled
from imgcls.data.splits import SplitOptions, apportion, mislabel
from imgcls.errors import UserError
from imgcls.tasks import find

KIND = find("multi_label")


# ---- labels ----

ROWS = np.array([[1, 0, 1], [0, 0, 0], [-1, -1, -1], [0, 1, 0]], np.int8)


def test_labels_in_words_and_numbers():
    names = [("a", "c"), (), None, ("b",)]
    assert KIND.numbered(names, "abc").tolist() == ROWS.tolist() and KIND.numbered(names, "abc").dtype == np.int8
    assert KIND.text(ROWS, ["a", "b", "c"]) == ["a|c", "", "", "b"]
    assert [of.tolist() for of in KIND.pairs(ROWS)] == [[0, 0, 3], [0, 2, 1]]
    assert KIND.unknown(2, 3).tolist() == [[-1] * 3] * 2
    with pytest.raises(UserError, match="class 'a|b' holds |, which joins the labels"):
        KIND.class_order(["a", "a|b"])


def test_labels_in_terms_of_other_classes():
    assert KIND.renumbered(ROWS, np.array([3, 0, 1]), 4).tolist() == [[0, 1, 0, 1], [0] * 4, [-1] * 4, [1, 0, 0, 0]]
    # of the first image one class is none of them: what it shows is not known
    assert KIND.renumbered(ROWS, np.array([0, 1, -1]), 2).tolist() == [[-1, -1], [0, 0], [-1, -1], [0, 1]]


def test_another_label_turns_one_class_round():
    label = np.random.default_rng(0).integers(0, 2, (5000, 4)).astype(np.int8)
    turned = KIND.another(label, 4, np.random.default_rng(1)) != label
    assert (turned.sum(1) == 1).all() and np.abs(turned.mean(0) - 0.25).max() < 0.02


def test_each_kind_refuses_labels_of_the_other():
    for name, label in (("single_label", ROWS), ("ordered", ROWS), ("multi_label", np.zeros(4, np.int64))):
        with pytest.raises(UserError, match="--data.task"):
            find(name).check(label)
    with pytest.raises(UserError, match="--data.task: images of these data have several labels"):
        find("single_label").numbered([("a",), ("a", "b")], "ab")
    assert find("single_label").numbered([("b",), None, ("a",)], "ab").tolist() == [1, -1, 0]


# ---- splits ----


def several(kind: str, count: int, seed: int) -> np.ndarray:
    """Labels (N, 20), about 1.4 to 3 an image."""
    rng, classes = np.random.default_rng(seed), 20
    if kind == "equal":
        return rng.random((count, classes)) < 0.15
    if kind == "long tail":
        return rng.random((count, classes)) < np.geomspace(0.5, 0.002, classes)
    if kind == "correlated":
        cause, weight = rng.normal(size=(count, 4)), rng.normal(size=(4, classes))
        return cause @ weight + rng.logistic(size=(count, classes)) > np.linspace(1, 6, classes)
    share = np.geomspace(1, 0.01, classes)  # mostly one
    one = np.eye(classes, dtype=bool)[rng.choice(classes, count, p=share / share.sum())]
    return one | (rng.random((count, classes)) < 0.02)


def errors(label: np.ndarray, fold: np.ndarray) -> tuple[float, float]:
    """By how many images a fold is wrong: of a label, and in all; the largest."""
    folds = [label[fold == k] for k in range(5)]
    of_label = max(np.abs(of.sum(0) - label.sum(0) / 5).max() for of in folds)
    return of_label, max(abs(len(of) - len(label) / 5) for of in folds)


@pytest.mark.parametrize("kind", ["equal", "long tail", "correlated", "mostly one"])
@pytest.mark.parametrize("count", [300, 3000])
def test_folds_have_each_label_in_proportion(kind, count):
    found = []
    for seed in range(3):
        label = several(kind, count, seed)
        pairs = with_unlabelled(np.nonzero(label), count)
        fold = apportion(pairs, np.arange(count), np.full(5, count / 5), seed)
        found.append(errors(label, fold))
    assert np.max(found, 0)[0] <= 1.4 and np.mean(found, 0)[0] <= 1 and np.max(found, 0)[1] <= 1


@pytest.mark.parametrize("kind", ["equal", "long tail", "correlated", "mostly one"])
def test_folds_are_no_worse_than_those_of_iterative_stratification(kind):
    stratifiers = pytest.importorskip("iterstrat.ml_stratifiers")
    label = several(kind, 1000, 0)
    theirs, none = np.empty(1000, int), np.zeros(1000)
    folds = stratifiers.MultilabelStratifiedKFold(5, shuffle=True, random_state=0)
    for k, (_, index) in enumerate(folds.split(none, label.astype(int))):
        theirs[index] = k
    ours = apportion(with_unlabelled(np.nonzero(label), 1000), np.arange(1000), np.full(5, 200.0), 0)
    assert errors(label, ours)[0] <= errors(label, theirs)[0] + 0.2 and errors(label, ours)[1] <= 1


@pytest.mark.parametrize("grouped", [False, True])
def test_parts_of_images_with_several_labels(grouped):
    label = several("long tail", 2000, 0)
    group = np.random.default_rng(1).integers(0, 900, 2000) if grouped else None
    slack = 8 if grouped else 2
    tested = []
    for fold in range(4):
        options = SplitOptions(folds=4, fold=fold, fold_part="test", val_fraction=0.1)
        found = options.split(np.nonzero(label), 2000, group)
        parts = {"train": found.train, "val": found.val, "test": found.test}
        assert sorted(np.concatenate(list(parts.values()))) == list(range(2000))
        for part, share in (("val", 0.1), ("test", 0.25)):
            assert abs(len(parts[part]) - 2000 * share) <= slack
            assert np.abs(label[parts[part]].sum(0) - label.sum(0) * share).max() <= slack
        if group is not None:
            assert sum(len(set(group[of])) for of in parts.values()) == len(set(group))
        tested += found.test.tolist()
    assert sorted(tested) == list(range(2000))


def test_smaller_shares_of_training_images_lie_in_larger_ones():
    label, before = several("long tail", 2000, 0), set()
    for fraction in (0.1, 0.3, 1.0):
        found = SplitOptions(train_fraction=fraction).split(np.nonzero(label), 2000)
        assert before < set(found.train) and abs(len(found.train) - fraction * 1600) <= 4
        share = label[found.train].mean(0) / label.mean(0)
        assert np.abs(share[:10] - 1).max() < 0.35  # the commoner half
        before = set(found.train)


# ---- sampling ----


def test_balanced_sampling_adds_up_the_labels_of_an_image():
    # a is there twice, b once, and two images have none
    label = np.array([[1, 0], [1, 1], [0, 0], [0, 0]])
    assert balanced(np.nonzero(label), 4) == pytest.approx(np.array([1 / 2, 1 / 2 + 1, 1 / 2, 1 / 2]) / 3)
    one_each = np.array([0, 0, 0, 1])
    assert balanced((np.arange(4), one_each), 4) == pytest.approx(np.array([1, 1, 1, 3]) / 6)


def test_label_noise_changes_one_class_of_the_asked_share():
    label = several("long tail", 500, 0).astype(np.int8)
    half, tenth = (mislabel(label, np.arange(400), share, 20, 3, KIND) for share in (0.5, 0.1))
    assert (half != label).sum(1).tolist().count(1) == 200 and (half[400:] == label[400:]).all()
    changed = (tenth != label).any(1)
    assert changed.sum() == 40 and (half[changed] == tenth[changed]).all()
