"""A Hub on localhost: the part of the Hub's HTTP API that `huggingface_hub` uses to create, fill and read model repos.

    with HubServer(tmp_path, users={"hf_secret": "ada"}) as hub:
        ...  # HF_ENDPOINT=hub.url HF_TOKEN=hf_secret, in this process or another

Repositories, commits and large files lie below one folder. As on the Hub, large files and weights go through the LFS
batch API and are kept by their SHA-256, a commit is one request that appears whole or not at all, `resolve` knows
branches and commits, answers range requests and gives an etag, and a private repo does not exist for strangers.
`fail` breaks requests to come, to see what the client makes of it.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


LARGE = 1_000_000  # bytes from which a file is uploaded through LFS
LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".onnx")
REPO = r"(?P<repo>[^/]+/[^/]+)"


class HubError(Exception):
    """An answer other than 200: status, message and the Hub's error code."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class Repo:
    """
    A model repository on disk.

    Attributes:
        refs (`dict`): branch or tag -> commit; commits (`dict`): commit -> path -> `{"oid", "size", "lfs"}`.
    """

    def __init__(self, folder: Path, private: bool):
        self.folder, self.private = folder, private
        self.refs: dict[str, str] = {}
        self.commits: dict[str, dict[str, dict]] = {}
        (folder / "blobs").mkdir(parents=True)
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, dict], message: str) -> str:
        parent = self.refs.get(branch, "")
        oid = hashlib.sha1(json.dumps([parent, message, files], sort_keys=True).encode()).hexdigest()
        self.commits[oid], self.refs[branch] = files, oid
        return oid

    def resolve(self, revision: str) -> str:
        commit = self.refs.get(revision, revision)
        if commit not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def write(self, content: bytes) -> dict:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (self.folder / "blobs" / oid).write_bytes(content)
        return {"oid": oid, "size": len(content), "lfs": None}


