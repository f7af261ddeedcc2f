"""What each kind of labels promises: those of the package, and one that is a single module beside it."""

import csv
import json
import shlex
from pathlib import Path
from pkgutil import iter_modules
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from imgcls import load, tasks
from imgcls.classifier import Classifier
from imgcls.errors import UserError
from imgcls.evaluate.multilabel import best_cuts
from imgcls.losses import Loss
from imgcls.runs.predictions import read_predictions
from imgcls.runs.watch import Watched
from imgcls.tasks import Task, agree, find, known

from .conftest import QUIET, ROOT, write_image
from .test_cli import rows, same, weights
from .test_processes import DDP, start

OWN = "kinds_of_ours.OneOrNone"
MODULE = '''"""Images of one class, or of none: class `nothing`, number 0, which another must outdo by a lead."""

import numpy as np
import torch
from imgcls.evaluate.accuracy import accuracy
from imgcls.evaluate.scores import Scores
from imgcls.tasks.single_label import SingleLabel
from torchmetrics import MeanMetric, Metric

NOTHING = "nothing"


class Right(Metric):
    """Share of images that are predicted right with a lead, the best of an epoch where none is given."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("label", [], dist_reduce_fx="cat")
        self.lead = None

    def update(self, preds, target):
        self.logits.append(preds)
        self.label.append(target)

    def right(self, lead):
        logits, label = torch.cat(list(self.logits)), torch.cat(list(self.label))
        return ((logits - lead).argmax(1) == label).float().mean()

    def compute(self):
        if self.given is None:
            classes = torch.cat(list(self.logits)).shape[1]
            leads = [torch.tensor([0.0] + [lead] * (classes - 1)) for lead in np.linspace(-2, 2, 17).tolist()]
            self.lead = max(leads, key=self.right)
        return self.right(self.lead if self.given is None else self.given)


class LeadScores(Scores):
    """Those of one label, but for accuracy, which is that of the decisions."""

    def metrics(self, num_classes):
        self.of_leads = Right()
        return super().metrics(num_classes) | {"acc": self.of_leads}

    def collect(self, cut=None):
        self.of_leads.given = cut
        return super().collect(cut)

    def best_cut(self):
        return self.of_leads.lead


class OneOrNone(SingleLabel):
    """Each image is of one class, or of class 0, which is none of the others and is decided on in doubt."""

    def class_order(self, names, order=None):
        return sorted(names, key=lambda name: name != NOTHING)

    def cut(self, num_classes):
        return torch.tensor([0.0] + [0.5] * (num_classes - 1))

    def decided(self, logits, cut):
        return (logits if cut is None else logits - cut).argmax(1)

    def scores(self, num_classes, stage):
        return LeadScores(num_classes, stage)

    def evaluation(self, logits, label, class_names, columns, cut=None, temperature=1.0, class_counts=None):
        found = super().evaluation(logits, label, class_names, columns, cut, temperature, class_counts)
        found["metrics"] |= accuracy(self.decided(logits, cut) == label)
        return found
'''
KINDS = sorted(module.name for module in iter_modules(tasks.__path__) if module.name != "base")
N, K = 240, 5
NAMES = ["grade 0", "grade 1", "grade 2", "grade 3", "grade 4"]


