import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.environments import SLURMEnvironment

from imgcls.callbacks.figures import image_grid, save
from imgcls.callbacks.predict import PredictionTable
from imgcls.classifier import Classifier
from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError
from imgcls.load import read_checkpoint

REFRESH = 20  # steps between updates of the progress bar; each costs as much as a small model's step


@contextmanager
def plain_process_errors() -> Iterator[None]:
    """What Lightning finds wrong with the processes of a cluster, as a UserError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if "SLURM" in str(error) or "torchrun" in str(error):
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        raise


class Trainer(lightning.Trainer):
    """Lightning's Trainer, plus the verbs of ours that need data and model."""

    @property
    def received_sigterm(self) -> bool:
        """Whether to stop before the next step; an epoch whose last step is done is validated and saved first.

        Lightning would leave validation in the middle, and the resumed run would go on without it. Gradients that are
        being accumulated are in no checkpoint: the optimiser's step comes first.
        """
        epoch = self.fit_loop.epoch_progress.current
        finishing = self.fit_loop.epoch_loop.batch_progress.is_last_batch and epoch.started > epoch.completed  # type: ignore[attr-defined]
        accumulating = self.training and self.fit_loop.epoch_loop._should_accumulate()
        unready = self.state.fn == "fit" and (finishing or self.validating or accumulating)
        return super().received_sigterm and not unready

    def check_processes(self) -> None:
        """Compare the processes that torchrun or SLURM started with those that were asked for.

        Lightning takes what is there: a run asked for on two devices would be one of another global batch size, or
        several processes would each train alone and write to one folder.

        Raises:
            UserError: They differ; the process of rank 0 says so, the others end with the same exit code.
        """
        environment = self._accelerator_connector.cluster_environment
        wanted = self.num_devices * self.num_nodes
        if not environment.creates_processes_externally or environment.world_size() == wanted:
            return
        if environment.global_rank() != 0:
            sys.exit(2)
        by_slurm = isinstance(environment, SLURMEnvironment)
        started, launcher = environment.world_size(), "SLURM" if by_slurm else "torchrun"
        options = "--nodes, --ntasks-per-node and srun" if by_slurm else "--nnodes and --nproc_per_node"
        raise UserError(
            f"trainer: {launcher} started {started} processes, and --trainer.num_nodes={self.num_nodes} with "
            f"--trainer.devices={self.num_devices} asks for {wanted}; {launcher} takes the same numbers by {options}"
        )

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