class HubServer:
    """
    Args:
        folder: where everything is kept.
        users: token -> name of its owner, who may write below that name alone.
    """

    def __init__(self, folder: Path, users: dict[str, str]):
        self.folder, self.users = Path(folder), users
        self.lfs = self.folder / "lfs"
        self.lfs.mkdir(parents=True)
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: list[tuple[str, str, str | int]] = []
        self.lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def fail(self, method: str, path: str, how: str | int, times: int = 1) -> None:
        """
        Break the next `times` requests whose path matches: "cut" closes the connection, "lost" does so when all is
        done, a number is the answer.
        """
        self.failures += [(method, path, how)] * times

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Content of every file of a revision."""
        there = self.repos[repo]
        return {path: self.content(there, file) for path, file in there.commits[there.resolve(revision)].items()}

    def content(self, repo: Repo, file: dict) -> bytes:
        return (self.lfs / file["lfs"] if file["lfs"] else repo.folder / "blobs" / file["oid"]).read_bytes()


class Handler(BaseHTTPRequestHandler):
    """One request. The first route that matches answers it."""

    protocol_version = "HTTP/1.1"
    hub: HubServer
    routes: list[tuple[str, re.Pattern, Callable]] = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer("GET")

    def do_HEAD(self):
        self.answer("HEAD")

    def do_POST(self):
        self.answer("POST")

    def do_PUT(self):
        self.answer("PUT")

    def answer(self, method: str) -> None:
        url = urlsplit(self.path)
        path = url.path
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.hub.requests.append((method, path))
        failure = next((f for f in self.hub.failures if f[0] == method and re.search(f[1], path)), None)
        if failure:
            self.hub.failures.remove(failure)
            if failure[2] == "cut":
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                self.close_connection = True
                self.connection.close()
                return
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if failure and failure[2] != "lost":
                raise HubError(failure[2], "this request was made to fail")
            for verb, pattern, function in self.routes:
                match = pattern.fullmatch(path)
                if match and (verb == method or (verb, method) == ("GET", "HEAD")):
                    values = {name: unquote(value) for name, value in match.groupdict(default="").items()}
                    with self.hub.lock:
                        answer = function(self, **values)
                    if failure:
                        self.close_connection = True
                        self.connection.close()
                    else:
                        self.send(200, answer)
                    return
            raise HubError(404, f"{method} {path} is not served here", "EntryNotFound")
        except HubError as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            self.send(error.status, {"error": str(error)}, headers)

    def send(self, status: int, content: object, headers: dict | None = None) -> None:
        """Send JSON; routes that send something else return None after they did."""
        if content is None:
            return
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": len(body),
            **(headers or {}),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    # Who may do what

    def user(self) -> str | None:
        """Owner of the token that came along; None without one."""
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        if not kind:
            return None
        if token not in self.hub.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.users[token]

    def readable(self, name: str) -> Repo:
        user, repo = self.user(), self.hub.repos.get(name)
        if repo is None or (repo.private and user != name.split("/")[0]):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, name: str) -> Repo:
        repo = self.readable(name)
        if self.user() != name.split("/")[0]:
            raise HubError(403, f"You don't have the rights to write to {name}")
        return repo

    # Repositories

    def whoami(self) -> dict:
        user = self.user()
        if user is None:
            raise HubError(401, "Unauthorized")
        return {"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}}

    def create(self) -> dict:
        user, wanted = self.user(), self.json
        if user is None:
            raise HubError(401, "Unauthorized")
        owner = wanted.get("organization") or user
        name = f"{owner}/{wanted['name']}"
        if owner != user:
            raise HubError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repos:
            self.send(409, {"error": "You already created this model repo", "url": url})
            return None
        self.hub.repos[name] = Repo(self.hub.folder / "repos" / name, wanted.get("visibility") == "private")
        return {"url": url, "name": name, "id": name}

    def info(self, repo: str, revision: str = "main") -> dict:
        there = self.readable(repo)
        commit = there.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in there.commits[commit]]
        return {"id": repo, "modelId": repo, "sha": commit, "private": there.private, "siblings": siblings, "tags": []}

    def refs(self, repo: str) -> dict:
        there = self.readable(repo)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in there.refs.items()
        ]
        return {"branches": branches, "tags": [], "converts": []}

    def branch(self, repo: str, name: str) -> dict:
        there = self.writable(repo)
        if name in there.refs:
            raise HubError(409, f"Reference already exists: {name}")
        there.refs[name] = there.resolve(self.json.get("startingPoint", "main"))
        return {"ref": name}

    def tree(self, repo: str, revision: str, path: str = "") -> list[dict]:
        there = self.readable(repo)
        files = there.commits[there.resolve(revision)]
        below = {name: file for name, file in files.items() if not path or name.startswith(path + "/")}
        if path and not below:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive", "false").lower() == "true"
        listed = {}
        for name, file in below.items():
            head, _, rest = name[len(path) + 1 if path else 0 :].partition("/")
            if rest and not recursive:
                folder = f"{path}/{head}" if path else head
                listed[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            else:
                listed[name] = described(name, file)
        return list(listed.values())

    def paths_info(self, repo: str, revision: str) -> list[dict]:
        there = self.readable(repo)
        files = there.commits[there.resolve(revision)]
        return [described(path, files[path]) for path in self.json["paths"] if path in files]

    def validate_yaml(self) -> dict:
        return {"errors": [], "warnings": []}

    def auth_check(self, repo: str) -> dict:
        self.writable(repo)
        return {}

    # Uploads

    def preupload(self, repo: str, revision: str) -> dict:
        there = self.writable(repo)
        present = there.commits[there.resolve(revision)]

        def mode(file: dict) -> dict:
            large = file["size"] >= LARGE or file["path"].endswith(LFS_SUFFIXES)
            old = present.get(file["path"])
            oid = None if old is None else old["lfs"] or old["oid"]
            return {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                "oid": oid,
            }

        return {"files": [mode(file) for file in self.json["files"]]}

    def lfs_batch(self, repo: str) -> dict:
        self.writable(repo)
        objects = []
        for wanted in self.json["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not (self.hub.lfs / wanted["oid"]).is_file():
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> dict:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "The content does not have the announced hash")
        aside = self.hub.lfs / f"{oid}.incomplete"
        aside.write_bytes(self.body)
        aside.rename(self.hub.lfs / oid)
        return {}

    def commit(self, repo: str, revision: str) -> dict:
        there = self.writable(repo)
        files, message = dict(there.commits[there.resolve(revision)]), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = there.write(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if not (self.hub.lfs / value["oid"]).is_file():
                    raise HubError(400, f"LFS object {value['oid']} was never uploaded")
                pointer = hashlib.sha1(value["oid"].encode()).hexdigest()
                size = (self.hub.lfs / value["oid"]).stat().st_size
                files[value["path"]] = {"oid": pointer, "size": size, "lfs": value["oid"]}
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise HubError(400, f"{key} is not served here")
        commit = there.commit(revision, files, message)
        return {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit, "success": True}

    # Downloads

    def download(self, repo: str, revision: str, path: str) -> None:
        there = self.readable(repo)
        commit = there.resolve(revision)
        file = there.commits[commit].get(path)
        if file is None:
            headers = {"X-Repo-Commit": commit, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.send(404, {"error": "Entry not found"}, headers)
        content = self.hub.content(there, file)
        first, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        last = len(content) - 1
        if wanted:
            first, status = int(wanted[1]), 206
            last = min(int(wanted[2]), last) if wanted[2] else last
        self.send_response(status)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{file["lfs"] or file["oid"]}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Type", "application/octet-stream")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[first : last + 1])
        return None


def described(path: str, file: dict) -> dict:
    """A file as the tree lists it."""
    lfs = {"oid": file["lfs"], "size": file["size"], "pointerSize": 130} if file["lfs"] else None
    return {"type": "file", "path": path, "oid": file["oid"], "size": file["size"]} | ({"lfs": lfs} if lfs else {})


Handler.routes = [
    (method, re.compile(pattern.replace("REPO", REPO)), function)
    for method, pattern, function in (
        ("GET", "/api/whoami-v2", Handler.whoami),
        ("POST", "/api/repos/create", Handler.create),
        ("POST", "/api/validate-yaml", Handler.validate_yaml),
        ("GET", "/api/models/REPO", Handler.info),
        ("GET", "/api/models/REPO/revision/(?P<revision>[^/]+)", Handler.info),
        ("GET", "/api/models/REPO/refs", Handler.refs),
        ("GET", "/api/models/REPO/auth-check/write", Handler.auth_check),
        ("POST", "/api/models/REPO/branch/(?P<name>[^/]+)", Handler.branch),
        ("GET", "/api/models/REPO/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", Handler.tree),
        ("POST", "/api/models/REPO/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
        ("POST", "/api/models/REPO/preupload/(?P<revision>[^/]+)", Handler.preupload),
        ("POST", "/api/models/REPO/commit/(?P<revision>[^/]+)", Handler.commit),
        ("POST", r"/REPO\.git/info/lfs/objects/batch", Handler.lfs_batch),
        ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
        ("GET", "/REPO/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.download),
    )
]
