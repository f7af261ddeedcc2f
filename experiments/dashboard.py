"""Save a view of a W&B project: one line per arm with a band over its seeds, the best figures first, and the pictures.

pip install wandb-workspaces
python experiments/dashboard.py ENTITY [PROJECT]
"""

import sys

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr

CURVES = {"val/acc": "Validation accuracy", "val/loss": "Validation loss", "train/loss": "Training loss"}


def build_view(entity: str, project: str) -> workspaces.Workspace:
    """The view; nothing is sent before its `save`."""
    curves = [
        panels.LinePlot(title=title, x="epoch", y=[key], groupby_rangefunc="minmax") for key, title in CURVES.items()
    ]
    compared = [
        panels.BarPlot(title="Test accuracy", metrics=["test/acc"]),
        panels.RunComparer(diff_only="split"),
        panels.ParameterImportancePlot(with_respect_to="val/acc"),
    ]
    pictures = [panels.MediaBrowser(media_keys=[key]) for key in ("test/confusion_matrix", "test/mistakes")]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="Arms and seeds",
        sections=[
            workspaces.Section(name="Compare", panels=compared, is_open=True),
            workspaces.Section(name="Curves, with a band over seeds", panels=curves, is_open=True),
            workspaces.Section(name="Pictures", panels=pictures),
        ],
        runset_settings=workspaces.RunsetSettings(
            groupby=[expr.Metric("Group")],
            order=[expr.Ordering(expr.Summary("val/acc"), ascending=False)],
        ),
    )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    print(build_view(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "imgcls").save().url)
