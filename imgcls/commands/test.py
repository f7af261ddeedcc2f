"""Metrics and predictions on the test part, or on other labelled images: --run RUN_DIR [--data.root=DIR]."""

import logging
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.utilities import rank_zero_only

from imgcls.cli.configs import expand_configs
from imgcls.cli.lightning import LightningVerb
from imgcls.cli.other_data import labelled_set, split_words
from imgcls.data.labelled import LabelledSet, UnknownClasses
from imgcls.data.parts import part_named
from imgcls.errors import UserError, printable
from imgcls.images.checking import first_of
from imgcls.images.same import same_images
from imgcls.runs.folder import RunFolder
from imgcls.runs.load import load_data
from imgcls.runs.record import add_summary
from imgcls.system.files import read_json, write_json, write_table
from imgcls.training.evaluation import of_a_test
from imgcls.training.trainer import Trainer

log = logging.getLogger(__name__)
METRICS = ("train", "val", "test", "fit", "data", "robust")  # the names of a run's own metrics begin so


class Test(LightningVerb):
    """`python -m imgcls test`."""

    needs_run = True
    other_data: dict[str, Any] | None = None
    tested_run: RunFolder

    def expand_run(self, run: RunFolder, words: list[str]) -> list[str]:  # noqa: D102
        data, others = split_words(expand_configs(words))
        self.tested_run, self.other_data = run, labelled_set(run, data)
        return super().expand_run(run, others if self.other_data else words)

    def config_of(self, run: RunFolder, words: list[str]) -> dict[str, Any]:
        """Other labelled images in place of the run's, if there are any; a calibration is the run's own."""
        other = {"data": self.other_data, "calibrate": False} if self.other_data else {}
        return super().config_of(run, words) | other

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """What is found of other images goes into a folder of its own."""
        data, name = self.datamodule, self.config.name
        if name is not None and not isinstance(data, LabelledSet):
            raise UserError(f"--name {name}: goes with other data than the run's, such as --data.root=DIR")
        if name is not None and (name in METRICS or name != printable(Path(name).name)):
            raise UserError(f"--name {name}: give a name for a folder that is not {', '.join(METRICS)}")
        if isinstance(data, LabelledSet) and self.other_data:
            data.data.prepare_data()
            trained_on = read_json(self.tested_run.environment)["data"]
            if data.is_data_of(trained_on):
                log.info("the run's own data, at another place: its test part is tested")
                self.datamodule = data.data
            else:
                data.unknown_classes = self.config.unknown_classes
                self.run = self.tested_run.evaluation_on(name or _name_of(self.other_data))
        return super().instantiate_trainer(**kwargs)

    def callbacks(self) -> list[Callback]:  # noqa: D102
        return of_a_test(self.run, self.config, self.options["robustness_baseline"])

    def work(
        self,
        name: str | None = None,
        unknown_classes: UnknownClasses = "raise",
        robustness_baseline: str | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Compute the metrics of a trained run, and write each image's prediction: on its test part, or on other data.

        With other data (`--data.root`, `--data.table`, a config of data) all labelled images there are tested, whatever
        their part; classes are matched by name. The results go to evaluations/NAME in the run's folder, and
        `compare --metric NAME/acc` takes them.

        Args:
            name: Of those results. Default: that of the folder or table.
            unknown_classes: Images of a class that the run does not know: an error, left out, or counted as mistakes in
                `test/acc_with_unknown`.
            robustness_baseline: Run whose robustness this one's is compared with.
            ckpt_path: Checkpoint, where it is not the run's best.
        """
        data = self.datamodule
        if isinstance(data, LabelledSet):
            self._begin(data)
        self.trainer.test(self.model, datamodule=data, ckpt_path=ckpt_path, weights_only=True, verbose=False)
        if isinstance(data, LabelledSet) and unknown_classes == "mistake":
            self._count_unknown(data)
        self.print_summary("test")

    @rank_zero_only
    def _begin(self, data: LabelledSet) -> None:
        """Write what is tested, and warn of images that the run knows from training."""
        source, index, fingerprint = data.source, data.known.tolist(), data.source.fingerprint()
        if read_json(self.run.environment).get("data", {}).get("data", fingerprint) != fingerprint:
            raise UserError(
                f"{self.run.path}: holds the results of other images; keep these apart from them with --name=NAME"
            )
        record: dict[str, Any] = {"class": type(data.data).__name__, "task": data.task, "class_names": data.class_names}
        record["images"] = {"test": len(index)}
        record["class_counts"] = read_json(self.tested_run.environment)["data"].get("class_counts")
        known = {"data": record | {"data": fingerprint}, "config": self.other_data}
        write_json(self.run.environment, known)
        try:
            trained = load_data(self.tested_run.path)
            trained.prepare_data()
            trained.setup_training_parts()
        except UserError as error:
            log.warning(f"whether the run was trained on some of these images cannot be told: {error}")
            return
        pairs: list[tuple[str, str, str]] = []
        for part in ("train", "val"):
            seen, seen_index = trained.parts[part]  # type: ignore[index]
            same = same_images(source, index, seen, seen_index.tolist())
            pairs += [(part, printable(source.names[i]), printable(seen.names[j])) for i, j in same.items()]
        listing = self.run.path / "trained_on.csv"
        if pairs or listing.exists():
            write_table(listing, ("part", "image", "training_image"), pairs)
        if pairs:
            log.warning(
                f"{len(pairs)} of {len(index)} images were trained or validated on, so that the figures are too good: "
                f"{first_of([image for _, image, _ in pairs])} ({listing} lists all)"
            )

    @rank_zero_only
    def _count_unknown(self, data: LabelledSet) -> None:
        tested = len(data.parts["test"][1])  # without what could not be read
        unknown = len(data.source) - len(data.known)
        acc = read_json(self.run.metrics_json)["test/acc"] * tested / (tested + unknown)
        add_summary(self.run, {"test/unknown_images": unknown, "test/acc_with_unknown": acc})


def _name_of(config: dict[str, Any]) -> str:
    """A name for the results, by the place of the images that a config of a LabelledSet names."""
    section = config["init_args"]["data"]
    options = section["init_args"]
    kind = section["class_path"].rpartition(".")[2]
    place = Path(options.get("table") or options.get("root") or kind).expanduser().resolve()
    above = [f"{place.parent.name}-"] if part_named(place.stem) or place.stem == "images" else []
    return "".join([*above, place.stem])


main = Test.main
