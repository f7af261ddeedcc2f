"""Is B better than A? RUN_OR_FOLDER… [--baseline NAME] [--out FILE.html]."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from imgcls.cli.columns import print_columns
from imgcls.errors import UserError
from imgcls.runs.run import find_runs
from imgcls.science.comparison import compare, tested_on
from imgcls.science.groups import group_runs
from imgcls.science.statistics import Estimate, p_value_text
from imgcls.system.files import write_json


def main(words: list[str]) -> int:
    """Compare groups of runs that differ in the seed alone: means, differences, and whether they can be believed."""
    parser = argparse.ArgumentParser(prog="python -m imgcls compare", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("folders", nargs="+", metavar="RUN_OR_FOLDER", help="runs, or folders with runs below")
    parser.add_argument("--baseline", help="number or name of the group that the others are compared with")
    parser.add_argument(
        "--metric",
        help="a key of metrics.json, or NAME/acc of evaluations/NAME; default: test/acc, of several labels map",
    )
    parser.add_argument(
        "--over", default="", help="settings that tell splits of the images apart, such as data.fold,data.split_seed"
    )
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--out", type=Path, help="file for a page (.html)")
    parser.add_argument("--wandb", metavar="PROJECT", help="log the table of groups to W&B, offline without an account")
    options = parser.parse_args(words)
    groups = group_runs(find_runs(options.folders), list(filter(None, options.over.split(","))))
    metric = options.metric or f"test/{groups[0].runs[0].task.metric}"
    result = compare(groups, metric, options.baseline)
    print_comparison(result)
    if options.json:
        write_json(options.json, result)
    if options.out:
        from imgcls.pages.compare_page import baseline_of, write_page

        base = baseline_of(result, groups)
        write_page(options.out, result, groups, pictures(base.runs[0].folder.path, tested_on(metric, base)))
        print(f"page: {options.out}")
    if options.wandb:
        log_to_wandb(result, options.wandb)
    return 0


def log_to_wandb(result: dict[str, Any], project: str) -> None:
    """A record of W&B that holds the table of groups, with the intervals and verdicts that W&B has no word for."""
    import wandb

    from imgcls.training.loggers import wandb_unusable

    columns: list[str | int] = ["group", "seeds", "mean", "mean_low", "mean_high"]
    columns += ["difference", "difference_low", "difference_high", "p_holm", "verdict"]
    rows = []
    for row in result["groups"]:
        difference = row.get("difference", {})
        figures = [one.get(key, math.nan) for one in (row["mean"], difference) for key in ("value", "low", "high")]
        known = [None if math.isnan(figure) else figure for figure in figures]
        rows.append([row["name"], len(row["scores"]), *known, row.get("adjusted_p"), row.get("verdict", "baseline")])
    mode = "offline" if "WANDB_MODE" not in os.environ and wandb_unusable() else None
    chosen = {"metric": result["metric"], "baseline": result["baseline"], "notes": result["notes"]}
    about: dict[str, Any] = {"name": f"by {result['metric']}", "job_type": "comparison", "config": chosen, "mode": mode}
    with wandb.init(project=project, dir=Path.cwd(), **about) as run:  # W&B remembers the folder of an earlier record
        run.log({"comparison": wandb.Table(columns=columns, data=rows)})
        print(f"W&B: {run.url or run.dir}")


def pictures(run: Path, tested: str | None) -> Callable[[int, str], Image.Image | None] | None:
    """What opens the images that a run was tested on, by number and name; None, with a word, where nothing can."""
    from imgcls.runs.load import load_data, load_evaluated

    try:
        data = load_data(run) if tested in (None, "test") else load_evaluated(run, str(tested))
        data.prepare_data()
        data.setup("test")
    except UserError as error:
        print(f"\nnote: the page shows no images: {error}")
        return None
    source, _ = data.parts["test"]

    def picture(number: int, name: str) -> Image.Image | None:
        there = number < len(source) and source.names[number] == name  # else the data changed
        return source.original(number, data.resize_crop("test").value_range).image if there else None

    return picture


def print_comparison(result: dict[str, Any]) -> None:
    """The comparison as a table in the terminal."""
    print(f"{result['metric']}, mean over runs with 95 % interval; differences from {result['baseline']}\n")
    rows = [("", "group", "runs", "mean", "difference", "p (Holm)", "verdict")]
    for row in result["groups"]:
        about = "", "", "baseline"
        if "difference" in row:
            about = f"{Estimate(**row['difference']):+.4f}", p_value_text(row["adjusted_p"], 4), row["verdict"]
        mean = f"{Estimate(**row['mean']):.4f}"
        rows.append((str(row["number"]), row["name"], str(len(row["scores"])), mean, *about))
    print_columns(rows)
    for note in result["notes"]:
        print(f"\nnote: {note}")
