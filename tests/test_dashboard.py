import importlib.util

from .conftest import ROOT


def test_the_view_groups_by_arm_and_shows_what_is_logged():
    spec = importlib.util.spec_from_file_location("dashboard", ROOT / "experiments/dashboard.py")
    dashboard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dashboard)
    view = dashboard.build_view("team", "imgcls")._to_model()
    text = view.model_dump_json(by_alias=True)
    assert view.entity == "team" and '"grouping":[{"section":"run","name":"group"}]' in text.replace(" ", "")
    for key in ("val/acc", "test/acc", "train/loss", "test/confusion_matrix", "test/mistakes"):
        assert key in text
