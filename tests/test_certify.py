"""`make gpu DEVICE=cpu`: the certification itself, at toy size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT
from .gpu.certify import SECTIONS
from .gpu.report import Figure


@pytest.mark.slow
def test_the_certification_runs_through_at_toy_size():
    command = [sys.executable, "-m", "tests.gpu.certify", "--device", "cpu", "--out", Path("out").resolve()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    found = json.loads(Path("out/gpu.json").read_text())
    assert found["toy"] and found["sections"].keys() == {section.__name__ for section in SECTIONS}
    figures = {f["what"]: f for section in found["sections"].values() for f in section["figures"]}
    assert figures["tests that failed"]["value"] == 0 and figures["tests that passed"]["value"] > 20
    assert all(figure["value"] >= 0 for figure in figures.values())
    trainer = figures["28 px, 64 a batch: trainer over bare loop"]
    assert trainer["aim"] == 0.9 and trainer["met"] == (trainer["value"] >= 0.9)
    presets = {path.stem for path in (ROOT / "configs/augment").glob("*.yaml")} - {"none"}
    assert found["presets"].keys() == presets
    for row in found["presets"].values():
        assert row["ours, images/s"] > 0 and 0 < row["share of the ResNet step"] and row["waits"] is None
    text = Path("out/gpu.md").read_text()
    assert "Toy run" in text and all(f"| {what} |" in text for what in figures)


def test_a_section_that_fails_keeps_its_figures_and_is_named(monkeypatch, tmp_path, capsys):
    def broken(c):
        """Fails after a figure."""
        yield Figure("a ratio", 0.5, aim=0.9)
        raise ValueError("no | such thing")

    def endless(c):
        """Never ends."""
        yield Figure("a share", 0.01, aim=0.05, at_most=True)
        while True:
            pass

    from .gpu import certify

    monkeypatch.setattr(certify, "SECTIONS", {broken: 5, endless: 5})
    monkeypatch.setattr(certify, "TOTAL", 1)
    for name in ("PYTHONPATH", "WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")  # which it sets for its processes
    monkeypatch.setattr(sys, "argv", ["certify", "--device", "cpu", "--out", str(tmp_path / "out")])
    (tmp_path / "out").mkdir()
    assert certify.main() == 1
    sections = json.loads((tmp_path / "out/gpu.json").read_text())["sections"]
    assert sections["broken"]["error"] == "ValueError: no | such thing"
    assert sections["endless"]["error"].startswith("OverTime: stopped after 1 s")
    assert [s["figures"][0]["met"] for s in sections.values()] == [False, True]
    text = capsys.readouterr().out
    assert re.search(r"\| broken \| \d+ \| 5 \| FAILED: ValueError: no \\\| such thing \|", text)
    assert "| a ratio | 0.5 | ≥ 0.9: MISSED |" in text and "| a share | 0.01 | ≤ 0.05: met |" in text


def test_without_a_gpu_it_says_how_to_try(monkeypatch, capsys):
    from .gpu import certify

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["certify"])
    with pytest.raises(SystemExit) as end:
        certify.main()
    assert end.value.code == 2 and "make gpu DEVICE=cpu" in capsys.readouterr().err
