import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.environments import SLURMEnvironment

from imgcls.callbacks.figures import image_grid, save
from imgcls.callbacks.predict import PredictionTable, Sorting
from imgcls.classifier import Classifier
from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError
from imgcls.load import read_checkpoint
from imgcls.runs.folder import RunFolder
from imgcls.runs.sorting import Link

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
        self,
        *args: Any,
        out: Path | None = None,
        sort_into: Path | None = None,
        link: Link | None = None,
        min_confidence: float | None = None,
        ckpt_path: str | Path | None = None,
        **kwargs: Any,
    ) -> Any:
        """Predict images with a trained run and write a table; the same command goes on with one that was stopped.

        Args:
            *args: As Lightning's.
            out: The table: path, prediction, confidence, and the probability of each class. Default:
                predictions/predict.csv in the run's folder.
            sort_into: Folder into which the images are copied, into one folder for each class.
            link: Make links to the images there, in place of copies.
            min_confidence: Sort images with less into the folder `unsure`.
            ckpt_path: Checkpoint, where it is not the run's best.
            **kwargs: As Lightning's.
        """
        for option, value in {"link": link, "min_confidence": min_confidence}.items():
            if value is not None and sort_into is None:
                raise UserError(f"--{option} {value}: says how images are sorted; give --sort_into FOLDER as well")
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise UserError(f"--min_confidence {min_confidence}: give a probability from 0 to 1")
        for callback in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, PredictionTable):
                callback.checkpoint = Path(ckpt_path or callback.checkpoint)
                callback.out = Path(out or callback.out)
                callback.sort = Sorting(Path(sort_into), link, min_confidence) if sort_into else None
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

    def pack(
        self,
        model: Classifier,
        datamodule: ImageDataModule,
        out: Path | None = None,
        shard_mb: float = 100,
        size: int | None = None,
    ) -> dict[str, Any]:
        """Write all images into shards that `configs/data/shards.yaml` streams from a folder or a URL.

        Args:
            model: Not used; verbs have it.
            datamodule: The data: its parts become those of the pack.
            out: The folder, which must not be there yet, or be empty.
            shard_mb: Size of a shard, in MB.
            size: Longest shorter side in pixels: larger images are resized to it, into JPEG of quality 95. Default:
                the bytes of the files as they are, and PNG of what comes from memory.
        """
        from imgcls.commands.pack import pack

        if out is None:
            raise UserError("--out: name a folder for the pack")
        if shard_mb <= 0 or size is not None and size < 1:
            raise UserError(f"--shard_mb {shard_mb} and --size {size}: give positive numbers")
        datamodule.trainer = self
        facts = pack(datamodule, Path(out), shard_mb, size)
        for name, part in facts["parts"].items():
            size_mb = sum(size for _, size in part["shards"]) / 1e6
            print(f"{name}: {part['images']} images, {len(part['shards'])} shards, {size_mb:.1f} MB")
        print(f"pack: {out}" + (f", without {facts['skipped']}: {out}/skipped.csv" if facts["skipped"] else ""))
        return facts

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
        images: str | None = None,
        count: int = 16,
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Draw what each layer of a trained model responds to, and where in images it sees a class.

        Args:
            model: The model.
            datamodule: The run's data; validation images are shown, without any training images.
            out: Folder for the pictures. Default: figures/ in the run's folder, and its report shows them.
            images: A file, a folder or a pattern of images in which to look for classes. Default: the run's most
                confident mistakes, and some that are right.
            count: How many of them at most.
            ckpt_path: Checkpoint, where it is not the run's best.
        """
        from imgcls.commands.explain import explain
        from imgcls.runs.report import write_report

        if count < 1:
            raise UserError(f"--count {count}: give at least 1")
        checkpoint = Path(str(ckpt_path))
        state = read_checkpoint(checkpoint, "--ckpt_path")["state_dict"]
        model.check_weights(state)
        model.load_state_dict(state)
        run = RunFolder(self.default_root_dir)
        shown = Path(out or run.figures)
        explain(model, datamodule, self.strategy.root_device, run, checkpoint, shown, images, count)
        if out is None:
            write_report(run)
