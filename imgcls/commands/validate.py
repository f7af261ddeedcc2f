"""Metrics on the validation part: --run RUN_DIR."""

from lightning import Callback

from imgcls.cli.lightning import LightningVerb
from imgcls.training.outputs import Outputs


class Validate(LightningVerb):
    """`python -m imgcls validate`."""

    needs_run = True

    def callbacks(self) -> list[Callback]:  # noqa: D102
        return [Outputs(self.run)]

    def work(self, ckpt_path: str | None = None) -> None:
        """Compute the metrics of a trained run on the validation part.

        Args:
            ckpt_path: Checkpoint, where it is not the run's best.
        """
        data = self.datamodule
        self.trainer.validate(self.model, datamodule=data, ckpt_path=ckpt_path, weights_only=True, verbose=False)
        self.print_summary("val")


main = Validate.main
