"""Classes of any images: --run RUN_DIR [--data.root=FILE|FOLDER|'*.jpg'] [--out FILE] [--sort_into DIR]."""

from pathlib import Path
from typing import Any

from lightning import Callback

from imgcls.cli.arguments import gives
from imgcls.cli.lightning import LightningVerb
from imgcls.cli.other_data import unlabelled
from imgcls.errors import UserError
from imgcls.images.sorting import Link
from imgcls.runs.folder import RunFolder
from imgcls.training.outputs import Outputs
from imgcls.training.prediction_table import PredictionTable, Sorting


class Predict(LightningVerb):
    """`python -m imgcls predict`."""

    needs_run = True

    def config_of(self, run: RunFolder, words: list[str]) -> dict[str, Any]:
        """For images that are read once and, where they cannot be read, skipped.

        Other images than the run's are without labels, and prepared as its own are.
        """
        config = super().config_of(run, words)
        options = config["data"]["init_args"]
        if gives(words, "--data.root", "--data.table"):
            config["data"] = unlabelled(run, options)
        else:
            options |= {"on_error": "skip"} if "on_error" in options else {}
            options |= {"cache": "none"} if options.get("cache") in ("memory", "device") else {}
        return config

    def callbacks(self) -> list[Callback]:  # noqa: D102
        out, folder, link, least, checkpoint = (
            self.options[name] for name in ("out", "sort_into", "link", "min_confidence", "ckpt_path")
        )
        for option, value in {"link": link, "min_confidence": least}.items():
            if value is not None and folder is None:
                raise UserError(f"--{option} {value}: says how images are sorted; give --sort_into FOLDER as well")
        if least is not None and not 0 <= least <= 1:
            raise UserError(f"--min_confidence {least}: give a probability from 0 to 1")
        sort = Sorting(folder, link, least) if folder else None
        outputs = Outputs(self.run)  # which has a state in the checkpoint
        return [outputs, PredictionTable(self.run, Path(checkpoint), out or self.run.predictions / "predict.csv", sort)]

    def work(
        self,
        out: Path | None = None,
        sort_into: Path | None = None,
        link: Link | None = None,
        min_confidence: float | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Predict images with a trained run and write a table; the same command goes on with one that was stopped.

        Args:
            out: The table: path, prediction, confidence, and the probability of each class. Default:
                predictions/predict.csv in the run's folder.
            sort_into: Folder into which the images are copied, into one folder for each class: an image of several
                classes into each of theirs, one of none into `none`.
            link: Make links to the images there, in place of copies.
            min_confidence: Sort images with less into the folder `unsure`.
            ckpt_path: Checkpoint, where it is not the run's best.
        """
        self.trainer.predict(
            self.model, datamodule=self.datamodule, ckpt_path=ckpt_path, weights_only=True, return_predictions=False
        )


main = Predict.main
