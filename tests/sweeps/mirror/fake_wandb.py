"""A W&B server of this process's own, as far as sending runs goes: it keeps what it is sent, so that tests can look.

It knows the viewer, whether a run exists, creating and updating runs, the stream of history and summary, and uploads.
"""

import gzip
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread


class FakeWandb:
    """`runs`: {id: {"upserts": [variables], "history": {line: row}, "summary": {}, "exitcode": int}}."""

    def __init__(self, key: str):
        self.key = key
        self.runs: dict[str, dict] = {}
        self.artifacts: list[dict] = []
        self.views: list[dict] = []
        self.unknown: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.url = ""
        self._lock = Lock()

    def run(self, name: str) -> dict:
        return self.runs.setdefault(name, {"upserts": [], "history": {}, "summary": {}, "exitcode": None, "streams": 0})

    def graphql(self, text: str, variables: dict) -> dict:
        operation = re.search(r"\b(?:query|mutation)\s+(\w+)", text)[1]
        if operation == "Viewer":
            return {"viewer": {"id": "V", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if operation == "GetDefaultEntity":
            return {"viewer": {"id": "V", "entity": "me"}}
        if operation == "Runs":
            asked = json.loads(variables["filters"])["name"]["$in"]
            return {"project": self._runs([name for name in asked if name in self.runs]) if self.runs else None}
        if operation == "UpsertBucket":
            run = self.run(variables["name"])
            run["upserts"].append(variables)
            return {"upsertBucket": {"bucket": self._bucket(variables), "inserted": len(run["upserts"]) == 1}}
        if operation == "RunResumeStatus":
            return {
                "model": {
                    "id": "P",
                    "name": "p",
                    "entity": {"id": "E", "name": "me"},
                    "bucket": self._resume(variables),
                }
            }
        if operation == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{variables['run']}/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "CreateArtifact":
            self.artifacts.append(variables.get("input", variables))
            # As if it had the content already, so that no upload follows.
            made = {"id": "A", "state": "COMMITTED", "artifactSequence": {"id": "S", "latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if operation == "UseArtifact":
            return {"useArtifact": {"artifact": {"id": "A", "digest": "d"}}}
        if operation == "View":
            found = [view for view in self.views if view["name"] == variables["viewName"]][-1:]
            nodes = [{"id": "W", "displayName": view["displayName"], "spec": view["spec"]} for view in found]
            return {"project": {"allViews": {"edges": [{"node": node} for node in nodes]}}}
        if operation == "UpsertView2":
            self.views.append(variables)
            return {
                "upsertView": {"view": {"id": variables.get("id") or "W", "name": variables["name"]}, "inserted": 1}
            }
        self.unknown.append(text)
        return {}

    def _runs(self, names: list[str]) -> dict:
        """A page of a project's runs, as W&B's public client asks for it."""
        empty = ("sweepName", "group", "jobType", "commit", "heartbeatAt", "description", "notes", "historyLineCount")
        plain = dict.fromkeys(empty) | {"tags": [], "state": "finished", "readOnly": False, "createdAt": "2026-01-01"}
        plain |= {"projectId": "1", "user": {"name": "m", "username": "me"}}
        nodes = [plain | {"id": f"R{name}", "name": name, "displayName": name} for name in names]
        return {
            "internalId": "1", "runCount": len(nodes), "readOnly": False,
            "runs": {"edges": [{"node": node, "cursor": node["name"]} for node in nodes],
                     "pageInfo": {"endCursor": None, "hasNextPage": False}},
        }  # fmt: skip

    def _bucket(self, variables: dict) -> dict:
        project = {"id": "P", "name": variables["project"], "entity": {"id": "E", "name": "me"}}
        return {
            "id": "R", "name": variables["name"], "displayName": variables["displayName"], "description": "",
            "config": "{}", "sweepName": None, "historyLineCount": 0, "project": project,
        }  # fmt: skip

    def _resume(self, variables: dict) -> dict | None:
        run = self.runs.get(variables["name"])
        if run is None or not run["history"]:
            return None
        rows = run["history"]
        return {
            "id": "R", "name": variables["name"], "summaryMetrics": json.dumps(run["summary"]), "displayName": "d",
            "logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(rows[max(rows)])]), "eventsTail": "[]", "config": "{}", "tags": [],
            "wandbConfig": '{"t": 1}',
        }  # fmt: skip

    def stream(self, name: str, body: dict) -> None:
        run = self.run(name)
        for file, chunk in body.get("files", {}).items():
            lines = [json.loads(line) for line in chunk["content"]]
            if file == "wandb-history.jsonl":
                run["history"] |= {chunk["offset"] + i: row for i, row in enumerate(lines)}
            elif file == "wandb-summary.json" and lines:
                run["summary"] = lines[-1]
        if body.get("complete"):
            run["exitcode"] = body.get("exitcode")
            run["streams"] += 1

    @contextmanager
    def serving(self):
        """Serve on a free local port; the environment variables that point W&B here."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                out = {}
                with fake._lock:
                    if self.path.endswith("/graphql"):
                        question = json.loads(body)
                        out = {"data": fake.graphql(question["query"], question.get("variables") or {})}
                    elif found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                        fake.stream(found[1], json.loads(body))
                    elif self.path.startswith("/upload/"):
                        fake.uploads[self.path.removeprefix("/upload/")] = body
                data = json.dumps(out).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = answer

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # a client that ended without a goodbye

        server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": self.key}
        finally:
            server.shutdown()
            server.server_close()
