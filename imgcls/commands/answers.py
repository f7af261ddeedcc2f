"""What the runs of questions say, as Markdown: experiments/QUESTION…."""

import argparse
from pathlib import Path

from imgcls.errors import UserError
from imgcls.science.conclusion import given
from imgcls.science.question import arms_of, in_terms_of, read_question
from imgcls.system.files import write_atomic

HEAD = """# Questions and measured answers

Written by `python -m imgcls answers`, from the runs' own files; nothing here was typed. Intervals are 95 %: of a mean,
over seeds; of a difference in test accuracy, over seeds and test images. `cannot tell` means that chance alone could do
it: more seeds or more test images would be needed. Hardware: {hardware}.

## Ask it of your own images

    python -m imgcls experiment experiments/own/fine_tuning --data.root=FOLDER   # one sub-folder per class

prints its answer in plain words, and writes it with a figure to runs/fine_tuning/answer.md. augmentation, pretrained,
backbones, balancing, cleaned_labels and data_hunger are asked likewise. All arms alike take options of `fit`, such as
`--config configs/data/table.yaml --data.table=FILE` for a table, `--model.backbone.name=resnet50` for another network,
or `--config configs/model/timm.yaml --model.backbone.name=NAME` for one of timm's. A question is a folder with a YAML
file for each arm, which says what that arm changes: to ask another one, copy a folder and edit it.

Images that are nearly the same must not lie in two folds. `audit` finds them, and its table keeps them together: ask
with `--config configs/data/table.yaml --data.table=audit/clean.csv --data.group_column=group --data.split_column=none`.
"""


def main(words: list[str]) -> int:
    """Write what the runs of some questions say, as Markdown with a figure each."""
    parser = argparse.ArgumentParser(prog="python -m imgcls answers", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("folders", nargs="+", type=Path, metavar="QUESTION", help="folders with a question.toml")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where RUNS/QUESTION/ARM/seed-N lie")
    parser.add_argument("--out", type=Path, default=Path("answers.md"), help="the Markdown file")
    options = parser.parse_args(words)
    from imgcls.pages.answer import write_answer  # with matplotlib: help must not wait for it

    sections, hardware = [], set()
    for folder in options.folders:
        question = read_question(folder)
        groups = arms_of(question, options.runs / question.name)
        question = in_terms_of(question, groups)
        if not any(group.scores(question.metric) for group in groups):
            raise UserError(
                f"answers: {options.runs / question.name} holds no finished run; first "
                f"python -m imgcls experiment {folder}"
            )
        hardware |= {_hardware(run.environment) for group in groups for run in group.runs}
        figure = options.out.parent / "figures" / f"{question.name}.png"
        link, words = f"figures/{question.name}.png", given(question, groups)
        sections.append(write_answer(question, groups, figure, link, words))
        print(f"{question.name}: {sum(len(group.runs) for group in groups)} runs, {figure}")
    write_atomic(options.out, "\n".join([HEAD.format(hardware="; ".join(sorted(hardware))), *sections]))
    print(f"answers: {options.out}")
    return 0


def _hardware(environment: dict) -> str:
    hardware = environment.get("hardware", {})
    accelerators = ", ".join(hardware.get("accelerators", []))
    return accelerators or f"{hardware.get('processor', 'unknown')}, {hardware.get('cores', '?')} cores"
