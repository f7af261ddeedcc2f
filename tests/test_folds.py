"""Cross-validation tests each image once, by a run that has not seen it; what belongs together stays together."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from imgcls.data.folder import FolderData
from imgcls.data.sample import SampleData
from imgcls.data.shards import ShardData
from imgcls.data.splits import SplitOptions
from imgcls.data.table import TableData
from imgcls.data.torchvision import TorchvisionData
from imgcls.errors import UserError
from imgcls.evaluate.cleaning import together
from imgcls.images.cache import CachedSource
from imgcls.images.decode import ResizeCrop
from imgcls.images.derived import FeatureSource, JoinedSource
from imgcls.runs.held_out import held_out
from imgcls.runs.run import find_runs
from imgcls.tasks import SINGLE_LABEL, find

from .conftest import QUIET, ROOT, write_image
from .test_audit import jpeg, picture
from .test_cli import rows
from .test_data import idx_files, ready, write_table
from .test_sampling import one_each
from .test_shards import packed

LABEL = np.random.default_rng(7).choice(5, 997, p=[0.4, 0.3, 0.2, 0.07, 0.03])
PATIENT = np.random.default_rng(8).integers(0, 150, 997)
KINDS = {"equal": PATIENT, "uneven": np.sort(PATIENT) ** 2 // 300, "few": np.where(PATIENT < 20, PATIENT, -1)}


def parts_of(found):
    return {"train": found.train, "val": found.val, "test": found.test}


# ---- without groups: the splits of earlier versions ----

EARLIER = [
    ({"val_fraction": 0.1, "test_fraction": 0.1}, "8263e731ce4b2239"),
    ({"val_fraction": 0.25, "test_fraction": 0, "split_seed": 3}, "edd3f1715c01d44b"),
    ({"val_fraction": 0, "test_fraction": 0}, "f7527984023c8fa3"),
    ({"val_fraction": 0.1, "test_fraction": 0.2, "train_fraction": 0.3, "split_seed": 1}, "6e1bfe2104978718"),
    ({"val_fraction": 0.1, "test_fraction": 0.15, "folds": 5, "fold": 2}, "b62b5c6771f637ef"),
    ({"test_fraction": 0, "folds": 3, "train_fraction": 0.5, "split_seed": 8}, "7270ec33ec676f9f"),
]


@pytest.mark.parametrize("group", [None, np.full(997, -1), np.arange(997)], ids=["none", "empty", "own"])
@pytest.mark.parametrize("options, digest", EARLIER)
def test_splits_without_groups_are_those_of_earlier_versions(options, digest, group):
    found = SplitOptions(**options).split(*one_each(LABEL), group)
    together = b"".join(part.tobytes() for part in (found.train, found.val, found.test))
    assert hashlib.blake2b(together, digest_size=8).hexdigest() == digest


# ---- the fold as the test part ----


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("folds", [2, 5, 10])
def test_over_all_folds_each_image_is_tested_once_and_never_trained_or_validated_on(folds, kind):
    group = KINDS.get(kind)
    tested = []
    for fold in range(folds):
        found = SplitOptions(folds=folds, fold=fold, fold_part="test").split(*one_each(LABEL), group)
        tested += found.test.tolist()
        assert sorted(np.concatenate([*parts_of(found).values()])) == list(range(997))  # so parts are disjoint
        slack = 1 if group is None else np.bincount(group[group >= 0]).max()
        assert abs(len(found.val) - 99.7) <= slack and abs(len(found.test) - 997 / folds) <= slack
        for part in parts_of(found).values():
            wrong = np.bincount(LABEL[part], minlength=5) - np.bincount(LABEL) * len(part) / 997
            assert np.abs(wrong).max() <= 1.7 * slack
    assert sorted(tested) == list(range(997))


def test_the_other_folds_take_turns_in_validation():
    met = [
        SplitOptions(folds=5, fold=k, fold_part="test", val_fraction=0.2).split(*one_each(LABEL[:995]))
        for k in range(5)
    ]
    assert sorted(np.concatenate([found.val for found in met])) == list(range(995))
    assert len({found.fingerprint()["test"] for found in met}) == 5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fold_part": "test"}, "--data.fold_part: test is not for a single split; give --data.folds"),
        ({"fold_part": "test", "folds": 2, "val_fraction": 0.5}, "--data.val_fraction: 0.5 is not below 0.5"),
        ({"folds": 1}, "--data.folds: 1 is not at least 2"),
    ],
)
def test_options_that_leave_nothing_to_do_are_named(options, message):
    with pytest.raises(UserError, match=message):
        SampleData(**options)


# ---- groups ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"train_fraction": 0.4}, {"folds": 4, "fold": 1}, {"folds": 4, "fold": 1, "fold_part": "test"}],
    ids=str,
)
def test_no_group_is_in_two_parts(kind, options):
    group = KINDS[kind]
    found = SplitOptions(**options).split(*one_each(LABEL), group)
    of = {part: set(group[index]) - {-1} for part, index in parts_of(found).items()}
    assert all(of.values()) and sum(map(len, of.values())) == len(set.union(*of.values()))
    whole = np.isin(group, [*set.union(*of.values())])
    assert np.isin(np.flatnonzero(whole), np.concatenate([*parts_of(found).values()])).all()  # nor cut by its end


def test_shares_of_training_images_are_nested_with_groups_too():
    before, full = set(), SplitOptions().split(*one_each(LABEL), PATIENT)
    for fraction in (0.01, 0.1, 0.5, 1.0):
        found = SplitOptions(train_fraction=fraction).split(*one_each(LABEL), PATIENT)
        assert before < set(found.train) and found.fingerprint() == full.fingerprint()
        assert abs(len(found.train) - fraction * len(full.train)) <= np.bincount(PATIENT).max()
        before = set(found.train)


def test_the_seed_of_the_split_moves_groups_and_val_fraction_does_not_move_the_test_part():
    first, other = (SplitOptions(split_seed=k).split(*one_each(LABEL), KINDS["uneven"]) for k in (0, 1))
    assert len(np.intersect1d(first.test, other.test)) < 0.6 * len(first.test)
    more = SplitOptions(val_fraction=0.3).split(*one_each(LABEL), KINDS["uneven"])
    assert more.fingerprint()["test"] == first.fingerprint()["test"]


def test_of_a_few_groups_of_any_size_every_fold_has_one():
    group = np.repeat(np.arange(6), [600, 200, 90, 50, 40, 17])
    tested = [SplitOptions(folds=3, fold=k, fold_part="test").split(*one_each(LABEL), group).test for k in range(3)]
    assert sorted(np.concatenate(tested)) == list(range(997)) and len(tested[0]) < 997 - 200
    with pytest.raises(UserError, match="997 images in 6 groups are too few for a test part"):
        [SplitOptions(folds=7, fold=k, fold_part="test").split(*one_each(LABEL), group) for k in range(7)]
    for fold in (0, 1):
        with pytest.raises(UserError, match="997 images in 1 groups are too few for a (training|test) part"):
            SplitOptions(folds=2, fold=fold, fold_part="test", val_fraction=0).split(
                *one_each(LABEL), np.zeros(997, np.int64)
            )


def test_wrappers_keep_groups():
    data = ready(SampleData())
    first, second = (data.open("train") for _ in range(2))
    first.group = np.arange(6000)
    joined = JoinedSource(first.relabelled(first.label), second)
    assert joined.group.tolist() == [*range(6000), *[-1] * 6000]
    assert JoinedSource(second, second).group is None
    cached = CachedSource(first, np.arange(3), ResizeCrop(1, 28, 28), None)
    assert cached.group is FeatureSource(first, np.arange(3), torch.zeros(3, 1, 2)).group is first.group


# ---- data modules ----


@pytest.fixture
def clinic(tmp_path):
    """Sixty images of ten patients, the last four of none; parts that a column gives, by patient."""
    lines = []
    for k in range(60):
        write_image(tmp_path / f"{k}.png", k % 3, (20, 16), seed=k)
        patient = "" if k > 55 else f"P{k % 10}"
        part = "val" if k % 10 > 7 else "train"
        lines.append({"path": f"{k}.png", "label": "abc"[k % 3], "patient": patient, "part": part})
    return lines


def sources(tmp_path, clinic, photos):
    idx_files(tmp_path / "idx")
    table = str(write_table(tmp_path / "t.csv", clinic))
    grouped = {"table": table, "group_column": "patient", "num_workers": 0}
    return {
        "memory": lambda **o: SampleData(**o),
        "torchvision": lambda **o: TorchvisionData(name="FashionMNIST", root=str(tmp_path / "idx"), **o),
        "folder": lambda **o: FolderData(root=str(photos), num_workers=0, **o),
        "table": lambda **o: TableData(**grouped, **o),
        "official val": lambda **o: TableData(**grouped, split_column="part", **o),
    }


@pytest.mark.parametrize("kind", ["memory", "torchvision", "folder", "table", "official val"])
def test_every_kind_of_data_is_tested_in_folds(tmp_path, clinic, photos, messages, kind):
    make, met, prints = sources(tmp_path, clinic, photos)[kind], [], []
    for fold in range(3):
        data = ready(make(folds=3, fold=fold, fold_part="test"))
        assert data.parts.keys() == {"train", "val"}  # fit cannot reach the fold
        seen = {data.parts[part][0].names[i] for part in ("train", "val") for i in data.parts[part][1].tolist()}
        data.setup("test")
        source, index = data.parts["test"]
        assert seen.isdisjoint(names := [source.names[i] for i in index.tolist()])
        met += names
        prints.append(data.fingerprint)
        assert len(source) == len(seen) + len(index) == sum(map(len, (data.parts[p][1] for p in data.parts)))
    assert sorted(met) == sorted(source.names) and len(set(met)) == len(met)
    assert len({json.dumps(of) for of in prints}) == 3 and len({of["data"] for of in prints}) == 1
    said = "fold 0 of 3 is the test part; the official test part is not used"
    assert (said in messages.text) == (kind in ("memory", "torchvision"))
    with pytest.raises(UserError, match="val and test differ from those that the checkpoint was"):
        ready(make(folds=3, fold=0, fold_part="test")).load_state_dict(data.state_dict())


@pytest.mark.parametrize("parquet", [False, True])
def test_a_patient_of_a_table_stays_in_one_part(tmp_path, clinic, parquet):
    table = write_table(tmp_path / "t.csv", clinic)
    if parquet:
        import pyarrow.parquet

        columns = {k: [None if k == "patient" and not row[k] else row[k] for row in clinic] for k in clinic[0]}
        table = tmp_path / "t.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), table)
    data = ready(TableData(table=str(table), group_column="patient", val_fraction=0.2, test_fraction=0.2), "test")
    patients = [{data.parts[p][0].columns["patient"][i] for i in data.parts[p][1]} - {""} for p in data.parts]
    assert sum(map(len, patients)) == 10 and all(patients)
    with pytest.raises(UserError, match="no column 'patent' .did you mean 'patient'.*--data.group_column names"):
        TableData(table=str(table), group_column="patent")


def test_groups_that_the_tables_own_parts_divide_are_told_once(tmp_path, clinic, messages):
    for k, row in enumerate(clinic):
        row["split"] = "test" if k >= 50 else "val" if k >= 40 else "train"
    options = {"table": str(write_table(tmp_path / "t.csv", clinic)), "group_column": "patient"}
    data = TableData(**options)
    data.prepare_data(), data.prepare_data()
    (message,) = {record.message for record in messages.records}
    assert "10 of 10 groups have images in several parts, such as P0 in test, train, val: " in message
    messages.clear()
    TableData(**options, folds=3).prepare_data()
    assert "6 of 10 groups have images in several parts, such as P0 in test, train: " in messages.text
    messages.clear()
    for quiet in ({"folds": 3, "fold_part": "test"}, {"split_column": "part"}, {"split_column": "none"}):
        TableData(**options, **quiet).prepare_data()
    TableData(table=options["table"]).prepare_data()
    assert not messages.text
    assert len(ready(TableData(**options, split_column="none", test_fraction=0)).open("train")) == 60


def test_a_pack_keeps_groups(tmp_path, clinic):
    make = lambda: TableData(  # noqa: E731
        table=str(write_table(tmp_path / "t.csv", clinic)), group_column="patient", num_workers=0
    )
    pack = ShardData(root=packed(make()), folds=3, fold=1, fold_part="test")
    ready(pack, "test")
    for part in ("train", "val", "test"):
        source, index = pack.parts[part]
        of = {source.names[i]: int(source.group[i]) for i in index.tolist()}
        assert all((of[name] < 0) == (clinic[int(name[:-4])]["patient"] == "") for name in of)
    patients = [{source.columns["patient"][i] for i in index} - {""} for source, index in pack.parts.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) > 6


# ---- audit ----


def test_what_belongs_together_after_cleaning():
    near, given = np.array([0, 1, 0, 3, 4, 5, 5]), np.array([-1, 7, 7, -1, -1, 8, -1])
    kept = np.array([True] * 6 + [False])
    assert together(near, given, kept).tolist() == [1, 1, 1, -1, -1, -1, -1]
    assert together(near, np.full(7, -1), kept).tolist() == [1, -1, 1, -1, -1, -1, -1]


def test_near_duplicates_that_an_audit_finds_are_never_in_two_folds(imgcls, tmp_path):
    root = tmp_path / "photos"
    for k in range(40):
        (root / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        picture(k).save(root / "ab"[k % 2] / f"{k}.png")
        if k % 3 == 0:
            jpeg(picture(k)).save(root / "ab"[k % 2] / f"{k} again.png")
    words = ["--config", ROOT / "configs/data/folder.yaml", f"--data.root={root}", "--data.num_workers=0"]
    code, out, err = imgcls("audit", *words, "--data.val_fraction=0", "--data.test_fraction=0")
    assert code == 0, err
    table = rows(Path("audit/clean.csv"))
    twins = {row["path"]: row["group"] for row in table}
    assert len(twins) == 54 and sum(group != "" for group in twins.values()) == 28
    options = "--data.group_column=group --data.folds=5 --data.fold=0 --data.fold_part=test --data.split_column=none"
    assert f"in folds, 28 images that look alike or are of one group kept together:\n  {options}\n" in out
    assert options in Path("audit/audit.html").read_text()
    given = {"table": "audit/clean.csv", "root": str(root), "group_column": "group", "split_column": "none"}
    divided = 0
    for fold in range(5):
        data = ready(TableData(**given, folds=5, fold=fold, fold_part="test", num_workers=0, image_size=8), "test")
        where = {data.parts[p][0].names[i]: p for p in data.parts for i in data.parts[p][1].tolist()}
        assert len(where) == 54
        pairs = [(name, name.replace(" again", "")) for name in where if "again" in name]
        assert len(pairs) == 14 and all(where[one] == where[other] for one, other in pairs)
        alone = ready(FolderData(root=str(root), folds=5, fold=fold, fold_part="test", num_workers=0), "test")
        apart = {alone.parts[p][0].names[i]: p for p in alone.parts for i in alone.parts[p][1].tolist()}
        divided += sum(apart[one] != apart[other] for one, other in pairs)
    assert divided > 14  # without groups most are
    # once more, of the table: groups of before and of now are one
    code, _, err = imgcls("audit", "--config", ROOT / "configs/data/table.yaml", "--out", "again",
                          *(f"--data.{k}={v}" for k, v in given.items()), "--data.test_fraction=0")  # fmt: skip
    assert code == 0, err
    found = {row["path"]: (row["group"] != "", row["near_group"] != "") for row in rows(Path("again/clean.csv"))}
    assert {path: both for path, both in found.items() if both[0] != both[1]} == {} and len(found) > 45


# ---- runs ----


@pytest.mark.slow
def test_runs_of_all_folds_together_have_each_image_tested_once(imgcls, clinic, tmp_path):
    table = write_table(tmp_path / "t.csv", clinic)
    words = ["--config", ROOT / "configs/data/table.yaml", "--config", ROOT / "configs/model/cnn.yaml", *QUIET]
    words += [f"--data.table={table}", "--data.group_column=patient", "--data.image_size=8", "--data.batch_size=8"]
    words += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--model.backbone.depth=1", "--data.folds=2"]
    words += ["--model.backbone.width=4", "--data.fold_part=test", "--data.num_workers=0", "--test_after_fit=true"]
    for fold in range(2):
        code, _, err = imgcls("fit", *words, f"--data.fold={fold}", "--run_dir", f"runs/{fold}")
        assert code == 0, err
    tables = [rows(Path(f"runs/{fold}/predictions/test.csv")) for fold in range(2)]
    met = {row["path"]: int(row["index"]) for table in tables for row in table}
    assert met == {f"{k}.png": k for k in range(60)} and sum(map(len, tables)) == 60
    code, _, err = imgcls("test", "--run", "runs/0", "--data.fold=1", *QUIET)
    assert code == 2 and "val and test differ from those that the checkpoint was trained on" in err
    code, _, err = imgcls("fit", "--resume", "runs/0", "--data.fold=1", "--trainer.max_epochs=2", *QUIET)
    assert code == 2 and "differ from those that the checkpoint was trained on" in err
    before = Path("runs/0/predictions/test.csv").read_bytes()
    assert imgcls("test", "--run", "runs/0", "--calibrate=true", *QUIET)[0] == 0
    assert Path("runs/0/predictions/test.csv").read_bytes() == before
    code, _, err = imgcls("predict", "--run", "runs/0", "--out", "predicted.csv", *QUIET)
    assert code == 0, err
    assert [row["path"] for row in rows(Path("predicted.csv"))] == [row["path"] for row in tables[0]]
    code, out, err = imgcls("compare", "runs", "--over", "data.fold", "--json", "found.json")
    assert code == 0, err
    (group,) = json.loads(Path("found.json").read_text())["groups"]
    assert len(group["scores"]) == 2
    names = [row["path"] for row in clinic]
    probability = held_out(find_runs(["runs"], "--run"), [], names, ["a", "b", "c"], find(SINGLE_LABEL))
    assert probability.shape == (60, 3) and not np.isnan(probability).any()
    code, _, err = imgcls("audit", "--run", "runs")
    assert code == 0, err
    assert json.loads(Path("audit/audit.json").read_text())["predicted"] == 60
