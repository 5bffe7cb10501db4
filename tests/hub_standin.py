"""A stand-in for the Hugging Face Hub on localhost: as much of its HTTP interface as the client needs to push, list
and download. Repositories live in memory.

    with HubStandIn() as hub:
        environment = hub.environment(tmp_path)   # for a process that shall take it for the Hub
"""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class HubStandIn:
    """`repos` maps `models/me/name` to its files, path -> bytes; `log` lists every request as `METHOD /path`."""

    def __init__(self):
        self.repos, self.log = {}, []
        self.cut_off = set()  # (repository, file) whose download breaks off half way
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home, **more):
        """This process's environment, with the stand-in as Hub, a cache of its own under `home`, and a token."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_standin",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            **more,
        }

    def revision(self, repo):
        files = self.repos[repo]
        return hashlib.sha1(b"".join(p.encode() + files[p] for p in sorted(files))).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def _answer(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.log.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/whoami-v2":
            return self._json(
                {"type": "user", "name": "me", "fullname": "Me", "orgs": [], "auth": {"type": "access_token"}}
            )
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        api = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/(\w[\w-]*)/([^/]+)(?:/(.*))?)?", path)
        if api:
            return self._api(*api.groups(), body)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if file:
            return self._file(f"{file[1] or 'models/'}{file[2]}", file[4])
        return self._missing("RepoNotFound")

    def _create(self, wanted):
        name = wanted["name"] if not wanted.get("organization") else f"{wanted['organization']}/{wanted['name']}"
        name = name if "/" in name else f"me/{name}"
        kind = wanted.get("type") or "model"
        self.server.hub.repos.setdefault(f"{kind}s/{name}", {})
        prefix = "" if kind == "model" else f"{kind}s/"
        return self._json({"url": f"{self.server.hub.url}/{prefix}{name}", "name": name, "id": name})

    def _api(self, repo, what, revision, rest, body):
        hub = self.server.hub
        if repo not in hub.repos:
            return self._missing("RepoNotFound")
        files = hub.repos[repo]
        if what in (None, "revision"):
            name = repo.partition("/")[2]
            about = {"_id": "0", "id": name, "modelId": name, "sha": hub.revision(repo), "private": False, "tags": []}
            return self._json(
                about | {"siblings": [{"rfilename": p} for p in sorted(files)], "downloads": 0, "likes": 0}
            )
        if what == "tree":
            below = [p for p in sorted(files) if not rest or p == rest or p.startswith(f"{rest}/")]
            return self._json([self._entry(p, files[p]) for p in below]) if below else self._missing("EntryNotFound")
        if what == "paths-info":
            wanted = json.loads(body)["paths"]
            return self._json([self._entry(p, files[p]) for p in wanted if p in files])
        if what == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return self._json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if what == "commit":
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    files.pop(entry["value"]["path"], None)
            commit = hub.revision(repo)
            return self._json({"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{repo}/commit/{commit}"})
        return self._missing("EntryNotFound")

    @staticmethod
    def _entry(path, content):
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _file(self, repo, path):
        hub = self.server.hub
        if repo not in hub.repos:
            return self._missing("RepoNotFound")
        if path not in hub.repos[repo]:
            return self._missing("EntryNotFound")
        content = hub.repos[repo][path]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or [0, 0])[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", hub.revision(repo))
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if (repo, path) in hub.cut_off:
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def _json(self, content, status=200, **headers):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code):
        self._json({"error": code}, status=404, X_Error_Code=code)
