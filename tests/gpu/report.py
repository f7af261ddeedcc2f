"""The figures of a certification as records and as Markdown."""

import datetime
import platform
import shutil
import subprocess
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from imgcls.system.resources import cores


class Figure(NamedTuple):
    """A figure, and what was aimed at."""

    what: str
    value: float
    unit: str = ""
    aim: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.aim is None:
            return None
        return self.value <= self.aim if self.at_most else self.value >= self.aim

    def record(self) -> dict[str, Any]:
        return {**self._asdict(), "met": self.met}

    def line(self) -> str:
        return f"{self.what:<60}{number(self.value, self.unit):>20}   {verdict(self.record())}"


def number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "–"
    digits = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def verdict(figure: dict[str, Any]) -> str:
    if figure["aim"] is None:
        return ""
    bound = f"{'≤' if figure['at_most'] else '≥'} {number(figure['aim'])}"
    return f"{bound}: {'met' if figure['met'] else 'MISSED'}"


def environment(device: torch.device) -> dict[str, Any]:
    """Card, driver, versions and date."""
    names = ("torch", "torchvision", "lightning", "kornia", "timm", "imgcls")
    found: dict[str, Any] = {"date": datetime.date.today().isoformat(), "device": platform.processor() or "CPU"}
    found |= {"cores": cores(), "python": platform.python_version(), "cuda": torch.version.cuda, "driver": None}
    found["versions"] = {name: _version(name) for name in names}
    if device.type == "cuda":
        found["device"], found["cudnn"] = torch.cuda.get_device_name(), torch.backends.cudnn.version()
        if query := shutil.which("nvidia-smi"):
            command = [query, "--query-gpu=driver_version", "--format=csv,noheader"]
            found["driver"] = subprocess.run(command, capture_output=True, text=True).stdout.strip().split("\n")[0]
    return found


def _version(name: str) -> str | None:
    import imgcls

    try:
        return version(name)
    except ImportError:  # of metadata: a package that is not there, or ours when it runs from its folder
        return imgcls.__version__ if name == "imgcls" else None


def markdown(result: dict[str, Any]) -> str:
    """The tables: sections, figures with aims, presets."""
    about = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if number)
    lines = [f"# {'Toy run, its figures mean nothing' if result['toy'] else result['device']}", ""]
    lines += [f"{result['device']}, {result['cores']} cores, driver {result['driver']}, CUDA {result['cuda']}, Python"]
    lines[-1] += f" {result['python']}; {about}; {result['date']}; {result['seconds']:.0f} s in all."
    lines += ["", *(f"- {note}" for note in result["notes"])]
    lines += ["", "| section | seconds | budget | |", "|---|---|---|---|"]
    for name, section in result["sections"].items():
        state = f"FAILED: {_cell(section['error'])}" if section["error"] else "ok"
        lines.append(f"| {name} | {section['seconds']:.0f} | {section['budget']} | {state} |")
    lines += ["", "| figure | | aim |", "|---|---|---|"]
    for section in result["sections"].values():
        for figure in section["figures"]:
            lines.append(f"| {figure['what']} | {number(figure['value'], figure['unit'])} | {verdict(figure)} |")
    if result["presets"]:
        columns = list(next(iter(result["presets"].values())))
        lines += ["", f"| configs/augment | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
        for name, row in result["presets"].items():
            lines.append(f"| {name} | {' | '.join(number(row[column]) for column in columns)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:300]
