"""Runs compared live in a browser while they train: RUN_OR_FOLDER… [--port N]."""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from imgcls.errors import UserError

if TYPE_CHECKING:
    from imgcls.pages.dashboard import Dashboard

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def main(words: list[str]) -> int:
    """Serve a page that compares runs and follows them while they train. It reads, and never writes."""
    parser = argparse.ArgumentParser(prog="python -m imgcls dashboard", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_OR_FOLDER", help="runs, or folders with runs")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one; default: 8000")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    parser.add_argument(
        "--metric", help="a key of metrics.json; default: test/acc, val/acc before any test; of several labels map"
    )
    parser.add_argument("--baseline", help="number or name of the group that the others are compared with")
    options = parser.parse_args(words)
    for folder in options.folders:
        if not folder.is_dir():
            raise UserError(f"dashboard: {folder}: there is no such folder")
    from imgcls.commands.compare import pictures
    from imgcls.pages.dashboard import Dashboard

    dashboard = Dashboard(options.folders, options.metric, options.baseline, pictures)
    dashboard.version()  # the runs are read before somebody waits for them
    with server(dashboard, options.host, options.port) as listening:
        print(f"dashboard: http://{options.host}:{listening.server_address[1]}/ (Ctrl+C ends it)", flush=True)
        if options.host not in LOOPBACK:
            print("note: whoever reaches this address sees the runs; there is no password")
        try:
            listening.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def server(dashboard: "Dashboard", host: str, port: int) -> ThreadingHTTPServer:
    """What answers browsers; it does not begin yet.

    Raises:
        UserError: The address cannot be had.
    """

    class Handler(_Handler):
        shown = dashboard
        names = LOOPBACK if host in LOOPBACK else None

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: {reason}; --port 0 takes a free one") from error


class _Handler(BaseHTTPRequestHandler):
    shown: "Dashboard"
    names: tuple[str, ...] | None
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:  # noqa: N802
        """Answer a browser."""
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if self.names is not None and name not in self.names:
            # a page from elsewhere whose name was pointed to this machine (DNS rebinding)
            self._answer(403, "text/plain", "this address is not ours")
            return
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        first, _, rest = url.path.lstrip("/").partition("/")
        if first == "":
            self._answer(200, "text/html", self.shown.page(query))
        elif first == "state":
            self._answer(200, "application/json", json.dumps({"version": self.shown.version()}))
        elif first == "part" and (part := self.shown.part(rest, query)):
            tag, text = f'"{part[0]}"', part[1]
            same = self.headers.get("If-None-Match") == tag
            self._answer(304 if same else 200, "text/html", "" if same else text, ETag=tag)
        elif first == "run" and (report := self.shown.report(rest)) is not None:
            self._answer(200, "text/html", report)
        else:
            self._answer(404, "text/plain", "there is no such page")

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, kind: str, text: str, **headers: str) -> None:
        content = text.encode(errors="replace")
        headers |= {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        headers |= {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests are not worth a line each."""
