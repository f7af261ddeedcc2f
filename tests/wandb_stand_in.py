"""A small stand-in of W&B's server on loopback: as much of its GraphQL as `wandb agent` speaks.

It hands out a list of parameter sets, one after the other, and can ask for a run to be stopped. Runs themselves record
offline.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StandIn:
    """The server.

    Args:
        sweep: Text of the sweep file, as `wandb sweep` would have sent it.
        trials: Parameters of each run.
        stop: Numbers of the runs that are to be stopped as soon as `stop_now` is set.
    """

    def __init__(self, sweep: str, trials: list[dict[str, Any]], stop: set[int]) -> None:
        self.sweep, self.trials, self.stop = sweep, trials, stop
        self.stop_now = threading.Event()
        self.given = 0
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
                answer = json.dumps({"data": stand_in.answer(body["query"], body.get("variables") or {})}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What W&B would say."""
        if "agentHeartbeat" in query:
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(self._commands(variables))}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "sweep(" in query:
            return {"project": {"sweep": self._sweep(), "entity": {"name": "team"}}}
        if "viewer" in query:
            return {"viewer": {"id": "1", "entity": "team", "username": "someone", "flags": "{}",
                               "teams": {"edges": []}}, "serverInfo": {}}  # fmt: skip
        return {}

    def _sweep(self) -> dict[str, Any]:
        return {"id": "s", "name": "s", "method": "bayes", "state": "RUNNING", "description": None,
                "config": self.sweep, "createdAt": "2026-01-01T00:00:00", "heartbeatAt": None,
                "updatedAt": None, "earlyStopJobRunning": False, "bestLoss": None, "controller": None,
                "scheduler": None, "runs": {"edges": []}}  # fmt: skip

    def _commands(self, variables: dict[str, Any]) -> list[dict[str, Any]]:
        running = json.loads(variables.get("runState") or "{}")
        if self.stop_now.is_set():
            stopped = [{"type": "stop", "run_id": f"run{n}"} for n in self.stop if f"run{n}" in running]
            if stopped:
                return stopped
        if running:
            return []
        if self.given == len(self.trials):
            return [{"type": "exit"}]
        number, self.given = self.given, self.given + 1
        args = {name: {"value": value} for name, value in self.trials[number].items()}
        return [
            {"type": "run", "run_id": f"run{number}", "args": args, "program": "imgcls", "run_name": f"run{number}"}
        ]
