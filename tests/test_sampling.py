import numpy as np
import pytest

from imgcls.data.sample import SampleData
from imgcls.data.sampling import EvalBatches, TrainBatches
from imgcls.data.splits import SplitOptions, mislabel, stratified_order
from imgcls.errors import UserError
from imgcls.tasks import find

LABEL = np.random.default_rng(7).choice(5, 997, p=[0.4, 0.3, 0.2, 0.07, 0.03])
CARVE = {"val_fraction": 0.1, "test_fraction": 0.2}


def one_each(label):
    """Pairs of images with one label each, and their number."""
    return (np.arange(len(label)), label), len(label)


def split(label, seed=0, **options):
    return SplitOptions(split_seed=seed, **options).split(*one_each(label))


def shares(index):
    return np.bincount(LABEL[index], minlength=5) / len(index)


def test_parts_are_disjoint_complete_and_stratified():
    s = split(LABEL, **CARVE, seed=3)
    everything = np.concatenate([s.train, s.val, s.test])
    assert sorted(everything) == list(range(len(LABEL)))
    for part in (s.train, s.val, s.test):
        expected = np.bincount(LABEL) * len(part) / len(LABEL)
        assert np.abs(np.bincount(LABEL[part], minlength=5) - expected).max() <= 1.01


def test_a_split_depends_on_its_own_seed_alone():
    np.random.seed(1)
    first = split(LABEL, **CARVE, seed=3)
    np.random.seed(2)
    assert split(LABEL, **CARVE, seed=3).fingerprint() == first.fingerprint()
    assert split(LABEL, **CARVE, seed=4).fingerprint() != first.fingerprint()


def test_training_fractions_are_nested_stratified_and_leave_other_parts_alone():
    full = split(LABEL, **CARVE)
    before: set[int] = set()
    for fraction in (0.1, 0.25, 0.5, 1.0):
        s = split(LABEL, **CARVE, train_fraction=fraction)
        assert before <= set(s.train)
        assert len(s.train) == round(len(full.train) * fraction)
        assert np.abs(shares(s.train) - shares(full.train)).max() <= 2 / len(s.train)
        assert s.fingerprint() == full.fingerprint()
        before = set(s.train)


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_partition_what_is_not_test(folds):
    parts = [split(LABEL, **CARVE, folds=folds, fold=k) for k in range(folds)]
    together = np.concatenate([p.val for p in parts])
    assert len(together) == len(set(together)) and set(together).isdisjoint(parts[0].test)
    assert len(together) + len(parts[0].test) == len(LABEL)
    for p in parts:
        assert set(p.train).isdisjoint(p.val) and set(p.test) == set(parts[0].test)
        assert np.abs(np.bincount(LABEL[p.val], minlength=5) - np.bincount(LABEL) * 0.8 / folds).max() <= 1.7


def test_two_balanced_classes_do_not_alias_with_two_folds():
    label = np.tile([0, 1], 50)
    for fold in (0, 1):
        val = split(label, val_fraction=0, test_fraction=0, folds=2, fold=fold).val
        assert np.bincount(label[val]).tolist() == [25, 25]


def test_an_empty_part_is_an_error_that_says_so():
    with pytest.raises(UserError, match="4 images are too few for a validation part"):
        split(np.arange(4), val_fraction=0.1, test_fraction=0)


def test_every_stretch_of_the_order_is_stratified():
    order = stratified_order(LABEL, 0)
    for start in (0, 200, 600):
        stretch = np.bincount(LABEL[order[start : start + 300]], minlength=5)
        assert np.abs(stretch - np.bincount(LABEL) * 300 / len(LABEL)).max() <= 2


def epoch(batches, number):
    batches.set_epoch(number)
    return list(batches)


def test_an_epoch_is_a_pure_function_of_seed_and_epoch():
    once, again = (TrainBatches(103, 8, seed=5) for _ in range(2))
    epoch(once, 0)
    assert epoch(once, 3) == epoch(again, 3)
    assert epoch(once, 3) != epoch(once, 4)
    assert epoch(TrainBatches(103, 8, seed=6), 3) != epoch(once, 3)


def test_processes_share_an_epoch_without_overlap():
    shares = [epoch(TrainBatches(103, 8, seed=5, rank=r, world_size=3), 1) for r in range(3)]
    assert [len(s) for s in shares] == [4, 4, 4]
    flat = [i for s in shares for b in s for i in b]
    assert len(flat) == len(set(flat)) == 96


