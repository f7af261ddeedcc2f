import re
from pathlib import Path

import pytest

from imgcls.commands import verbs

from .conftest import ROOT, write_image
from .test_data import write_table

README = (ROOT / "README.md").read_text()
COMMANDS = [
    " ".join(line.split("#")[0].replace("\\\n", " ").split())
    for line in re.findall(r"^    (python -m imgcls (?:.*\\\n)*.*)$", README, re.M)
]
ARGUMENTS = {"FOLDER": "photos", "TABLE.csv": "table.csv", "WEIGHTS.safetensors": "none"}


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) < 150
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"(?:configs|experiments|imgcls)/[\w/]+\.(?:py|yaml)", README):
        assert (ROOT / name).exists(), name


def test_the_readme_shows_every_verb():
    assert {command.split()[3] for command in COMMANDS if len(command.split()) > 3} == set(verbs())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_is_understood(command, imgcls, capsys):
    words = command.split()[3:]
    if (
        not words
        or words[0] in ("answers", "backbones", "compare", "configs", "dashboard", "experiment", "sweep")
        or "RUN_DIR" in command
    ):
        assert not words or words[0] in verbs()  # commands on runs are those of test_cli
        return
    for label in range(2):
        write_image(Path("photos") / str(label) / "1.png", label)
    write_table(Path("table.csv"), [{"path": f"photos/{k}/1.png", "label": k} for k in range(2)])
    for placeholder, value in ARGUMENTS.items():
        words = [w.replace(placeholder, value) for w in words]
    words = [str(ROOT / w) if w.startswith(("configs/", "experiments/")) else w for w in words]
    with pytest.raises(SystemExit) as end:
        imgcls(*words, "--print_config")
    assert end.value.code == 0
    assert "class_path: imgcls.classifier.Classifier" in capsys.readouterr().out
