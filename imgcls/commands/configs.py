"""The files that a run is put together from, and what they say of themselves: [PATTERN] [--out FILE.md]."""

import argparse
from itertools import groupby, takewhile
from pathlib import Path

from imgcls.errors import UserError, near
from imgcls.system.files import write_atomic

HEAD = """# Configs

Written by `python -m imgcls configs --out configs/README.md`: each file with its opening comment. A run is put together
from one file of each kind, `--config FILE --config FILE …`, in the order data, augment, model, loss, finetune, trainer;
later ones win, the command line last. A recipe brings all but the data.
"""
NOTES = "notes.md"  # what else there is to say of the files of a folder


def main(words: list[str]) -> int:
    """List the files of configs/ with their opening comments."""
    parser = argparse.ArgumentParser(prog="python -m imgcls configs", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("pattern", nargs="?", default="", help="part of a file's path, such as finetune")
    parser.add_argument("--folder", type=Path, default=Path("configs"), help="where they are; default: configs")
    parser.add_argument("--out", type=Path, help="a Markdown file to write them to")
    options = parser.parse_args(words)
    files = {path.relative_to(options.folder).as_posix(): path for path in sorted(options.folder.rglob("*.yaml"))}
    if not files:
        raise UserError(f"--folder {options.folder}: holds no YAML file; configs/ is in the folder of imgcls' source")
    chosen = {name: opening_comment(path) for name, path in files.items() if options.pattern in name}
    if not chosen:
        parts = {part for name in files for part in Path(name).with_suffix("").parts}
        raise UserError(f"configs: no file matches {options.pattern!r}{near(options.pattern, parts)}")
    if options.out:
        write_atomic(options.out, _markdown(chosen, options.folder))
        print(f"configs: {options.out}")
        return 0
    width = max(map(len, chosen))
    for name, comment in chosen.items():
        print(f"{name:<{width}}  {comment[0]}")
    return 0


def opening_comment(path: Path) -> list[str]:
    """The lines of comment with which a config begins, without their signs."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return [line.removeprefix("#").removeprefix(" ").rstrip() for line in lines]


def _markdown(comments: dict[str, list[str]], root: Path) -> str:
    parts = [HEAD]
    for folder, names in groupby(comments, lambda name: name.rpartition("/")[0]):
        rows = "\n".join(f"- [{Path(name).name}]({name}): {_in_words(comments[name])}" for name in names)
        parts.append(f"## {folder}\n\n{rows}\n")
        if (notes := root / folder / NOTES).is_file():
            parts.append(notes.read_text(encoding="utf-8"))
    return "\n".join(parts)


def _in_words(lines: list[str]) -> str:
    """Lines as one, but for those that are indented, which are code."""
    parts = []
    for is_code, group in groupby(lines, lambda line: line.startswith("  ")):
        together = list(group)
        code = "\n".join(f"    {line}" for line in together)
        parts.append(f"\n\n{code}\n\n  " if is_code else " ".join(together))
    return "".join(parts)
