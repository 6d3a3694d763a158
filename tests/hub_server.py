"""A stand-in for the Hugging Face hub: a server in this process, at the addresses that huggingface_hub asks.

It keeps repositories of models in memory: branches, commits, files in git and files in LFS. Tokens say who
may write where.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
# What the hub keeps outside of git.
LARGE = (".safetensors", ".pt", ".model")


@dataclass
class Repository:
    """Its commits by id, and its branches."""

    files: Files
    private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", self.files, "initial commit")

    def commit(self, branch: str, files: Files, message: str) -> str:
        told = [branch, message, len(self.commits), {name: blob(content) for name, content in files.items()}]
        commit = hashlib.sha1(json.dumps(told, sort_keys=True).encode()).hexdigest()
        self.commits[commit], self.messages[commit] = dict(files), message
        self.branches[branch] = commit
        return commit

    @property
    def newest(self) -> Files:
        return self.commits[self.branches["main"]]


@dataclass
class Hub:
    """`tokens` says whose repositories a token may write, `asked` is every request."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=lambda: {"hf_mine": "me"})
    asked: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    address: str = ""

    def fetched(self) -> list[str]:
        """The names of the files that were downloaded."""
        found = [each.removeprefix("GET ") for each in self.asked if each.startswith("GET ")]
        return [path.rpartition("/")[2] for path in found if "/resolve/" in path]


def blob(content: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith(LARGE)


class RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", **told: Any) -> None:
        super().__init__(code)
        self.status, self.code, self.told = status, code, told


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        content = self.body()
        try:
            status, answer, headers = 200, *self.route(path, content)
        except RefusedError as refused:
            status = refused.status
            answer = json.dumps({"error": refused.code, **refused.told}).encode()
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.code}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def route(self, path: str, content: bytes) -> tuple[bytes, dict[str, str]]:
        """The answer, and its headers."""
        if path.startswith("/lfs/"):
            return self.store(path.removeprefix("/lfs/"), content), {}
        if path == "/api/validate-yaml":
            return told(errors=[], warnings=[])
        if path == "/api/repos/create":
            return self.create(json.loads(content))
        _, *parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            repository = self.repository("/".join(parts[2:4]))
            return self.api(repository, "/".join(parts[2:4]), parts[4:], content)
        owner, name, *rest = parts
        if rest[:1] == ["resolve"]:
            return self.resolve(self.repository(f"{owner}/{name}"), rest[1], "/".join(rest[2:]))
        if rest == ["info", "lfs", "objects", "batch"]:
            self.may_write(f"{owner}/{name}")
            return told(objects=[self.upload(each) for each in json.loads(content)["objects"]])
        raise RefusedError(404)

    def repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.owner() != name.partition("/")[0]):
            raise RefusedError(404 if self.owner() else 401, "RepoNotFound")
        return found

    def owner(self) -> str | None:
        """Who asks."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise RefusedError(401, "Invalid credentials")
        return self.hub.tokens.get(token)

    def may_write(self, name: str) -> None:
        owner = self.owner()
        if owner is None:
            raise RefusedError(401, "Invalid username or password.")
        if owner != name.partition("/")[0]:
            raise RefusedError(403, "You do not have the rights to create a model under this namespace.")

    def create(self, wanted: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        name = f"{wanted['organization']}/{wanted['name']}"
        self.may_write(name)
        url = f"{self.hub.address}/{name}"
        if name in self.hub.repositories:
            raise RefusedError(409, "You already created this model repo", url=url)
        is_private = wanted.get("visibility") == "private" or wanted.get("private", False)
        self.hub.repositories[name] = Repository({".gitattributes": b""}, private=is_private)
        return told(url=url, name=name)

    def api(
        self, found: Repository, name: str, rest: list[str], content: bytes
    ) -> tuple[bytes, dict[str, str]]:
        what, revision = (rest[0], "/".join(rest[1:])) if rest else ("revision", "main")
        if what == "branch":
            self.may_write(name)
            found.branches[revision] = found.branches["main"]
            return told()
        if what == "tree" and len(rest) > 2:  # of a folder; here are none
            raise RefusedError(404, "EntryNotFound")
        commit = found.branches.get(revision, revision)
        if commit not in found.commits:
            raise RefusedError(404, "RevisionNotFound")
        files = found.commits[commit]
        if what == "revision":
            listed = [{"rfilename": name} for name in files]
            return told(id=name, sha=commit, siblings=listed, private=found.private, tags=[])
        if what == "tree":
            return json.dumps([self.entry(*each) for each in files.items()]).encode(), {}
        self.may_write(name)
        if what == "preupload":
            return told(files=[self.mode(each, files) for each in json.loads(content)["files"]])
        assert what == "commit", self.path
        changed, message = self.changed(files, content)
        commit = found.commit(revision, changed, message)
        url = f"{self.hub.address}/{name}/commit/{commit}"
        return told(commitUrl=url, commitOid=commit, success=True)

    def entry(self, name: str, content: bytes) -> dict[str, Any]:
        about = {"type": "file", "path": name, "size": len(content), "oid": blob(content)}
        if is_large(name):
            digest = hashlib.sha256(content).hexdigest()
            about["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return about

    def mode(self, file: dict[str, Any], files: Files) -> dict[str, Any]:
        name = file["path"]
        there = None
        if name in files:
            content = files[name]
            there = hashlib.sha256(content).hexdigest() if is_large(name) else blob(content)
        mode = "lfs" if is_large(name) else "regular"
        return {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": there}

    def upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        about = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.hub.large:
            return about
        return {**about, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{wanted['oid']}"}}}

    def store(self, digest: str, content: bytes) -> bytes:
        assert self.command == "PUT"
        if hashlib.sha256(content).hexdigest() != digest:
            raise RefusedError(400, "the content is another one")
        self.hub.large[digest] = content
        return b""

    def changed(self, files: Files, content: bytes) -> tuple[Files, str]:
        """The files after the operations of a commit, and its message."""
        after, message = dict(files), ""
        for line in map(json.loads, content.splitlines()):
            kind, value = line["key"], line["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                after[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                after[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert kind == "deletedFile", line
                del after[value["path"]]
        return after, message

    def resolve(self, found: Repository, revision: str, name: str) -> tuple[bytes, dict[str, str]]:
        commit = found.branches.get(revision, revision)
        if name not in found.commits[commit]:
            raise RefusedError(404, "EntryNotFound")
        content = found.commits[commit][name]
        tag = hashlib.sha256(content).hexdigest() if is_large(name) else blob(content)
        return content, {"ETag": f'"{tag}"', "X-Repo-Commit": commit}

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def told(**values: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(values).encode(), {"Content-Type": "application/json"}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, reachable at its `address`."""
    handler = type("OwnHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
