from pathlib import Path
from typing import Any

import lightning

from imgcls.callbacks.figures import image_grid, save
from imgcls.callbacks.predict import PredictionTable
from imgcls.classifier import Classifier
from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError
from imgcls.load import read_checkpoint

REFRESH = 20  # steps between updates of the progress bar; each costs as much as a small model's step


class Trainer(lightning.Trainer):
    """Lightning's Trainer, plus the verbs of ours that need data and model."""

    @property
    def received_sigterm(self) -> bool:
        """Whether to stop before the next step; an epoch whose last step is done is validated and saved first.

        Lightning would leave validation in the middle, and the resumed run would go on without it.
        """
        epoch = self.fit_loop.epoch_progress.current
        finishing = self.fit_loop.epoch_loop.batch_progress.is_last_batch and epoch.started > epoch.completed  # type: ignore[attr-defined]
        return super().received_sigterm and not (self.state.fn == "fit" and (finishing or self.validating))

    def predict(  # type: ignore[override]
        self, *args: Any, out: Path | None = None, ckpt_path: str | Path | None = None, **kwargs: Any
    ) -> Any:
        """Predict images with a trained run and write a table.

        Args:
            *args: As Lightning's.
            out: The table: path, prediction, confidence, and the probability of each class. Default:
                predictions/predict.csv in the run's folder.
            ckpt_path: Checkpoint, where it is not the run's best.
            **kwargs: As Lightning's.
        """
        if out is not None:
            for callback in self.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, PredictionTable):
                    callback.path = Path(out)
        return super().predict(*args, **kwargs, ckpt_path=ckpt_path)  # type: ignore[misc]

    def preview(
        self, model: Classifier, datamodule: ImageDataModule, out: Path = Path("preview.png"), count: int = 8
    ) -> Path:
        """Draw original and augmented training images into a PNG.

        Args:
            model: Not used; verbs have it.
            datamodule: The data with its augmentation.
            out: The PNG file.
            count: Number of images: a row of originals and three rows of augmented versions.
        """
        from imgcls.commands.preview import preview_images

        images, titles = preview_images(datamodule, count)
        save(image_grid(images, titles, columns=count), Path(out))
        print(f"preview: {out}")
        return Path(out)

    def audit(
        self,
        model: Classifier,
        datamodule: ImageDataModule,
        out: Path = Path("audit"),
        runs: list[str] | None = None,
        predictions: list[Path] | None = None,
        drop_label_errors: bool = False,
        strict: bool = False,
    ) -> None:
        """Look through all images before training: broken ones, duplicates, leaks, two labels; after it, label errors.

        Args:
            model: Not used; verbs have it.
            datamodule: The data.
            out: Folder for audit.html, audit.json and the cleaned table, clean.csv.
            runs: Runs, or folders of runs, whose validation and test predictions tell which labels are probably wrong;
                each `--run DIR` adds one.
            predictions: Tables with such predictions from elsewhere, as `predict` writes them: a column `path` and the
                probability of each class. They must come from models that were not trained on the image.
            drop_label_errors: Leave such training images out of the cleaned table.
            strict: Exit with 1 if anything was found.
        """
        from imgcls.commands.audit import audit

        found = audit(datamodule, Path(out), runs or [], predictions or [], drop_label_errors)
        if strict and any(found.values()):
            raise SystemExit(1)

    def benchmark(
        self,
        model: Classifier,
        datamodule: ImageDataModule,
        json: Path | None = None,
        rounds: int = 7,
        steps: int = 30,
    ) -> dict[str, Any]:
        """Time each stage of training alone, a bare loop, the whole trainer, and other ways to augment.

        Args:
            model: What is trained.
            datamodule: What it is trained on.
            json: File for all figures.
            rounds: How often each stage is timed, interleaved; medians are reported.
            steps: Batches of each stage and round.
        """
        from imgcls.commands.benchmark import benchmark

        if rounds < 1 or steps < 2:
            raise UserError(f"--rounds {rounds} and --steps {steps}: give at least 1 and 2")
        return benchmark(self, model, datamodule, rounds, steps, json)

    def find_lr(
        self, model: Classifier, datamodule: ImageDataModule, out: Path = Path("find_lr.png"), steps: int = 100
    ) -> float:
        """Suggest a learning rate: raise it from step to step and see where the loss falls fastest.

        Args:
            model: The model; it is not changed.
            datamodule: The data to train on.
            out: PNG file of the curve.
            steps: Number of steps.
        """
        from imgcls.commands.find_lr import find_lr

        if steps < 10:
            raise UserError(f"--steps {steps}: give at least 10")
        best = find_lr(model, datamodule, self.strategy.root_device, out, steps)
        print(f"the loss falls fastest at --model.lr={best:.1e}; curve: {out}")
        return best

    def explain(
        self,
        model: Classifier,
        datamodule: ImageDataModule,
        out: Path | None = None,
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Draw what each layer of a trained model responds to.

        Args:
            model: The model.
            datamodule: The run's data; validation images are shown.
            out: Folder for the pictures. Default: figures/ in the run's folder.
            ckpt_path: Checkpoint, where it is not the run's best.
        """
        from imgcls.commands.explain import explain

        state = read_checkpoint(Path(str(ckpt_path)), "--ckpt_path")["state_dict"]
        model.check_weights(state)
        model.load_state_dict(state)
        explain(model, datamodule, self.strategy.root_device, Path(out or Path(self.default_root_dir) / "figures"))
