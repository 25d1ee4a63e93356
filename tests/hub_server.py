# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A Hub on this machine: the endpoints that the real clients use, real bytes on disk, tokens checked.

It stands in for a Hub, which tests cannot reach, and not for any code under test: huggingface_hub, diffusers and
datasets talk to it over HTTP as they are, with `HF_ENDPOINT` set to its address. It can be told to fail.
"""

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0", "openrail", "other", "unknown"}
PIPELINE_TAGS = {"image-segmentation", "unconditional-image-generation"}
TASKS = PIPELINE_TAGS
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
REGULAR_LIMIT = 10 * 2**20
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png", ".jpg", ".npy", ".onnx")


@dataclass
class Failure:
    """What to do to requests instead of answering them: `times` of those that match.

    Args:
        method (`str`), path (`str`): Which requests; `path` is searched for as a regular expression.
        status (`int`, *optional*): Answer with this, or
        cut (`bool`): send the headers and half of the answer (or read half of what is uploaded), then hang up.
        call (`Callable`, *optional*): Called before that.
    """

    method: str
    path: str
    status: int | None = None
    headers: dict = field(default_factory=dict)
    cut: bool = False
    call: Callable | None = None
    times: int = 1


class LocalHub:
    """Serves repositories below `root`; `tokens` says who may do anything but read public ones.

    Args:
        root (`Path`): Where repositories are kept: blobs by SHA-256, a JSON file a commit, and one of branches.
        tokens (`dict`): User name of each token.
    """

    def __init__(self, root: Path, tokens: dict[str, str]):
        self.root, self.tokens = root, tokens
        self.roles: dict[str, str] = {}  # of the tokens, by user; "write" if not given
        self.failures: list[Failure] = []
        self.requests: list[tuple[str, str, int]] = []  # method, path, status
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        # As on the Hub, large files come from a host of another name, and clients keep their token from it.
        self.url, self.storage_url = (
            f"http://{name}:{server.server_port}" for name, server in zip(("127.0.0.1", "localhost"), self.servers)
        )
        self.threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in self.servers]

    def __enter__(self) -> "LocalHub":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exception) -> None:
        for server, thread in zip(self.servers, self.threads):
            server.shutdown()
            server.server_close()
            thread.join()

    def fail(self, method: str, path: str, **kwargs) -> Failure:
        failure = Failure(method, path, **kwargs)
        self.failures.append(failure)
        return failure

    # Repositories

    def repo(self, kind: str, name: str) -> Path:
        return self.root / kind / name

    def settings(self, kind: str, name: str) -> dict:
        return json.loads((self.repo(kind, name) / "settings.json").read_text())

    def refs(self, kind: str, name: str) -> dict:
        return json.loads((self.repo(kind, name) / "refs.json").read_text())

    def write(self, path: Path, content: dict) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1))

    def blob(self, oid: str) -> Path:
        return self.root / "blobs" / oid

    def put_blob(self, content: bytes) -> str:
        oid = hashlib.sha256(content).hexdigest()
        self.blob(oid).parent.mkdir(parents=True, exist_ok=True)
        partial = self.blob(f"{oid}.{threading.get_ident()}.partial")  # files of one content may arrive together
        partial.write_bytes(content)
        partial.replace(self.blob(oid))
        return oid

    def create(self, kind: str, name: str, private: bool = False, gated: bool = False) -> None:
        with self.lock:
            self.write(self.repo(kind, name) / "settings.json", {"private": private, "gated": gated})
            self.write(self.repo(kind, name) / "refs.json", {"branches": {}, "tags": {}})
            self.commit(kind, name, "main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, kind: str, name: str, branch: str, message: str, files: dict, deleted=()) -> str:
        """Adds a commit; files are bytes, or `(oid, size)` of what was uploaded."""
        with self.lock:
            refs = self.refs(kind, name)
            parent = refs["branches"].get(branch)
            tree = dict(self.tree(kind, name, parent)) if parent else {}
            for path in deleted:
                tree = {p: v for p, v in tree.items() if p != path and not p.startswith(path.rstrip("/") + "/")}
            for path, content in files.items():
                if isinstance(content, bytes):
                    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                    tree[path] = {"blob": self.put_blob(content), "size": len(content), "git": git, "lfs": False}
                else:
                    oid, size = content
                    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
                    git = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
                    tree[path] = {"blob": oid, "size": size, "git": git, "lfs": True}
            content = {"parent": parent, "message": message, "tree": tree}
            sha = hashlib.sha1(json.dumps(content).encode()).hexdigest()
            self.write(self.repo(kind, name) / "commits" / f"{sha}.json", content)
            refs["branches"][branch] = sha
            self.write(self.repo(kind, name) / "refs.json", refs)
            return sha

    def tree(self, kind: str, name: str, sha: str) -> dict:
        return json.loads((self.repo(kind, name) / "commits" / f"{sha}.json").read_text())["tree"]

    def resolve(self, kind: str, name: str, revision: str) -> str | None:
        refs = self.refs(kind, name)
        for named in (refs["branches"], refs["tags"]):
            if revision in named:
                return named[revision]
        return revision if (self.repo(kind, name) / "commits" / f"{revision}.json").exists() else None

    # What tests look at

    def has(self, kind: str, name: str) -> bool:
        return (self.repo(kind, name) / "settings.json").exists()

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        tree = self.tree(kind, name, self.resolve(kind, name, revision))
        return {path: self.blob(entry["blob"]).read_bytes() for path, entry in tree.items()}

    def history(self, kind: str, name: str) -> list[str]:
        """Messages of the commits of `main`, the newest first."""
        messages, sha = [], self.refs(kind, name)["branches"]["main"]
        while sha:
            commit = json.loads((self.repo(kind, name) / "commits" / f"{sha}.json").read_text())
            messages.append(commit["message"])
            sha = commit["parent"]
        return messages

    def asked(self, method: str, path: str) -> list[str]:
        """Paths of the requests that were made, of those that match."""
        return [p for m, p, _ in self.requests if m == method and re.search(path, p)]


class _Error(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    ROUTES = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("DELETE", r"/api/repos/delete", "delete_repo"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/commit/([^/]+)", "post_commit"),
        ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/paths-info/([^/]+)", "paths_info"),
        ("GET", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/tree/([^/]+)(/.*)?", "get_tree"),
        ("GET", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/refs", "get_refs"),
        ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/tag/([^/]+)", "tag"),
        ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/branch/([^/]+)", "branch"),
        ("GET", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/revision/([^/]+)", "info"),
        ("GET", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)", "info"),
        ("POST", r"/((?:datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/upload/([0-9a-f]{64})", "lfs_upload"),
        ("POST", r"/lfs/verify/([0-9a-f]{64})", "lfs_verify"),
        ("GET", r"/cdn/([0-9a-f]{64})", "cdn"),
        ("HEAD", r"/cdn/([0-9a-f]{64})", "cdn"),
        ("GET", r"/((?:datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "get_file"),
        ("HEAD", r"/((?:datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "get_file"),
    ]

    def log_message(self, *args) -> None:
        pass

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.status = 0
        path = url.path
        try:
            with self.hub.lock:
                self.failure = next(
                    (
                        f
                        for f in self.hub.failures
                        if f.times > 0 and f.method == self.command and re.search(f.path, path)
                    ),
                    None,
                )
                if self.failure:
                    self.failure.times -= 1
            if self.failure and self.failure.call:
                self.failure.call()
            if self.failure and self.failure.status:
                self.read()
                return self.send(self.failure.status, b'{"error": "told to fail"}', self.failure.headers)
            for method, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, path)
                if method == self.command and match:
                    self.user = self.check_token()
                    return getattr(self, name)(*[unquote(g) if g else g for g in match.groups()])
            raise _Error(404, f"no such endpoint: {self.command} {path}")
        except _Error as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            self.read()
            self.send(error.status, json.dumps({"error": error.message}).encode(), headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.hub.requests.append((self.command, path, self.status))

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_request

    # Reading and answering

    def read(self) -> bytes:
        if not hasattr(self, "body"):
            length = int(self.headers.get("Content-Length") or 0)
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                self.body = b"".join(parts)
            else:
                self.body = self.rfile.read(length)
        return self.body

    def handle_one_request(self) -> None:
        self.__dict__.pop("body", None)
        super().handle_one_request()

    def send(self, status: int, body: bytes = b"", headers: dict | None = None, length: int | None = None) -> None:
        self.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.failure and self.failure.cut:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.hang_up()
        else:
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def answer(self, content, status: int = 200) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def json(self) -> dict:
        return json.loads(self.read())

    # Who may do what

    def check_token(self) -> str | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        token = given.removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise _Error(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def check_repo(self, kind: str, name: str, write: bool = False) -> None:
        if not (self.hub.repo(kind, name) / "settings.json").exists():
            raise _Error(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        settings = self.hub.settings(kind, name)
        owner = name.split("/")[0]
        if settings["private"] and self.user != owner:
            raise _Error(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        if write and self.user is None:
            raise _Error(401, "Invalid username or password.")
        if write and self.user != owner:
            raise _Error(403, f"You have no right to write to {name}.")

    def sha(self, kind: str, name: str, revision: str) -> str:
        sha = self.hub.resolve(kind, name, revision)
        if sha is None:
            raise _Error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # Endpoints

    def whoami(self) -> None:
        if self.user is None:
            raise _Error(401, "Invalid username or password.")
        token = {"role": self.hub.roles.get(self.user, "write")}
        self.answer({"type": "user", "name": self.user, "auth": {"accessToken": token}, "orgs": []})

    def create_repo(self) -> None:
        given = self.json()
        if self.user is None:
            raise _Error(401, "Invalid username or password.")
        kind = given.get("type", "model") + "s"
        if kind == "spaces" and given.get("sdk") not in ("gradio", "docker", "static"):
            raise _Error(400, "A Space needs an sdk.")
        owner = given.get("organization") or self.user
        name = f"{owner}/{given['name']}"
        if owner != self.user:
            raise _Error(403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{owner}"')
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (self.hub.repo(kind, name) / "settings.json").exists():
            return self.answer({"error": "You already created this repo", "url": url}, 409)
        self.hub.create(kind, name, private=given.get("visibility") == "private" or bool(given.get("private")))
        self.answer({"url": url, "name": name, "id": name})

    def delete_repo(self) -> None:
        given = self.json()
        kind = given.get("type", "model") + "s"
        name = f"{given.get('organization') or self.user}/{given['name']}"
        self.check_repo(kind, name, write=True)
        shutil.rmtree(self.hub.repo(kind, name))
        self.answer({})

    def validate_yaml(self) -> None:
        given = self.json()
        errors = validate_card(given["content"], given["repoType"])
        self.answer({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        self.check_repo(kind, name)
        sha = self.sha(kind, name, revision)
        settings = self.hub.settings(kind, name)
        self.answer(
            {
                "_id": hashlib.sha1(name.encode()).hexdigest()[:24],
                "id": name,
                "modelId": name,
                "author": name.split("/")[0],
                "sha": sha,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "private": settings["private"],
                "gated": "manual" if settings["gated"] else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in sorted(self.hub.tree(kind, name, sha))],
            }
        )

    def entries(self, kind: str, name: str, sha: str) -> dict[str, dict]:
        entries = {}
        for path, file in sorted(self.hub.tree(kind, name, sha).items()):
            parts = path.split("/")
            for i in range(1, len(parts)):
                folder = "/".join(parts[:i])
                oid = hashlib.sha1(folder.encode()).hexdigest()
                entries[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
            entry = {"type": "file", "oid": file["git"], "size": file["size"], "path": path}
            if file["lfs"]:
                entry["lfs"] = {"oid": file["blob"], "size": file["size"], "pointerSize": 130}
            entries[path] = entry
        return entries

    def get_tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        self.check_repo(kind, name)
        entries = self.entries(kind, name, self.sha(kind, name, revision))
        folder = (folder or "").strip("/")
        if folder and folder not in entries:
            raise _Error(404, f"{folder} does not exist", "EntryNotFound")
        below = {p: e for p, e in entries.items() if not folder or p.startswith(folder + "/")}
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            depth = folder.count("/") + 1 if folder else 0
            below = {p: e for p, e in below.items() if p.count("/") == depth}
        self.answer(list(below.values()))

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        self.check_repo(kind, name)
        if "json" in self.headers.get("Content-Type", ""):
            paths = self.json()["paths"]
        else:
            paths = parse_qs(self.read().decode()).get("paths", [])
        entries = self.entries(kind, name, self.sha(kind, name, revision))
        self.answer([entries[p.strip("/")] for p in paths if p.strip("/") in entries])

    def get_refs(self, kind: str, name: str) -> None:
        self.check_repo(kind, name)
        refs = self.hub.refs(kind, name)

        def listed(named: dict, prefix: str) -> list[dict]:
            return [{"name": n, "ref": f"refs/{prefix}/{n}", "targetCommit": s} for n, s in named.items()]

        self.answer({"branches": listed(refs["branches"], "heads"), "tags": listed(refs["tags"], "tags")})

    def point(self, kind: str, name: str, where: str, label: str, revision: str) -> None:
        self.check_repo(kind, name, write=True)
        with self.hub.lock:
            refs = self.hub.refs(kind, name)
            refs[where][label] = self.sha(kind, name, revision)
            self.hub.write(self.hub.repo(kind, name) / "refs.json", refs)
        self.answer({})

    def tag(self, kind: str, name: str, revision: str) -> None:
        self.point(kind, name, "tags", self.json()["tag"], revision)

    def branch(self, kind: str, name: str, label: str) -> None:
        self.point(kind, name, "branches", label, self.json().get("startingPoint", "main"))

    def preupload(self, kind: str, name: str, revision: str) -> None:
        self.check_repo(kind, name, write=True)
        tree = self.hub.tree(kind, name, self.sha(kind, name, revision))
        files = []
        for file in self.json()["files"]:
            lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > REGULAR_LIMIT
            known = tree.get(file["path"])
            oid = known and (known["blob"] if known["lfs"] else known["git"])
            mode = "lfs" if lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": files})

    def lfs_batch(self, prefix: str | None, name: str) -> None:
        self.check_repo(prefix.rstrip("/") if prefix else "models", name, write=True)
        objects = []
        for given in self.json()["objects"]:
            entry = {"oid": given["oid"], "size": given["size"]}
            if not self.hub.blob(given["oid"]).exists():
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.storage_url}/lfs/upload/{given['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs/verify/{given['oid']}"},
                }
            objects.append(entry)
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if "Authorization" in self.headers:
            raise _Error(400, "The storage behind the Hub is not to see tokens.")
        if self.failure and self.failure.cut:
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            return self.hang_up()
        content = self.read()
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Error(400, "The content is not what was announced.")
        self.hub.put_blob(content)
        self.send(200)

    def lfs_verify(self, oid: str) -> None:
        given = self.json()
        stored = self.hub.blob(oid)
        if not stored.exists() or stored.stat().st_size != given["size"]:
            raise _Error(404, "The object was not uploaded.")
        self.send(200)

    def post_commit(self, kind: str, name: str, branch: str) -> None:
        self.check_repo(kind, name, write=True)
        self.sha(kind, name, branch)
        message, files, deleted = "", {}, []
        for line in self.read().splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                blob = self.hub.blob(value["oid"])
                if not blob.exists():
                    raise _Error(400, f"The content of {value['path']} was not uploaded.")
                files[value["path"]] = (value["oid"], blob.stat().st_size)
            elif key in ("deletedFile", "deletedFolder"):
                deleted.append(value["path"])
        sha = self.hub.commit(kind, name, branch, message, files, deleted)
        prefix = "" if kind == "models" else f"{kind}/"
        url = f"{self.hub.url}/{prefix}{name}/commit/{sha}"
        self.answer({"success": True, "commitUrl": url, "commitOid": sha, "hookOutput": ""})

    def get_file(self, prefix: str | None, name: str, revision: str, path: str) -> None:
        kind = prefix.rstrip("/") if prefix else "models"
        self.check_repo(kind, name)
        if self.hub.settings(kind, name)["gated"] and self.user != name.split("/")[0]:
            raise _Error(401 if self.user is None else 403, f"Access to {name} is restricted.", "GatedRepo")
        sha = self.sha(kind, name, revision)
        entry = self.hub.tree(kind, name, sha).get(path)
        if entry is None:
            raise _Error(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": sha}
        if entry["lfs"]:  # lies in a storage of its own, as on the Hub
            headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": f'"{entry["blob"]}"'}
            headers["Location"] = f"{self.hub.storage_url}/cdn/{entry['blob']}"
            return self.send(302, headers=headers)
        self.send_bytes(self.hub.blob(entry["blob"]).read_bytes(), headers | {"ETag": f'"{entry["git"]}"'})

    def cdn(self, oid: str) -> None:
        if "Authorization" in self.headers:
            raise _Error(400, "The storage behind the Hub is not to see tokens.")
        self.send_bytes(self.hub.blob(oid).read_bytes(), {"ETag": f'"{oid}"'})

    def send_bytes(self, content: bytes, headers: dict) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers["Accept-Ranges"] = "bytes"
        if not wanted:
            return self.send(200, content, headers, len(content))
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        if first >= len(content):
            return self.send(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
        last = min(last, len(content) - 1)
        part = content[first : last + 1]
        self.send(206, part, headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"})


def validate_card(text: str, kind: str) -> list[str]:
    """What is wrong with the metadata of a card, as far as the Hub's documentation says what is right."""
    match = re.match(r"\A---\n(.*?)\n---(\n|\Z)", text, re.DOTALL)
    if not match:
        return [] if not text.startswith("---") else ["the metadata block is not closed"]
    data = yaml.safe_load(match[1])
    errors = []

    def check(right: bool, message: str) -> None:
        if not right:
            errors.append(message)

    check(data.get("license", "other") in LICENSES, f"license: {data.get('license')} is not an identifier")
    for name in ("tags", "datasets", "metrics", "task_categories"):
        value = data.get(name, [])
        check(isinstance(value, list) and all(isinstance(v, str) for v in value), f"{name} must be a list of strings")
    for category in data.get("task_categories", []):
        check(category in TASKS, f"task_categories: {category} is unknown")
    check(data.get("pipeline_tag", "image-segmentation") in PIPELINE_TAGS, "pipeline_tag is unknown")
    if kind == "space":
        check(data.get("sdk") in ("gradio", "docker", "static"), "sdk is unknown")
        check(data.get("sdk") != "docker" or isinstance(data.get("app_port"), int), "app_port must be a number")
        for name in ("colorFrom", "colorTo"):
            check(data.get(name) in COLORS, f"{name} is unknown")
        check(len(data.get("short_description", "")) <= 60, "short_description is too long")
    if kind == "dataset":
        for dataset_config in data.get("configs", []):
            check("config_name" in dataset_config, "configs[].config_name is required")
    for dataset in data.get("datasets", []):
        check(re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", str(dataset)) is not None, f"datasets: {dataset} is no name")
    if "model-index" in data:
        check(isinstance(data["model-index"], list) and data["model-index"], "model-index must be a list")
        for i, model in enumerate(data["model-index"]):
            check(isinstance(model.get("name"), str), f"model-index[{i}].name is required")
            check(isinstance(model.get("results"), list), f"model-index[{i}].results is required")
            for j, result in enumerate(model.get("results") or []):
                where = f"model-index[{i}].results[{j}]"
                check(result.get("task", {}).get("type") in TASKS, f"{where}.task.type is unknown")
                for key in ("name", "type"):
                    check(isinstance(result.get("dataset", {}).get(key), str), f"{where}.dataset.{key} is required")
                check(bool(result.get("metrics")), f"{where}.metrics is required")
                for k, metric in enumerate(result.get("metrics") or []):
                    value = metric.get("value")
                    check(isinstance(metric.get("type"), str), f"{where}.metrics[{k}].type is required")
                    check(isinstance(value, (int, float)), f"{where}.metrics[{k}].value must be a number")
    return errors
