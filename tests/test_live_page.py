"""The dashboard: what it serves, to whom, and that it follows runs while they train."""

import http.client
import json
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from imgcls.commands.dashboard import main, server
from imgcls.errors import UserError
from imgcls.pages.dashboard import Dashboard, key_of
from imgcls.runs.folder import RunFolder
from imgcls.runs.record import add_metrics
from imgcls.runs.watch import Watched

from .test_compare import CHROMIUM, write_run

RNG = np.random.default_rng(0)


@pytest.fixture
def runs(tmp_path) -> Path:
    for seed in range(3):
        write_run(tmp_path / f"runs/low/{seed}", RNG.random(200) < 0.6, seed, lr=0.1, note="<i>low</i>")
        write_run(tmp_path / f"runs/high/{seed}", RNG.random(200) < 0.9, seed, lr=0.2, note="<i>high</i>")
    return tmp_path / "runs"


def shown(folder: Path, **options) -> Dashboard:
    return Dashboard([folder], options.get("metric"), options.get("baseline"), lambda run, tested: None)


@contextmanager
def serving(dashboard: Dashboard):
    with server(dashboard, "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield listening.server_address[1]
        finally:
            listening.shutdown()
            thread.join()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, dict(answer.headers), answer.read().decode()
    connection.close()
    return found


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_all_parts_are_served_escaped_and_nothing_is_written(runs):
    before = everything(runs)
    with serving(shown(runs)) as port:
        status, headers, page = ask(port, "/")
        assert status == 200 and headers["X-Frame-Options"] == "DENY" and "default-src 'none'" in page
        assert page.count("<tr>") == 7 and "6 runs" in page and "model.lr" in page
        texts = [page]
        for part, expected in {
            "runs": "0.5000", "groups": "better", "curves": "<svg", "classes": "dog", "disagreements": "a,",
        }.items():  # fmt: skip
            status, headers, text = ask(port, f"/part/{part}")
            assert status == 200 and expected in text, part
            assert ask(port, f"/part/{part}", **{"If-None-Match": headers["ETag"]})[0] == 304
            texts.append(text)
        assert not any("<i>" in text or "<b>cat" in text for text in texts)
        assert any("&lt;b&gt;cat" in text for text in texts) and any("&lt;i&gt;low" in text for text in texts)
    assert everything(runs) == before


def test_it_reads_runs_and_nothing_else(runs):
    (runs / "secret.html").write_text("secret")
    with serving(shown(runs)) as port:
        key = key_of(runs / "low/1")
        assert "low/1" in ask(port, f"/run/{key}")[2]  # made from what is there: no report was written
        (runs / "low/1/report.html").write_text("its own report")
        assert ask(port, f"/run/{key}")[2] == "its own report"
        for path in ("/secret.html", "/run/../secret.html", "/run/%2e%2e/secret.html", "/run/", "/part/page", "/x"):
            assert ask(port, path)[0] == 404
        for method in ("POST", "PUT", "DELETE"):
            assert ask(port, "/", method)[0] == 501
        status, headers, text = ask(port, "/part/groups", "HEAD")
        assert status == 200 and int(headers["Content-Length"]) > 100 and text == ""
        # a page from elsewhere whose name was pointed here
        assert ask(port, "/", Host=f"evil.example:{port}")[0] == 403
        assert ask(port, "/", Host=f"localhost:{port}")[0] == 200


def test_it_follows_runs_and_reads_only_what_changed(runs, monkeypatch):
    watched = Watched([runs])
    watched.look()
    first = dict(watched.runs)
    assert len(first) == 6 and watched.version == 1
    watched.look()
    assert watched.version == 1
    add_metrics(RunFolder(runs / "low/1"), {"val/acc": 0.77}, 2, 3)
    write_run(runs / "new", RNG.random(200) < 0.7, 9, lr=0.2)
    shutil.rmtree(runs / "high/0")
    watched.look()
    assert watched.version == 2 and set(watched.runs) == {*first, runs / "new"} - {runs / "high/0"}
    changed = {folder for folder in first if folder in watched.runs and watched.runs[folder] is not first[folder]}
    assert changed == {runs / "low/1"} and watched.runs[runs / "low/1"].rows[-1]["acc"] == "0.77"

    (runs / "new/config.yaml").write_text("[broken")
    watched.look()
    assert runs / "new" not in watched.runs and "is not YAML" in watched.broken[runs / "new"]
    (runs / "new/config.yaml").write_text((runs / "low/1/config.yaml").read_text())
    watched.look()
    assert runs / "new" in watched.runs and not watched.broken


def test_only_what_changed_gets_another_tag(runs):
    with serving(shown(runs)) as port:
        tags = {part: ask(port, f"/part/{part}")[1]["ETag"] for part in ("runs", "groups", "curves", "classes")}
        state = json.loads(ask(port, "/state")[2])
        assert json.loads(ask(port, "/state")[2]) == state
        add_metrics(RunFolder(runs / "low/1"), {"val/acc": 0.77}, 2, 3)
        assert json.loads(ask(port, "/state")[2]) != state
        now = {part: ask(port, f"/part/{part}")[1]["ETag"] for part in tags}
    assert {part for part in tags if now[part] != tags[part]} == {"runs", "curves"}


def test_before_any_run_and_without_the_metric_it_says_so(tmp_path):
    (tmp_path / "runs").mkdir()
    with serving(shown(tmp_path / "runs")) as port:
        assert "0 runs" in ask(port, "/")[2] and "no run has it" in ask(port, "/part/groups")[2]
        write_run(tmp_path / "runs/one", RNG.random(50) < 0.6, 0, lr=0.1)
        (tmp_path / "runs/one/metrics.json").write_text('{"val/acc": 0.5}')  # not tested yet
        assert "1 groups" not in ask(port, "/part/groups")[2] and "0.5000" in ask(port, "/part/groups")[2]
        assert "--metric nonsense" in ask(port, "/part/groups?metric=nonsense")[2]
        assert "names no group" in ask(port, "/part/groups?baseline=nothing")[2]


def test_a_busy_port_and_a_missing_folder_are_one_line(tmp_path):
    with serving(shown(tmp_path)) as port, pytest.raises(UserError, match=f"--port {port}: .*--port 0 takes"):
        main([str(tmp_path), "--port", str(port)])
    with pytest.raises(UserError, match="nothing: there is no such folder"):
        main([str(tmp_path / "nothing")])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_what_comes_while_it_looks(runs, tmp_path):
    class Growing(Dashboard):
        asked = 0

        def version(self) -> int:
            self.asked += 1
            if self.asked == 3:  # the page has been whole, and sorted, before
                write_run(runs / "late", RNG.random(200) < 0.95, 0, lr=0.9)
            return super().version()

        def page(self, query) -> str:
            probe = """<script>
              window.onerror = message => document.body.setAttribute("data-error", message);
              const soon = setInterval(() => {
                if (!document.querySelector("#groups")) return;
                clearInterval(soon);
                document.querySelector("#runs th:nth-child(7)").click();
                document.querySelector("#runs th:nth-child(7)").click();
                filter.value = "LR=0.9";
                document.querySelector("details").open = true;
              }, 50);
            </script></body>"""
            return super().page(query).replace("</body>", probe)

    with serving(Growing([runs], None, "lr=0.1", lambda run, tested: None)) as port:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
        command += ["--disable-background-networking", "--no-first-run", "--virtual-time-budget=20000", "--dump-dom"]
        dom = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, timeout=120
        ).stdout
    assert 'data-error="' not in dom and "live, " in dom and "7 runs" in dom
    body = dom[dom.index('<table id="runs"') : dom.index('<section data-part="groups"')]
    rows = body.split("<tr")[2:]
    assert "late" in rows[0] and "hidden" not in rows[0].split(">")[0]  # sorted by test accuracy, downwards, as before
    assert all("hidden" in row.split(">")[0] for row in rows[1:])
    assert "s ago" in rows[0] and dom.count("<svg") == 2
    opened = dom[dom.index("<details") :]
    assert "disagree most" in opened
