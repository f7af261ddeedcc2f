"""Train a model: --config FILE… [--model.lr=…], or go on with one: --resume RUN_DIR."""

from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import WeightAveraging

from imgcls.cli.arguments import take
from imgcls.cli.configs import as_config, expand_configs
from imgcls.cli.dry_run import dry_run as rehearse
from imgcls.cli.lightning import LightningVerb
from imgcls.errors import UserError
from imgcls.runs import slurm
from imgcls.runs.folder import RunFolder
from imgcls.training.evaluation import of_a_test
from imgcls.training.trainer import Trainer


class Fit(LightningVerb):
    """`python -m imgcls fit`."""

    trains = needs_weights = True

    def expand(self, words: list[str]) -> list[str]:  # noqa: D102
        run, _ = take(words, "--run")
        if run is not None:
            raise UserError(f"--run goes with a trained run's verbs; use --resume {run}, or --config {run}/config.yaml")
        resume, words = take(words, "--resume")
        if resume is None and (run_again := slurm.unfinished_run()):
            # its config says what the other words said; merged again, lists that they append to would grow
            resume, words = str(run_again.path), []
        if resume is None:
            return super().expand(words)
        folder = RunFolder.existing(resume, "--resume")
        # stopped before its first checkpoint, a run begins again
        checkpoint = ["--ckpt_path", str(folder.last)] if folder.last.is_file() else []
        self.files.append(folder.config)
        again = [*as_config(folder.read_config()), "--run_dir", resume, "--resume", resume, *checkpoint]
        return [*again, *expand_configs(words)]

    def callbacks(self) -> list[Callback]:  # noqa: D102
        return of_a_test(self.run, self.config, self.options["robustness_baseline"])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: D102
        if self.config.dry_run:
            self.logger_config = False
        return super().instantiate_trainer(**kwargs)

    def work(
        self,
        resume: str | None = None,
        dry_run: bool = False,
        robustness_baseline: str | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Train a model, and test the best checkpoint if the experiment asks for it.

        Args:
            resume: The folder of an interrupted run to go on with.
            dry_run: Check all images, build everything, take a few steps, say what would be done and what it takes;
                nothing is trained or written.
            robustness_baseline: Run whose robustness in that test this one's is compared with.
            ckpt_path: Checkpoint to go on from.
        """
        self.datamodule.check_test = self.config.test_after_fit
        if dry_run:
            for name, text in rehearse(self.trainer, self.model, self.datamodule):
                print(f"{name:<10}{text}")
            print("dry run: nothing was trained, nothing is left")
            return
        # a checkpoint from elsewhere must not run code
        self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=ckpt_path, weights_only=True)
        if self.config.test_after_fit and self.trainer.limit_test_batches and not self.trainer.interrupted:
            saved = self.trainer.checkpoint_callbacks and not self.trainer.fast_dev_run  # type: ignore[attr-defined]
            for callback in self.trainer.callbacks if saved else ():  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    callback._average_model = None  # with it, Lightning's own would test the weights beside the average
            self.trainer.test(
                self.model,
                datamodule=self.datamodule,
                ckpt_path=str(self.run.checkpoint(self.run.best)) if saved else None,
                weights_only=True,
                verbose=False,
            )
        self.print_summary("train", "val", *(["test"] if self.config.test_after_fit else []))


main = Fit.main
