"""GGUF files by hub id, against a small hub of our own: chosen, fetched, resumed, linked, or named."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ensemblehub import builtin
from ensemblehub.errors import AbsentError, ConfigError
from ensemblehub.generators import hub
from ensemblehub.generators.hub import HubModel, choose
from ensemblehub.registry import engine_for

pytest.importorskip("huggingface_hub")

REPOSITORY = "Org/Tiny-GGUF"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "README.md": b"hello",
    "tiny-q4_k_m.gguf": b"GGUF four " * 1000,
    "tiny-q8_0-00001-of-00002.gguf": b"GGUF first",
    "tiny-q8_0-00002-of-00002.gguf": b"GGUF second",
    "mmproj-tiny-q4_k_m.gguf": b"GGUF picture",
}
BIG = bytes(range(256)) * 2**18  # 64 MiB: huggingface_hub writes 10 at a time


class Hub(BaseHTTPRequestHandler):
    """Answers what `huggingface_hub` asks of one repository."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def answer(self, body=True):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/Org/Tiny-GGUF/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in self.server.files.items()
            ]
            return self.reply(json.dumps(tree).encode(), body)
        if path.startswith("/api/models/Org/Tiny-GGUF"):
            siblings = [{"rfilename": name} for name in self.server.files]
            return self.reply(
                json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode(), body
            )
        name = path.rpartition("/")[2]
        if "/Tiny-GGUF/resolve/" in path and name in self.server.files:
            return self.reply(self.server.files[name], body, name)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def reply(self, data, body, name=""):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if body and name:
            self.server.asked.append((name, start))
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{len(data):032x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            half = len(data) // 2 if name and self.server.stalls else len(data)
            self.wfile.write(data[start:half])
            if half < len(data):
                self.wfile.flush()
                self.server.stalled.set()
                time.sleep(60)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked, server.stalls, server.stalled = dict(FILES), [], False, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def pull(server, tmp_path):
    """Start `ensemblehub pull` of a file with one model."""

    def start(path, *arguments, **surroundings):
        file = tmp_path / "pair.yaml"
        file.write_text(f'model_specs: [{{name: mentor, engine: llama_cpp, path: "{path}"}}]\n')
        own = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "NO_PROXY": "127.0.0.1",
        }
        inherited = {
            key: value for key, value in os.environ.items() if key not in ("PAIR_FOLDER", "HF_HUB_OFFLINE")
        }
        return subprocess.Popen(
            [sys.executable, "-m", "ensemblehub", "pull", str(file), *arguments],
            env=inherited | own | surroundings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def done(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out.strip(), err.strip()


def test_a_file_is_fetched_once_and_found_offline(pull, server):
    code, out, err = done(pull(f"hub:{REPOSITORY}:Q4_K_M"))
    assert code == 0, err
    name, _, path = out.partition(": ")
    assert (name, Path(path).read_bytes()) == ("mentor", FILES["tiny-q4_k_m.gguf"])
    assert done(pull(REPOSITORY, HF_HUB_OFFLINE="1"))[:2] == (0, out)
    assert [name for name, _ in server.asked] == ["tiny-q4_k_m.gguf"]


def test_what_huggingface_hub_has_cached_is_used(pull, tmp_path):
    snapshot = tmp_path / "hf/hub/models--Org--Tiny-GGUF/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "tiny-q8_0.gguf").write_bytes(b"GGUF")
    refs = tmp_path / "hf/hub/models--Org--Tiny-GGUF/refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    assert done(pull(f"hub:{REPOSITORY}:Q8_0", HF_HUB_OFFLINE="1"))[1] == f"mentor: {snapshot}/tiny-q8_0.gguf"
    assert done(pull(f"hub:{REPOSITORY}:Q4_K_M", HF_HUB_OFFLINE="1"))[0] == 2


def test_all_parts_are_fetched(pull, server):
    code, out, _ = done(pull(f"{REPOSITORY}:q8_0"))
    first = Path(out.removeprefix("mentor: "))
    assert (code, first.name) == (0, "tiny-q8_0-00001-of-00002.gguf")
    assert [part.read_bytes() for part in hub.parts_of(first)] == [b"GGUF first", b"GGUF second"]


def test_a_killed_download_goes_on(pull, server):
    server.files["tiny-q4_k_m.gguf"] = BIG
    server.stalls = True
    process = pull(f"hub:{REPOSITORY}:Q4_K_M")
    assert server.stalled.wait(60)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.stalls = False
    code, out, err = done(pull(f"hub:{REPOSITORY}:Q4_K_M"))
    assert code == 0, err
    assert Path(out.removeprefix("mentor: ")).read_bytes() == BIG
    assert server.asked[-1][1] > 0


@pytest.mark.parametrize(
    ("path", "surroundings"),
    [
        (f"hub:{REPOSITORY}:Q4_K_M", {"HF_HUB_OFFLINE": "1"}),
        (f"hub:{REPOSITORY}:Q4_K_M", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
        ("hub:Org/Other-GGUF:Q4_K_M", {}),
    ],
)
def test_what_cannot_be_fetched_is_named_in_one_line(pull, path, surroundings, tmp_path):
    code, out, err = done(pull(path, **surroundings))
    name = path.split("/")[1].split("-")[0].lower()
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"ensemblehub: {path[4:-7]} is not here and cannot be fetched (")
    assert f"({name}-q4_k_m.gguf or alike)" in err
    assert err.endswith(f"at {tmp_path}/cache/ensemblehub/models/{name}/model.gguf")


def test_a_quantization_that_is_not_there_names_those_that_are(pull):
    code, _, err = done(pull(f"hub:{REPOSITORY}:Q2_K"))
    assert code == 2
    there = "there is: tiny-q4_k_m.gguf, tiny-q8_0-00001-of-00002.gguf"
    assert err == f"ensemblehub: {REPOSITORY} has no GGUF file for Q2_K; {there}"


def test_files_that_are_already_there_are_linked_or_used_in_place(pull, server, tmp_path):
    folder = tmp_path / "mine" / "tiny"
    code, _, err = done(pull(f"hub:{REPOSITORY}:Q4_K_M", "--from", str(tmp_path / "mine")))
    assert (code, err) == (
        2,
        f"ensemblehub: {folder}/model.gguf is missing: it is the Q4_K_M file of {REPOSITORY}",
    )
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"GGUF mine")
    linked = tmp_path / "cache/ensemblehub/models/tiny/model.gguf"
    for _ in range(2):
        assert (
            done(pull(f"hub:{REPOSITORY}:Q4_K_M", "--from", str(tmp_path / "mine")))[1] == f"mentor: {linked}"
        )
    assert linked.read_bytes() == b"GGUF mine"
    assert done(pull(REPOSITORY))[1] == f"mentor: {linked}"
    assert done(pull(REPOSITORY, PAIR_FOLDER=str(tmp_path / "mine")))[1] == f"mentor: {folder}/model.gguf"
    assert server.asked == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("", "a/M-Q4_K_M.gguf"),
        ("q4_k_m", "a/M-Q4_K_M.gguf"),
        ("Q4_K_S", "M.Q4_K_S.gguf"),
        ("IQ4_XS", "M-IQ4_XS.gguf"),
        ("BF16", "BF16/M-BF16-00001-of-00003.gguf"),
        ("M.Q4_K_S.gguf", "M.Q4_K_S.gguf"),
        ("M-Q4_K_M.gguf", "a/M-Q4_K_M.gguf"),
    ],
)
def test_a_quantization_names_one_file(wanted, found):
    parts = [f"BF16/M-BF16-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    names = ["a/M-Q4_K_M.gguf", "M.Q4_K_S.gguf", "M-IQ4_XS.gguf", "mmproj-M-BF16.gguf", "x.txt", *parts]
    assert choose(names, wanted, "here") == found


@pytest.mark.parametrize("wanted", ["Q4_K", "K_M", "Q4", "XS", "none.gguf", ".*"])
def test_part_of_a_name_names_no_file(wanted):
    with pytest.raises(
        ConfigError, match=r"here has no GGUF file for .*; there is: M-IQ4_XS.gguf, M-Q4_K_M.gguf$"
    ):
        choose(["M-Q4_K_M.gguf", "M-IQ4_XS.gguf"], wanted, "here")


def test_two_files_of_a_quantization_are_both_named():
    with pytest.raises(
        ConfigError, match=r"here has 2 files for Q4_K_M; there is: UD-M-Q4_K_M.gguf, a/?-?M-Q4_K_M"
    ):
        choose(["UD-M-Q4_K_M.gguf", "a-M-Q4_K_M.gguf"], "", "here")


@pytest.mark.parametrize(
    ("path", "model", "engine"),
    [
        (
            "hub:Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M",
            ("qwen2.5-coder-1.5b-instruct", "Q4_K_M"),
            "llama_cpp",
        ),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", ("qwen2.5-coder-1.5b-instruct", ""), "llama_cpp"),
        ("hub:Org/Some:Q8_0", ("some", "Q8_0"), "llama_cpp"),
        ("hub:Qwen/Qwen3-8B", ("qwen3-8b", ""), "hf"),
        ("models/some.gguf", None, "llama_cpp"),
        ("~/some.gguf", None, "llama_cpp"),
        ("Org/Some-GGUF:http://localhost:8000/v1", ("some", "http://localhost:8000/v1"), "openai"),
    ],
)
def test_what_a_path_names(path, model, engine):
    found = HubModel.named(path)
    assert (found and (found.name, found.wanted)) == model
    assert engine_for(path) == engine


def test_a_folder_is_searched_and_a_wrong_id_is_named(tmp_path, monkeypatch):
    (tmp_path / "only.gguf").write_bytes(b"GGUF")
    assert hub.gguf_file(str(tmp_path)) == tmp_path / "only.gguf"
    assert engine_for(str(tmp_path)) == "llama_cpp"
    (tmp_path / "config.json").write_text("{}")
    assert engine_for(str(tmp_path)) == "hf"  # an export of the same model
    with pytest.raises(ConfigError, match=r"'hub:x' is not of the form hub:ORGANISATION/NAME:QUANTIZATION"):
        hub.gguf_file("hub:x")
    monkeypatch.setenv("PAIR_FOLDER", str(tmp_path))
    with pytest.raises(AbsentError, match="is missing"):
        hub.adopt(HubModel("a/b"), tmp_path)


def test_every_pair_is_named():
    assert builtin.pair("qwen-coder").is_file()
    with pytest.raises(ConfigError, match="unknown pair 'qwen-codr'; did you mean 'qwen-coder'"):
        builtin.pair("qwen-codr")
