"""Metrics and predictions on the test part: --run RUN_DIR [--calibrate=true] [--robustness=true]."""

from lightning import Callback

from imgcls.cli.lightning import LightningVerb
from imgcls.training.evaluation import of_a_test


class Test(LightningVerb):
    """`python -m imgcls test`."""

    needs_run = True

    def callbacks(self) -> list[Callback]:  # noqa: D102
        return of_a_test(self.run, self.config, self.options["robustness_baseline"])

    def work(self, robustness_baseline: str | None = None, ckpt_path: str | None = None) -> None:
        """Compute the metrics of a trained run on the test part, and write each image's prediction.

        Args:
            robustness_baseline: Run whose robustness this one's is compared with.
            ckpt_path: Checkpoint, where it is not the run's best.
        """
        data = self.datamodule
        self.trainer.test(self.model, datamodule=data, ckpt_path=ckpt_path, weights_only=True, verbose=False)
        self.print_summary("test")


main = Test.main