def test_a_resumed_epoch_goes_on_where_it_stopped_and_the_next_is_whole():
    whole, resumed = TrainBatches(103, 8, seed=5), TrainBatches(103, 8, seed=5)
    resumed.resume_at = (2, 5)
    assert epoch(resumed, 2) == epoch(whole, 2)[5:]
    assert epoch(resumed, 3) == epoch(whole, 3)
    assert len(resumed) == len(whole)


def test_fewer_images_than_a_batch_make_one_batch():
    assert [len(b) for b in TrainBatches(5, 8, seed=0)] == [5]
    with pytest.raises(UserError, match="1 training images cannot be shared by 2 processes"):
        TrainBatches(1, 8, seed=0, world_size=2)


def test_balanced_sampling_draws_classes_evenly():
    probability = 1 / np.bincount(LABEL)[LABEL]
    batches = TrainBatches(len(LABEL), 100, seed=0, probability=probability / probability.sum())
    drawn = np.bincount(LABEL[[i for e in range(10) for b in epoch(batches, e) for i in b]], minlength=5)
    assert np.abs(drawn / drawn.sum() - 0.2).max() < 0.03


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_meets_every_image_once(world_size):
    met = [i for r in range(world_size) for b in EvalBatches(17, 4, r, world_size) for i in b]
    assert sorted(met) == list(range(17))


@pytest.mark.parametrize(
    "size, batch_size, expected", [(150, 64, 3 * [50]), (114, 20, 6 * [19]), (5400, 128, 42 * [128])]
)
def test_a_small_set_loses_no_twentieth_of_its_images(size, batch_size, expected):
    batches = TrainBatches(size, batch_size, 0)
    assert [len(b) for b in batches] == expected and len(batches) == len(expected)
    for size in range(1, 400):
        batches = TrainBatches(size, 32, 0)
        assert sum(map(len, batches)) >= 0.9 * size and max(map(len, batches)) <= 32


def test_repeats_follow_each_other_and_go_to_different_processes():
    alone = [i for batch in TrainBatches(40, 5, 0, repeats=4) for i in batch]
    assert len(alone) == 40 and len(set(alone)) == 10 and alone[0:4] == [alone[0]] * 4
    shares = [[i for batch in TrainBatches(40, 5, 0, rank, 4, repeats=4) for i in batch] for rank in range(4)]
    assert shares[0] == shares[1] == shares[2] == shares[3] and len(set(shares[0])) == 10


def test_mislabelled_images_are_the_asked_share_of_the_given_ones_and_nested():
    label, index = np.repeat(np.arange(7), 40), np.arange(0, 280, 2)
    half, tenth = (mislabel(label, index, share, 7, 3, find("single_label")) for share in (0.5, 0.1))
    wrong = np.flatnonzero(half != label)
    assert len(wrong) == 70 and set(wrong) <= set(index)
    assert (np.flatnonzero(tenth != label)).size == 14
    assert (tenth[tenth != label] == half[tenth != label]).all()
    shift = (half - label)[wrong] % 7
    assert set(shift) == {1, 2, 3, 4, 5, 6}
    assert (mislabel(label, index, 0.5, 7, 4, find("single_label")) != half).any()


def test_noise_reaches_training_labels_only():
    clean, noisy = (SampleData(label_noise=noise, train_fraction=0.1) for noise in (0.0, 0.4))
    for data in (clean, noisy):
        data.setup("test")
    different = noisy.parts["train"][0].label != clean.parts["train"][0].label
    index = noisy.parts["train"][1]
    assert different[index].mean() == pytest.approx(0.4, abs=0.002) and different.sum() == different[index].sum()
    for part in ("val", "test"):
        assert (noisy.parts[part][0].label == clean.parts[part][0].label).all()
    assert noisy.fingerprint == clean.fingerprint


@pytest.mark.parametrize("size", range(6, 40))
def test_processes_evaluate_the_same_number_of_batches(size):
    """FSDP's would wait for one another for ever."""
    for world_size, start in ((2, None), (3, None), (3, 2)):
        shares = [[*EvalBatches(size, 4, rank, world_size, start)] for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1 and all(map(all, [map(len, share) for share in shares]))
        assert sorted(i for share in shares for batch in share for i in batch) == list(range(start or 0, size))
        assert max(len(batch) for share in shares for batch in share) <= 5
