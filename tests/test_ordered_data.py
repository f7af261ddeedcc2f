"""Classes with an order, such as grades: where it comes from, and that none is made up."""

import json
import shutil
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from imgcls.data.files import FilesData
from imgcls.data.folder import FolderData
from imgcls.data.sample import SampleData
from imgcls.data.shards import ShardData
from imgcls.data.table import TableData
from imgcls.errors import UserError
from imgcls.runs.predictions import read_predictions
from imgcls.tasks import find

from .conftest import QUIET, ROOT, write_image
from .test_data import ready, write_table
from .test_shards import packed

GRADES = ["none", "mild", "moderate", "severe"]


def folder(*names: str) -> str:
    for k, name in enumerate(names):
        for number in range(10):
            write_image(Path("photos") / name / f"{number}.png", k, seed=number)
    return "photos"


@pytest.mark.parametrize(
    "names, order",
    [
        (["10", "2", "0"], ["0", "2", "10"]),
        (["grade_2", "grade_10", "grade-1"], ["grade-1", "grade_2", "grade_10"]),
        (["20 to 29", "3 to 9", "100"], ["3 to 9", "20 to 29", "100"]),
        (["1.5 mm", "1.25 mm", "-1 mm"], ["-1 mm", "1.25 mm", "1.5 mm"]),
    ],
)
def test_numbers_in_names_are_an_order(names, order):
    assert find("ordered").class_order(names) == order


@pytest.mark.parametrize("names", [sorted(GRADES), ["0", "low", "2"], ["1a", "1b"], ["T1 N2", "T2 N1"], ["1", "1.0"]])
def test_an_order_is_asked_for_where_numbers_leave_it_open(names):
    with pytest.raises(UserError) as error:
        find("ordered").class_order(names)
    assert ", ".join(names) in str(error.value) and "--data.ordered=[lowest,…,highest]" in str(error.value)


@pytest.mark.parametrize(
    "order, told",
    [
        (["none", "mild", "severe"], "it lacks moderate; name"),
        ([*GRADES, "fatal"], "it has what is no class of the data, fatal; name"),
        (["none", "mild", "mild", "severe"], "it lacks moderate and it has twice mild; name"),
    ],
)
def test_an_order_of_other_classes_is_an_error_that_names_the_difference(order, told):
    with pytest.raises(UserError, match=told):
        find("ordered").class_order(sorted(GRADES), order)


def test_folders_are_numbered_in_the_order_that_is_given():
    root = folder(*sorted(GRADES))
    with pytest.raises(UserError, match="mild, moderate, none, severe, do not tell"):
        FolderData(root=root, ordered=True)
    data = ready(FolderData(root=root, ordered=GRADES, num_workers=0))
    assert data.task == "ordered" and data.class_names == GRADES
    source, _ = data.parts["train"]
    assert all(name.split("/")[0] == GRADES[k] for name, k in zip(source.names, source.label, strict=True))
    assert FolderData(root=root).class_names == sorted(GRADES)


@pytest.mark.parametrize(
    "options", [{"ordered": True}, {"ordered": ["grade 0", "grade 2", "grade 10"]}, {"task": "ordered"}]
)
def test_tables_are_numbered_by_the_numbers_in_names(options, photos, messages):
    rows = [{"path": f"{of}/{k:02d}.png", "label": grade} for k in range(20) for of, grade in
            (("red fox", "grade 10"), ("blue bird", "grade 2"), ("grüner Frosch", "grade 0"))]  # fmt: skip
    data = ready(TableData(table=str(write_table(Path("t.csv"), rows)), root=str(photos), num_workers=0, **options))
    assert (data.task, data.class_names) == ("ordered", ["grade 0", "grade 2", "grade 10"])
    assert data.parts["train"][0].label[:3].tolist() == [2, 1, 0]
    assert ("classes, from the lowest: grade 0 < grade 2 < grade 10" in messages.text) == ("ordered" in options)


def test_data_that_number_their_classes_keep_their_order(messages):
    names = SampleData.class_names
    assert ready(SampleData(ordered=True)).class_names == names
    assert "classes, from the lowest: T-shirt/top < Trouser < " in messages.text
    assert ready(SampleData(ordered=names)).task == "ordered"
    with pytest.raises(UserError, match="number their classes themselves, T-shirt/top < Trouser <"):
        ready(SampleData(ordered=names[::-1]))


def test_an_order_of_numbers_may_be_given_as_numbers(photos):
    rows = [{"path": f"{of}/{k:02d}.png", "label": number} for k in range(20) for of, number in
            (("red fox", 0), ("blue bird", 1), ("grüner Frosch", 2))]  # fmt: skip
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TableData, "data")
    words = ["--data=TableData", f"--data.table={write_table(Path('t.csv'), rows)}", f"--data.root={photos}"]
    data = parser.instantiate(parser.parse_args([*words, "--data.ordered=[2,1,0]"])).data
    assert data.class_names == ["2", "1", "0"] and data.open("train").label[:3].tolist() == [2, 1, 0]


def test_an_order_is_for_ordered_classes_alone():
    for task in ("single_label", "multi_label"):
        with pytest.raises(UserError, match=f"--data.ordered: is for --data.task=ordered, not for {task}"):
            SampleData(task=task, ordered=True)
    with pytest.raises(UserError, match="--data.task orderd: there is no module imgcls.tasks.orderd"):
        SampleData(task="orderd")


def test_a_pack_keeps_the_order():
    root = packed(FolderData(root=folder(*sorted(GRADES)), ordered=GRADES, num_workers=0))
    assert (
        json.loads(Path(root, "pack.json").read_text())["task"] == "ordered" and not Path(root, "train.label").exists()
    )
    pack = ready(ShardData(root=root, num_workers=0))
    assert (pack.task, pack.class_names) == ("ordered", GRADES)
    source, index = pack.parts["train"]
    assert all(source.names[k].split("/")[0] == GRADES[source.label[k]] for k in index.tolist())


def test_images_without_labels_are_of_the_kind_of_a_run(photos):
    data = FilesData(["a", "b"], task="ordered", root=str(photos))
    assert data.task == "ordered" and set(data.open("test").label.tolist()) == {-1}


def test_other_images_of_a_run_may_have_fewer_grades(imgcls):
    """They are tested in the order of the run, whatever order they would have themselves."""
    words = ["--config", ROOT / "configs/data/folder.yaml", "--config", ROOT / "configs/model/cnn.yaml", *QUIET]
    words += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--model.backbone.depth=1", "--data.image_size=8"]
    words += ["--model.backbone.width=4", "--data.num_workers=0", "--data.batch_size=8", "--run_dir=run"]
    code, _, err = imgcls(
        "fit", *words, f"--data.root={folder(*sorted(GRADES))}", f"--data.ordered=[{','.join(GRADES)}]"
    )
    assert code == 0, err
    for name in ("severe", "none"):
        shutil.copytree(Path("photos", name), Path("other", name))
    code, _, err = imgcls("test", "--run=run", "--data.root=other", *QUIET)
    assert code == 0, err
    found = json.loads(Path("run/evaluations/other/environment.json").read_text())
    assert found["config"]["init_args"]["task"] == "ordered"
    assert read_predictions(Path("run/evaluations/other/predictions/test.npz")).label.tolist() == [0] * 10 + [3] * 10
