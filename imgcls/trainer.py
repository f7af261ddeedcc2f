from pathlib import Path
from typing import Any

import lightning

from imgcls.callbacks.figures import image_grid, save
from imgcls.callbacks.predict import PredictionTable
from imgcls.classifier import Classifier
from imgcls.data.base import ImageDataModule


class Trainer(lightning.Trainer):
    """Lightning's Trainer, plus the verbs of ours that need data and model."""

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
