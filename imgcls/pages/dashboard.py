"""The page of runs that are still training: the parts of a comparison's page, each made anew when a run has changed."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from imgcls.errors import UserError
from imgcls.pages.compare_page import (
    Picture,
    baseline_of,
    classes,
    curves_context,
    disagreeing,
    number,
    table_context,
)
from imgcls.pages.page import template
from imgcls.pages.report import report
from imgcls.runs.run import Run
from imgcls.runs.watch import Watched
from imgcls.science.comparison import compare, tested_on
from imgcls.science.groups import Group, group_runs


class Dashboard:
    """What a browser is shown of some runs. One thread at a time makes it.

    Args:
        folders: Where the runs lie, or will.
        metric: A key of metrics.json; None: such as test/acc, or val/acc as long as no run was tested.
        baseline: Number or name of the group that the others are compared with; None: the first.
        pictures: Of a run's folder and the name of a test set, what opens its images.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        metric: str | None,
        baseline: str | None,
        pictures: Callable[[Path, str | None], Picture | None],
    ) -> None:
        self.watched = Watched(folders)
        self.metric, self.baseline, self.pictures = metric, baseline, pictures
        self._lock = Lock()
        self._made: dict[tuple[str, ...], Any] = {}  # from the runs as they are now
        self._picture: tuple[Any, Picture | None] = (None, None)

    def version(self) -> int:
        """A number that grows when a run was written to."""
        with self._lock:
            return self._look()

    def page(self, query: Mapping[str, str]) -> str:
        """The whole page, with the table of runs; a browser asks for the other parts."""
        with self._lock:
            self._look()
            known = sorted({key for run in self.watched.runs.values() for key in run.metrics})
            context = {
                "folders": ", ".join(map(str, self.watched.folders)),
                "metric": self._metric(query),
                "metrics": known,
                "baseline": query.get("baseline") or self.baseline,
                "names": [group.name for group in self._grouped()],
            }
            return template("dashboard.html").render(context | self._runs(query))

    def part(self, name: str, query: Mapping[str, str]) -> tuple[str, str] | None:
        """A part of the page, and a tag that is equal while it is; None if there is no such part."""
        make = {"runs": self._runs, "groups": self._table, "curves": self._curves}
        make |= {"classes": self._classes, "disagreements": self._disagreements}
        if name not in make:
            return None
        with self._lock:
            self._look()
            return self._once(name, query, lambda: _tagged(name, make[name], query))

    def report(self, key: str) -> str | None:
        """The report of a run by its key in the table: its own, or one of what it has written so far."""
        with self._lock:
            self._look()
            run = next((run for folder, run in self.watched.runs.items() if key_of(folder) == key), None)
            if run is None:
                return None
            written = run.folder.report
            return written.read_text(encoding="utf-8") if written.is_file() else report(run.folder)

    def _look(self) -> int:
        before = self.watched.version
        self.watched.look()
        if self.watched.version != before:
            self._made.clear()
        return self.watched.version

    def _once(self, name: str, query: Mapping[str, str], make: Callable[[], Any]) -> Any:
        """What `make` gives, made anew only when a run has changed."""
        key = name, query.get("metric", ""), query.get("baseline", "")
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _grouped(self) -> list[Group]:
        return self._once("grouped", {}, lambda: group_runs(self.watched.runs.values()))

    def _metrics(self) -> list[str]:
        """Of validation and test, that of the runs' kind of labels."""
        metric = next((run.task.metric for run in self.watched.runs.values()), "acc")
        return [f"val/{metric}", f"test/{metric}"]

    def _metric(self, query: Mapping[str, str]) -> str:
        val, test = self._metrics()
        tested = any(run.metrics.get(test) is not None for run in self.watched.runs.values())
        return query.get("metric") or self.metric or (test if tested else val)

    def _compared(self, query: Mapping[str, str]) -> tuple[dict[str, Any], list[Group]]:
        groups, baseline = self._grouped(), query.get("baseline") or self.baseline
        return self._once("compared", query, lambda: compare(groups, self._metric(query), baseline)), groups

    def _runs(self, query: Mapping[str, str]) -> dict[str, Any]:
        groups = self._grouped()
        rows = [self._row(run, group) for group in groups for run in group.runs]
        keys = sorted({key for group in groups for key in group.settings or {}})
        shown = list(dict.fromkeys([*self._metrics(), self._metric(query)]))
        broken = self.watched.broken.items()
        return {"rows": rows, "settings": keys, "shown": shown, "broken": broken, "number": number}

    def _row(self, run: Run, group: Group) -> dict[str, Any]:
        folder, rows = run.folder.path, run.rows
        names = {"acc", "loss", run.task.metric, *run.task.resampled}
        last = {f"{row['split']}/{name}": float(row[name]) for row in rows for name in names if row.get(name)}
        return {
            "key": key_of(folder), "path": str(folder), "group": group.name, "settings": group.settings or {},
            "seed": run.seed, "metrics": last | run.metrics, "written": self.watched.written(folder),
            "state": "done" if run.metrics.get("fit/seconds") is not None else "unfinished",
            "epoch": f"{int(rows[-1]['epoch']) + 1}" if rows else "0", "epochs": run.settings.get("trainer.max_epochs"),
        }  # fmt: skip

    def _table(self, query: Mapping[str, str]) -> dict[str, Any]:
        return table_context(*self._compared(query))

    def _curves(self, query: Mapping[str, str]) -> dict[str, Any]:
        return curves_context(self._grouped())

    def _classes(self, query: Mapping[str, str]) -> dict[str, Any]:
        return {"classes": classes(*self._compared(query)), "number": number}

    def _disagreements(self, query: Mapping[str, str]) -> dict[str, Any]:
        result, groups = self._compared(query)
        base = baseline_of(result, groups)
        wanted = base.runs[0].folder.path, tested_on(result["metric"], base)
        if self._picture[0] != wanted:
            self._picture = wanted, self.pictures(*wanted)
        return {"disagreements": disagreeing(result, groups, self._picture[1])}


def key_of(folder: Path) -> str:
    """What names a run in an address: nothing else of the disk can be asked for."""
    return hashlib.blake2b(str(folder).encode(errors="surrogateescape"), digest_size=8).hexdigest()


def _tagged(
    name: str, make: Callable[[Mapping[str, str]], dict[str, Any]], query: Mapping[str, str]
) -> tuple[str, str]:
    """A part's tag and text; the reason in its place where it cannot be made."""
    try:
        text = _block(name, make(query))
    except UserError as error:
        text = _block("error", {"error": str(error)})
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), text


def _block(name: str, context: dict[str, Any]) -> str:
    page = next(page for page in map(template, ("compare.html", "dashboard.html")) if name in page.blocks)
    return "".join(page.blocks[name](page.new_context(context)))
