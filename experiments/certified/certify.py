"""Is each augmentation preset what torchvision and timm make of it? Both sides, five seeds each, and the table.

python experiments/certified/certify.py --data sample
python experiments/certified/certify.py --data photos --data.root=FOLDER --model.backbone.weights=FILE.safetensors
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from peers import PEERS
from plain_loop import Task, train

from imgcls.cli.quiet import set_up_messages
from imgcls.commands.fit import Fit
from imgcls.runs.folder import RunFolder
from imgcls.runs.run import Run
from imgcls.science.comparison import compare
from imgcls.science.groups import Group
from imgcls.science.statistics import Estimate, holm, p_value_text
from imgcls.system.files import read_json, write_atomic
from imgcls.training.outputs import Outputs

HERE = Path(__file__).parent
ON_PHOTOS = ["imagenet", "rsb_a2", "resnet50_v2", "convnext_finetune", "mae_finetune"]  # with crops of random size
DATA = {"sample": [preset for preset in PEERS if preset not in ON_PHOTOS], "photos": ON_PHOTOS}
NAMES = {"sample": "clothes", "photos": "photos"}
MARK = "<!-- certify.py writes what follows -->"


def is_done(run: RunFolder) -> bool:
    """Whether a run is done; what is left of one that was cut off is removed."""
    if read_json(run.metrics_json).get("test/acc") is not None:
        return True
    shutil.rmtree(run.path, ignore_errors=True)
    return False


class Undrawn(Outputs):
    """Predictions without figures, which would take longer than the training."""

    def _draw(self, *_: Any) -> None:
        pass


class Ours(Fit):
    """`python -m imgcls fit`, without figures."""

    def callbacks(self) -> list[Callback]:
        """The predictions of the test."""
        return [Undrawn(self.run)]


def run_ours(data: str, preset: str, seed: int, out: RunFolder, options: list[str]) -> None:
    """Train and test with a preset of configs/augment, as `fit` does it."""
    configs = [HERE / f"{data}.yaml", HERE.parents[1] / f"configs/augment/{preset}.yaml"]
    words = [word for config in configs for word in ("--config", str(config))]
    words += ["--seed_everything", str(seed), "--run_dir", str(out.path), "--trainer.enable_progress_bar=false"]
    Ours.main([*words, *options])


def folders(runs: Path, data: str, preset: str) -> list[Path]:
    """Where the runs of a preset lie: ours, and those of each of its peers."""
    return [runs / data / preset / side for side in ("ours", *map(str, range(len(PEERS[preset]))))]


def run_all(data: str, presets: list[str], seeds: int, runs: Path, options: list[str]) -> None:
    """Train with every preset and its peers, seed by seed; what is done is not repeated."""
    task: Task | None = None
    for seed in range(seeds):
        for preset in presets:
            ours, *others = (RunFolder(folder / f"seed-{seed}") for folder in folders(runs, data, preset))
            if not is_done(ours):
                run_ours(data, preset, seed, ours, options)
            task = task or Task.of(ours)
            for peer, out in zip(PEERS[preset], others, strict=True):
                if not is_done(out):
                    train(task, peer, seed, out)
            accuracies = (f"{read_json(run.metrics_json)['test/acc']:.4f}" for run in (ours, *others))
            print(f"{data}, seed {seed}, {preset}: {', '.join(accuracies)}", flush=True)


def rows_of(runs: Path) -> list[dict[str, Any]]:
    """A comparison for each preset on each kind of data, and each of its peers."""
    rows = []
    for data, presets in DATA.items():
        for preset in presets:
            ours, *others = (
                Group([Run(RunFolder(path.parent)) for path in sorted(folder.glob("seed-*/metrics.json"))], folder.name)
                for folder in folders(runs, data, preset)
            )
            for peer, theirs in zip(PEERS[preset], others, strict=True):
                if ours.runs and theirs.runs:
                    first, second = compare([theirs, ours], "test/acc", None)["groups"]
                    rows.append({"data": data, "preset": preset, "peer": peer.words, "theirs": first, "ours": second})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The comparisons as Markdown, with Holm's correction over all of them."""
    head = ("data", "preset", "peers' pipeline", "runs", "ours", "theirs", "difference, 95 %", "p (Holm)", "verdict")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row, p in zip(rows, holm([row["ours"]["p_value"] for row in rows]), strict=True):
        theirs, ours = row["theirs"], row["ours"]
        word = "**they differ**" if p < 0.05 else "no difference beyond chance"
        word = word if ours["of_seeds"] else "one seed: cannot tell"
        about = f"{Estimate(**ours['difference']):+.3f}", p_value_text(p, 3), word
        runs = f"{len(ours['scores'])} + {len(theirs['scores'])}"
        means = (f"{side['mean']['value']:.3f}" for side in (ours, theirs))
        lines.append(f"| {' | '.join([NAMES[row['data']], row['preset'], row['peer'], runs, *means, *about])} |")
    return "\n".join(lines)


def write_readme(path: Path, runs: Path) -> None:
    """Put the table into a file, after its mark; what stands before it stays."""
    before, mark, _ = path.read_text(encoding="utf-8").partition(MARK)
    write_atomic(path, f"{before}{mark}\n\n{table(rows_of(runs))}\n")


def main() -> None:
    """Run what is asked for and is not done, and write the table of all that is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(DATA), action="append", help="default: both")
    parser.add_argument("--presets", nargs="+", choices=list(PEERS), help="default: all of that data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/certified"))
    parser.add_argument("--out", type=Path, default=HERE / "README.md", help="a file with a place for the table")
    options, rest = parser.parse_known_args()
    set_up_messages()
    torch.set_num_threads(1)  # two processes, one for each kind of data, keep two cores busy
    for data in options.data or DATA:
        run_all(data, options.presets or DATA[data], options.seeds, options.runs, rest)
    write_readme(options.out, options.runs)


if __name__ == "__main__":
    main()