@pytest.fixture(scope="session")
def own_module(tmp_path_factory):
    """The folder of a module that has a further kind."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "kinds_of_ours.py").write_text(MODULE)
    return folder


@pytest.fixture(params=[*KINDS, OWN])
def task(request, own_module, monkeypatch) -> Task:
    monkeypatch.syspath_prepend(own_module)
    return find(request.param)


@pytest.fixture
def drawn(task):
    """Labels of N images, logits that mostly agree with them, and cuts, all random; copies of the arrays each time."""
    rng = np.random.default_rng(0)
    several = task.unknown(1, K).ndim == 2
    names = [rng.choice(NAMES, rng.integers(0, 3) if several else 1, replace=False).tolist() for _ in range(N)]
    label = task.numbered(names, NAMES)
    logits = rng.normal(-1, 1.5, (N, K)).astype(np.float32)
    logits[task.pairs(label)] += 2.5
    cut = task.cut(K)
    cut = None if cut is None else rng.normal(0, 0.5, K).astype(np.float32)
    return SimpleNamespace(names=names, label=label, logits=logits, cut=cut)


def as_batch(label: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(label.astype(np.float32) if label.ndim == 2 else label)


def test_a_name_leads_to_the_kind(task):
    assert find(task.name) is task and task.name in (*KINDS, OWN)


@pytest.mark.parametrize(
    "name, message",
    [
        ("orderd", r"there is no module imgcls.tasks.orderd \(did you mean 'ordered'\?\)"),
        ("kinds_of_yours.OneOrNone", "there is no module kinds_of_yours; it may stand beside the config"),
        ("kinds_of_ours.OneOrNoen", r"kinds_of_ours has no OneOrNoen \(did you mean 'OneOrNone'\?\)"),
        ("kinds_of_ours.Scores", "is no kind of labels"),
        ("base", "imgcls.tasks.base has no Base"),
    ],
)
def test_a_name_that_leads_nowhere_is_an_error(name, message, own_module, monkeypatch):
    monkeypatch.syspath_prepend(own_module)
    with pytest.raises(UserError, match=f"--data.task {name}: {message}"):
        find(name)


def test_a_run_of_a_kind_that_is_not_here_is_left_out_of_a_dashboard():
    for name, kind in (("one", "ordered"), ("two", "nowhere.Kind")):
        folder = Path("runs") / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("seed_everything: 0\n")
        (folder / "environment.json").write_text(json.dumps({"data": {"task": kind}}))
    watched = Watched([Path("runs")])
    watched.look()
    assert [run.task.name for run in watched.runs.values()] == ["ordered"]
    (why,) = watched.broken.values()
    assert "--data.task nowhere.Kind: there is no module nowhere" in why


# ---- labels ----


def test_labels_come_back_from_names_pairs_and_words(task, drawn):
    image, of = task.pairs(drawn.label)
    assert image.dtype == of.dtype == np.int64 and (np.diff(image) >= 0).all()
    expected = [(k, NAMES.index(name)) for k, names in enumerate(drawn.names) for name in names]
    assert sorted(zip(image.tolist(), of.tolist(), strict=True)) == sorted(expected)
    words = task.text(drawn.label, NAMES)
    assert words == ["|".join(sorted(names)) for names in drawn.names]
    again = task.numbered([of.split("|") if of else [] for of in words], NAMES)
    assert again.dtype == drawn.label.dtype and (again == drawn.label).all()


def test_labels_that_are_not_known_are_of_no_class(task, drawn):
    nothing = task.unknown(3, K)
    assert nothing.dtype == drawn.label.dtype and nothing.shape[1:] == drawn.label.shape[1:]
    assert (task.numbered([None] * 3, NAMES) == nothing).all()
    assert task.text(nothing, NAMES) == [""] * 3 and not len(task.pairs(nothing)[0])
    mixed = np.concatenate([drawn.label, nothing])
    assert known(mixed).tolist() == [True] * N + [False] * 3


def test_labels_are_renumbered_and_back(task, drawn):
    label = np.concatenate([drawn.label, task.unknown(1, K)])
    there = np.array([2, 0, 6, 1, 5])
    back = np.full(7, -1)
    back[there] = np.arange(K)
    other = task.renumbered(label, there, 7)
    assert sorted(zip(*task.pairs(other), strict=True)) == sorted(
        (image, there[of]) for image, of in zip(*task.pairs(label), strict=True)
    )
    again = task.renumbered(other, back, K)
    assert again.dtype == label.dtype and (again == label).all()
    lost = task.renumbered(label, np.array([0, -1, 1, 2, 3]), 4)
    had = {int(image) for image, of in zip(*task.pairs(label), strict=True) if of == 1}
    assert set(np.flatnonzero(~known(lost)).tolist()) == had | {N}


def test_another_label_is_one_that_is_not_the_own(task, drawn):
    one, two = (task.another(drawn.label, K, np.random.default_rng(seed)) for seed in (1, 1))
    assert one.dtype == drawn.label.dtype and one.shape == drawn.label.shape and (one == two).all()
    assert (one != drawn.label).reshape(N, -1).any(1).all()
    assert known(one).all() and set(task.pairs(one)[1].tolist()) == set(range(K))


def test_the_classes_are_those_of_the_data(task):
    assert sorted(task.class_order(NAMES[::-1])) == NAMES


def test_labels_of_another_shape_are_refused(task, drawn):
    task.check(drawn.label)
    task.check(task.unknown(2, K))
    other = np.zeros(3, np.int64) if drawn.label.ndim == 2 else np.zeros((3, K), np.int8)
    with pytest.raises(UserError, match=f"--data.task {task.name}: is for images with {task.labels}, and these have "):
        task.check(other)


# ---- learning ----


def test_a_model_can_learn_them(task, drawn):
    example = task.example(7, K)
    label = as_batch(drawn.label)
    assert example.shape == (7, *label.shape[1:]) and example.dtype == label.dtype
    loss = task.loss()
    assert isinstance(loss, Loss)
    loss.prepare(task.labels, task.chance(K))
    for labels in (example, label):
        logits = torch.zeros(len(labels), K, requires_grad=True)
        value = loss(logits, labels, None)
        value.backward()
        assert value.shape == () and logits.grad.isfinite().all() and logits.grad.abs().sum() > 0
    assert 0 < task.chance(K) < 1


def test_hits_of_a_batch_are_those_of_decisions_without_cuts(task, drawn):
    hits = task.hits(torch.from_numpy(drawn.logits), as_batch(drawn.label))
    assert hits.dtype == torch.bool and 0.1 < hits.float().mean() < 0.95
    assert (hits.numpy() == agree(task.decided(drawn.logits, None), drawn.label)).all()
    mixed = torch.zeros(N, K)
    mixed[task.pairs(drawn.label)] = 0.7
    known = np.unique(task.pairs(drawn.label)[0])
    assert (task.hits(torch.from_numpy(drawn.logits), mixed) == hits)[known].all()


def test_divergence_is_nothing_of_equals_and_a_mean_over_images(task, drawn):
    ours, theirs = torch.from_numpy(drawn.logits), torch.from_numpy(drawn.logits[::-1].copy())
    assert task.divergence(ours, ours).item() == pytest.approx(0, abs=1e-6)
    found = task.divergence(ours, theirs)
    of_each = [task.divergence(a[None], b[None]).item() for a, b in zip(ours, theirs, strict=True)]
    assert found.shape == () and min(of_each) > 0 and found.item() == pytest.approx(np.mean(of_each), rel=1e-4)


# ---- prediction ----


def test_probabilities_are_plausible_and_alike_in_torch_and_numpy(task, drawn):
    probability = task.probabilities(drawn.logits)
    assert probability.dtype == np.float64 and probability.shape == (N, K) and task.plausible(probability)
    tensor = task.probability(torch.from_numpy(drawn.logits).double())
    assert np.allclose(tensor.numpy(), probability, atol=1e-12)
    again = task.probability(task.log_odds(tensor))
    assert torch.allclose(again, tensor, atol=1e-9)
    for wrong in (probability - 1, probability + 1, np.full((2, K), np.nan)):
        assert not task.plausible(wrong)


def test_decisions_are_labels_that_no_temperature_changes(task, drawn):
    decided = task.decided(drawn.logits, drawn.cut)
    assert decided.shape == drawn.label.shape and known(decided).all()
    for temperature in (0.25, 4):
        cut = None if drawn.cut is None else drawn.cut / temperature
        assert (task.decided(drawn.logits / temperature, cut) == decided).all()
    tensor = task.decided(torch.from_numpy(drawn.logits), None if drawn.cut is None else torch.from_numpy(drawn.cut))
    assert (tensor.numpy() == decided).all()  # an exported graph decides likewise
    if drawn.cut is not None:
        initial = task.cut(K)
        assert initial.shape == (K,) and initial.dtype == torch.float32
        assert (task.decided(drawn.logits, drawn.cut + np.linspace(-3, 3, K)) != decided).any()


def test_confidence_and_margin_are_probabilities(task, drawn):
    probability, decided = task.probabilities(drawn.logits), task.decided(drawn.logits, drawn.cut)
    confidence, margin = task.confidence(probability, decided), task.margin(probability, decided)
    runner_up = task.runner_up(probability, decided)
    for share in (confidence, margin, task.confidence(probability, drawn.label)):
        assert share.shape == (N,) and (share >= 0).all() and (share <= 1).all()
    assert runner_up.shape == (N,) and runner_up.dtype == np.int64 and (runner_up >= 0).all() and (runner_up < K).all()
    right = agree(decided, drawn.label)
    assert confidence[right].mean() > confidence[~right].mean() + 0.05
    if decided.ndim == 1:
        assert (runner_up != decided).all()


# ---- measuring ----


def test_metrics_of_an_epoch_are_those_of_the_evaluation(task, drawn):
    scores = task.scores(K, "val")
    logits, label, loss = torch.from_numpy(drawn.logits), as_batch(drawn.label), task.loss()
    for some in torch.arange(N).split(70):
        scores.update(logits[some], label[some], loss.evaluate(logits[some], label[some]))
    cut = None if drawn.cut is None else torch.from_numpy(drawn.cut)
    found = {name.removeprefix("val/"): value.item() for name, value in scores.collect(cut).items()}
    metrics = task.evaluation(drawn.logits, drawn.label, NAMES, {}, drawn.cut)["metrics"]
    shared = found.keys() & metrics.keys()
    assert {task.metric, "acc", "ece"} <= shared and found["loss"] == pytest.approx(
        loss.evaluate(logits, label).item(), rel=1e-5
    )
    assert {name: found[name] for name in shared} == pytest.approx({name: metrics[name] for name in shared}, abs=1e-5)
    assert metrics["acc"] == pytest.approx(agree(task.decided(drawn.logits, drawn.cut), drawn.label).mean())


def test_cuts_found_in_an_epoch_are_better_than_those_to_begin_with(task, drawn):
    if (initial := task.cut(K)) is None:
        return
    logits, label = torch.from_numpy(drawn.logits), as_batch(drawn.label)
    scores = task.scores(K, "val")
    values = []
    for cut in (initial, None):
        scores.update(logits, label, torch.zeros(()))
        values.append({name: value.item() for name, value in scores.collect(cut).items()})
    best = scores.best_cut()
    assert best.shape == (K,) and best.dtype == torch.float32 and not torch.equal(best, initial)
    assert any(values[1][name] > values[0][name] for name in values[0])


def test_the_evaluation_has_what_pages_show(task, drawn):
    columns = {"site": ["north", "south"] * (N // 2)}
    each = drawn.logits, drawn.label, NAMES, columns, drawn.cut
    found = task.evaluation(*each, 1.5, [300, 60, 10, 5, 1])
    assert found["images"] == N and found["note"] and found["shots"] and found["slices"]
    assert {"metrics", "classes", "classes_without_image", "reliability", "reliability_calibrated"} <= found.keys()
    assert {"risk_coverage", "shots_note", "slices_note"} <= found.keys()
    assert [row["class"] for row in found["classes"]] == NAMES
    count = np.bincount(task.pairs(drawn.label)[1], minlength=K).tolist()
    assert [row["images"] for row in found["classes"]] == count
    assert all(0 <= row[task.score_of_class] <= 1 for row in found["classes"])
    assert {"temperature", "nll", "nll_calibrated", task.metric, *task.resampled} <= found["metrics"].keys()
    again = task.evaluation(*each, 1.5, [300, 60, 10, 5, 1])
    assert json.dumps(json.loads(json.dumps(found))) == json.dumps(again)


def test_the_metric_lies_in_its_interval(task, drawn):
    low, high = task.interval(drawn.logits, drawn.label, drawn.cut)
    value = task.evaluation(drawn.logits, drawn.label, NAMES, {}, drawn.cut)["metrics"][task.metric]
    assert 0 <= low < value < high <= 1 and high - low < 0.2
    assert task.interval(drawn.logits, drawn.label, drawn.cut) == (low, high)


def test_resampled_metrics_are_those_of_the_evaluation_of_a_resample(task, drawn):
    rng = np.random.default_rng(3)
    for metric in task.resampled:
        resampled = task.resample(metric, drawn.logits, drawn.label, drawn.cut)
        weights = np.stack([np.ones(N, np.int64), np.bincount(rng.integers(N, size=N), minlength=N)], 1)
        for column, value in zip(weights.T, resampled(weights), strict=True):
            chosen = np.repeat(np.arange(N), column)
            found = task.evaluation(drawn.logits[chosen], drawn.label[chosen], NAMES, {}, drawn.cut)
            assert value == pytest.approx(found["metrics"][metric], abs=1e-6), metric


def test_a_temperature_is_fitted(task, drawn):
    one, three = (task.calibration(drawn.logits * scale, drawn.label) for scale in (1, 3))
    assert three["temperature"] == pytest.approx(3 * one["temperature"], rel=1e-3)
    assert one["images"] == N and one["nll_calibrated"] <= one["nll"]
    perfect = np.full((N, K), -5.0, np.float32)
    perfect[task.pairs(drawn.label)] = 5
    assert task.calibration(perfect, drawn.label) is None


def test_planted_label_errors_are_found(task, drawn):
    rng = np.random.default_rng(1)
    logits = rng.normal(-4, 1, (N, K)).astype(np.float32)
    logits[task.pairs(drawn.label)] += 8
    given, wrong = drawn.label.copy(), rng.choice(N, 20, replace=False)
    given[wrong] = task.another(drawn.label[wrong], K, rng)
    found, suggested = task.label_errors(task.probabilities(logits), given)
    assert (
        found.dtype == np.int64 and suggested.dtype == given.dtype and suggested.shape == (len(found), *given.shape[1:])
    )
    planted = {*found.tolist()} & {*wrong.tolist()}
    assert len(set(found.tolist())) == len(found) <= len(planted) + 2 and len(planted) > 12
    assert np.mean((suggested == drawn.label[found]).reshape(len(found), -1).all(1)) > 0.8
    sure, _ = task.label_errors(task.probabilities(logits), drawn.label)
    assert len(sure) <= 3


# ---- showing ----


def test_mistakes_are_counted(task, drawn):
    decided = task.decided(drawn.logits, drawn.cut)
    found = task.mistakes(drawn.label, decided)
    assert found
    for titles, kind in found.items():
        assert kind and all(len(classes) == len(titles) for classes, *_ in kind)
        assert all(0 < images <= of <= N for _, images, of in kind)
        counts = [images for _, images, _ in kind]
        assert counts == sorted(counts, reverse=True)
    total = sum(images for kind in found.values() for _, images, _ in kind)
    assert total == (decided != drawn.label).sum()
    assert not any(task.mistakes(drawn.label, drawn.label).values())


def test_pictures_and_words_of_predictions(task, drawn):
    probability, decided = task.probabilities(drawn.logits), task.decided(drawn.logits, drawn.cut)
    figures = task.figures(probability, decided, drawn.label, NAMES)
    assert figures and all(name.isidentifier() and isinstance(of, Figure) for name, of in figures.items())
    for k in range(20):
        first, second = task.telling(probability[k], decided[k], drawn.label[k])
        assert {first, second} <= set(range(K)) and first != second and type(first) is type(second) is int
        for guesses in (1, 2):
            *guessed, truth = task.caption(probability[k], decided[k], drawn.label[k], NAMES, guesses).split("\n")
            assert len(guessed) == guesses and truth.startswith("is ")
            for line in guessed:
                name, _, value = line.rpartition(" ")
                assert float(value) == pytest.approx(probability[k, NAMES.index(name)], abs=0.0051)
    unknown = task.unknown(1, K)[0]
    assert {*task.telling(probability[0], decided[0], unknown)} <= set(range(K))


# ---- every verb ----

CLASSES = {"ordered": ["grade 0", "grade 1", "grade 2"], OWN: ["nothing", "bird", "fox"]}


@pytest.fixture
def words(task, tmp_path) -> list[str]:
    """A fit on images of three colours, or of two in one; a table says which are there."""
    rng = np.random.default_rng(0)
    names = CLASSES.get(task.name, ["bird", "fox", "newt"])
    several = task.unknown(1, 3).ndim == 2
    table = [("path", "label", "split")]
    for number in range(60):
        shown = sorted(rng.choice(3, rng.integers(0, 3) if several else 1, replace=False).tolist())
        part = "test" if number % 5 == 0 else "val" if number % 5 == 1 else "train"
        path = tmp_path / "images" / f"{number}.png"
        write_image(path, 3, (24, 24), seed=number)
        for half, k in enumerate(shown):
            write_image(tmp_path / "half.png", k, (24 // len(shown), 24), seed=number)
            with Image.open(path) as image, Image.open(tmp_path / "half.png") as pasted:
                image.paste(pasted, (half * 12, 0))
                image.save(path)
        table.append((f"images/{number}.png", "|".join(names[k] for k in shown), part))
    with open(tmp_path / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows(table)
    words = ["--config", ROOT / "configs/data/table.yaml", "--config", ROOT / "configs/model/cnn.yaml", *QUIET]
    words += [f"--data.table={tmp_path}/table.csv", f"--data.task={task.name}", "--data.image_size=16"]
    words += ["--data.label_separator=|"] if several else []
    words += ["--data.batch_size=12", "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.max_epochs=3"]
    return [*map(str, words), "--model.backbone.depth=2", "--model.backbone.width=4", "--seed_everything=0"]


@pytest.mark.slow
def test_every_verb_works(task, words, imgcls, monkeypatch, tmp_path):
    """A new kind is one module, and nothing else of the package knows of it."""

    def done(*given):
        code, out, err = imgcls(*given)
        assert code == 0, err
        return out

    done("fit", *words, "--run_dir=run")
    done("fit", *words, "--model.lr=0.01", "--test_after_fit=true", "--run_dir=other")
    best = torch.load("run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert f"validation {task.metric_name}" in done("validate", "--run=run")
    assert f"test {task.metric_name}" in done("test", "--run=run", "--calibrate=true")
    metrics, found = (json.loads(Path(f"run/{name}.json").read_text()) for name in ("metrics", "evaluation"))
    assert {f"val/{task.metric}", f"test/{task.metric}", "val/loss", "test/loss"} <= metrics.keys()
    assert {f"test/{name}" for name in found["metrics"]} <= metrics.keys()

    predicted = read_predictions(Path("run/predictions/test.npz"))
    assert predicted.task is task and (predicted.cut is None) == (task.cut(3) is None) == ("cut" not in best)
    if predicted.cut is not None:
        assert np.array_equal(predicted.cut, best["cut"].numpy())
    names = json.loads(Path("run/environment.json").read_text())["data"]["class_names"]
    table = rows("run/predictions/test.csv")
    assert [row["label_name"] for row in table] == task.text(predicted.label, names) and len(table) == 12
    assert [row["prediction_name"] for row in table] == task.text(predicted.decided, names)
    assert metrics["test/acc"] == pytest.approx(np.mean([row["label"] == row["prediction"] for row in table]), abs=1e-6)

    done("predict", "--run=run", "--data.root=images")
    said = {Path(row["path"]).name: row for row in rows("run/predictions/predict.csv")}
    loaded = load("run").predict([f"images/{Path(row['path']).name}" for row in table])
    assert loaded.class_names == [row["prediction_name"] for row in table]
    assert loaded.class_names == [said[Path(row["path"]).name]["prediction"] for row in table]
    assert task.plausible(loaded.probability) and len(said) == 60

    page = Path("run/report.html").read_text()
    assert all(name in page for name in (*names, f"test/{task.metric}", found["note"][:40]))
    done("explain", "--run=run")
    assert Path("run/figures/grad_cam.png").is_file()
    done("audit", "--run=run", "--out=audit")
    audited = json.loads(Path("audit/audit.json").read_text())
    assert audited["predicted"] == 24 and (f"--data.task={task.name}" in audited["clean"]["options"]) == (
        task.name != tasks.SINGLE_LABEL
    )
    others = [word for word in words if not word.startswith(("--data.table", "--data.task", "--data.label_separator"))]
    cleaned = ["--data.table=audit/clean.csv", f"--data.root={tmp_path}", *shlex.split(audited["clean"]["options"])]
    done("fit", "--dry_run=true", *others, *cleaned)
    for k in range(3):
        write_image(Path(f"more/{k}.png"), k, (24, 24), seed=100)
    done("annotate", "--run=run", "--data.root=more", "--count=2", "--out=annotate")
    assert f"test/{task.metric}" in done("compare", "run", "other", "--out=compare.html")
    for metric in task.resampled:
        done("compare", "run", "other", f"--metric=test/{metric}")
    if names == sorted(names):  # with an order of the kind's own, data at another place are not known again
        Path("moved.csv").write_bytes(Path("table.csv").read_bytes())
        done("test", "--run=run", f"--data.table={tmp_path}/moved.csv")
        again = read_predictions(Path("run/predictions/test.npz"))
        assert not Path("run/evaluations").exists(), "the run's own data, at another place"
        assert again.task is task and np.array_equal(again.decided, predicted.decided)
    # as data that are not the run's own, they are matched by name; accuracy is that of the three parts together
    done("test", "--run=run", f"--data.table={tmp_path}/table.csv", "--data.split_column=none")
    elsewhere = read_predictions(Path("run/evaluations/table/predictions/test.npz"))
    assert elsewhere.task is task and len(elsewhere.label) == 60
    assert elsewhere.right[::5].tolist() == predicted.right.tolist()

    stop_at_step(monkeypatch, 7, "fit", *words, "--run_dir=part", run=imgcls)
    done("fit", "--resume=part", *QUIET)
    for name in ("best", "last"):
        assert same(weights(f"run/checkpoints/{name}.ckpt"), weights(f"part/checkpoints/{name}.ckpt"))


def stop_at_step(monkeypatch, step, *words, run):
    original = Classifier.training_step

    def stopping(self, batch, batch_idx):
        if self.global_step == step:
            raise RuntimeError("power cut")
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Classifier, "training_step", stopping)
        run(*words)


@pytest.mark.parametrize("task", ["multi_label"], indirect=True)
@pytest.mark.parametrize("average", ["imgcls.training.ema.EMA", "lightning.pytorch.callbacks.EMAWeightAveraging"])
def test_an_average_of_weights_has_the_cuts_that_validation_chose(task, words, average, imgcls):
    Path("average.yaml").write_text(f"# an average\ntrainer:\n  callbacks+:\n  - {average}\n")
    code, _, err = imgcls("fit", *words, "--config", "average.yaml", "--run_dir=run")
    assert code == 0, err
    val = read_predictions(Path("run/predictions/val.npz"))
    cut = weights("run/checkpoints/best.ckpt")["cut"].numpy()
    assert np.array_equal(cut, val.cut) and cut == pytest.approx(best_cuts(val.logits, val.label))


@pytest.mark.slow
def test_an_exported_graph_decides_as_its_run(task, words, imgcls):
    import onnxruntime

    for given in (["fit", *words, "--run_dir=run"], ["test", "--run=run", "--calibrate=true"], ["export", "--run=run"]):
        code, _, err = imgcls(*given)
        assert code == 0, err
    session = onnxruntime.InferenceSession("run/model.onnx", providers=["CPUExecutionProvider"])
    predicted, table = read_predictions(Path("run/predictions/test.npz")), rows("run/predictions/test.csv")
    pixels = np.stack([np.asarray(Image.open(row["path"])).transpose(2, 0, 1) for row in table])
    found = dict(zip([of.name for of in session.get_outputs()], session.run(None, {"image": pixels}), strict=True))
    temperature = float(session.get_modelmeta().custom_metadata_map["temperature"])
    assert np.allclose(found["probability"], task.probabilities(predicted.logits / temperature), atol=0.01)
    assert ("label" in found) == (predicted.cut is not None)
    if "label" in found:
        assert np.mean((found["label"] == predicted.decided).reshape(12, -1).all(1)) > 0.9
    assert task.limits.partition("{}")[0] in Path("run/model.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi_label"], indirect=True)
def test_two_processes_find_the_metrics_and_cuts_of_one(task, words):
    start(["fit", *words, *DDP, "--run_dir=run"], 2)
    kept = torch.load("run/checkpoints/best.ckpt", weights_only=True)["state_dict"]["cut"].numpy()
    said = {}
    for processes, devices in ((2, DDP), (1, ["--trainer.devices=1", "--trainer.strategy=auto"])):
        for verb in ("validate", "test"):
            start([verb, "--run=run", "--trainer.enable_progress_bar=false", *devices], processes)
        val, test = (read_predictions(Path(f"run/predictions/{part}.npz")) for part in ("val", "test"))
        assert np.array_equal(val.cut, best_cuts(val.logits, val.label).astype(np.float32)) and val.cut.any()
        assert np.array_equal(test.cut, kept)  # of the checkpoint: test images have no say
        metrics = json.loads(Path("run/metrics.json").read_text())
        said[processes] = val, test, {k: v for k, v in metrics.items() if k.startswith(("val/", "test/"))}
    assert np.allclose(said[1][0].cut, kept, atol=1e-5) and np.allclose(said[2][0].cut, kept, atol=1e-5)
    for one, two in zip(said[1][:2], said[2][:2], strict=True):
        assert np.array_equal(one.index, two.index) and np.allclose(one.logits, two.logits, atol=1e-5)
    assert len(said[1][2]) > 20 and said[2][2] == pytest.approx(said[1][2], abs=1e-6)
