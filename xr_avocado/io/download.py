"""Files fetched over HTTP into a cache: checked against a checksum, whole or absent, and taken up where a download broke off."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from xr_avocado.io.atomic import local_path

__all__ = ["DownloadError", "Remote", "cache_folder", "fetch", "get_json"]

ATTEMPTS = 5
WAIT = 1.0
"""Seconds before the second attempt; each further one waits twice as long."""
TIMEOUT = 60
"""Seconds of silence after which a connection counts as broken."""
PIECE = 1 << 16
"""Bytes written at a time; of a connection that breaks, what is less is lost."""
LARGEST_JSON = 1 << 24
BUSY = {408, 425, 429, 500, 502, 503, 504}
"""HTTP answers that another attempt may get past."""


class DownloadError(OSError):
    """A file that could not be fetched; nothing half-written lies under its name."""


@dataclass(frozen=True)
class Remote:
    """A file to fetch: its name in the cache, where it is, its checksum (``md5:...``, or sha256) and, where known, its size in bytes."""

    name: str
    url: str
    checksum: str
    size: int | None = None


def cache_folder(cache: str | os.PathLike[str] | None) -> Path:
    """Settle where files are kept: the folder given, or the one of the environment variable ``XR_AVOCADO_CACHE``, or the system's."""
    import pooch

    return local_path(cache or os.environ.get("XR_AVOCADO_CACHE") or pooch.os_cache("xr_avocado"), "downloads are")


def fetch(remote: Remote, folder: Path, *, progress: bool) -> Path:
    """Fetch a file unless it is there already, whole.

    What has come of a file stays beside its place, as ``.NAME.part``, when the connection breaks; the next attempt, or the next call,
    asks for the rest alone. Only a file with the right checksum takes its name. Holds 64 kB in memory.

    Raises
    ------
    DownloadError
        Where the file cannot be had, what came has another checksum, or the disk has too little room.
    """
    import pooch
    import requests

    target = folder / remote.name
    part = target.with_name(f".{target.name}.part")

    def bring(url: str, output_file: str, _: Any) -> None:
        _complete(remote, part, progress=progress)
        os.replace(part, output_file)

    if remote.size is not None and target.is_file() and target.stat().st_size == remote.size:
        # It was checked when it took its name; to do so again takes seconds a gigabyte.
        return target
    goes_on = part.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _quiet():
            return Path(pooch.retrieve(remote.url, remote.checksum, remote.name, folder, downloader=bring))
    except DownloadError:
        raise
    except requests.RequestException as error:
        raise DownloadError(_broken_off(remote, part, target, error)) from None
    except ValueError:
        # What came had left its place before it was checked, so that another attempt begins anew.
        if goes_on:
            return fetch(remote, folder, progress=progress)
        raise DownloadError(
            f"{remote.url} does not have the checksum {remote.checksum}, so what came was thrown away. Call again; if it happens again, "
            f"the file has changed, or something on the way changes it: {_by_hand(target)}"
        ) from None
    except OSError as error:
        raise DownloadError(f"{target} cannot be written ({error}); give another folder with cache=") from None


def get_json(url: str) -> Any:
    """Get a small JSON document, with as many attempts as a file."""
    import requests

    def attempt() -> Any:
        with requests.get(url, timeout=TIMEOUT, stream=True) as answer:
            answer.raise_for_status()
            return json.loads(b"".join(islice(answer.iter_content(PIECE), LARGEST_JSON // PIECE)))

    try:
        return _attempts(attempt)
    except (requests.RequestException, ValueError) as error:
        raise DownloadError(
            f"{url} cannot be read ({error}): check the connection and call again, or set XR_AVOCADO_CACHE to a folder that has "
            "the files already"
        ) from None


def _complete(remote: Remote, part: Path, *, progress: bool) -> None:
    """Fetch what is missing of a file, attempt after attempt."""
    held = part.stat().st_size if part.exists() else 0
    missing = None if remote.size is None else max(0, remote.size - held)
    if missing and missing > (free := shutil.disk_usage(part.parent).free):
        raise DownloadError(
            f"{remote.name} needs {missing:,} more bytes, and {part.parent} has {free:,} free: make room, or give another folder with cache="
        )
    bar = tqdm(total=remote.size, desc=remote.name, unit="B", unit_scale=True, unit_divisor=1000, disable=not progress)
    with bar:
        _attempts(lambda: _rest(remote, part, bar))


def _rest(remote: Remote, part: Path, bar: Any) -> None:
    """Ask for what follows the part that is there, and add it; from the start where the server gives the whole."""
    import requests

    held = part.stat().st_size if part.exists() else 0
    if remote.size is not None and held >= remote.size:
        bar.update(held - bar.n)
        return
    asked = {"Range": f"bytes={held}-"} if held else {}
    # Compressed on the way, bytes would be counted otherwise than they are kept.
    with requests.get(
        remote.url, headers={"Accept-Encoding": "identity", **asked}, timeout=TIMEOUT, stream=True
    ) as answer:
        if held and answer.status_code == 416:
            part.unlink()
            raise requests.ConnectionError("the server has no more of the file than is here; beginning anew")
        answer.raise_for_status()
        goes_on = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {held}-")
        held = held if goes_on else 0
        bar.update(held - bar.n)
        with open(part, "ab" if goes_on else "wb") as file:
            for piece in answer.iter_content(PIECE):
                held += len(piece)
                if remote.size is not None and held > remote.size:
                    raise DownloadError(f"{remote.url} is longer than the {remote.size:,} bytes it should have")
                file.write(piece)
                bar.update(len(piece))
    if remote.size is not None and held < remote.size:
        raise requests.ConnectionError(f"the connection ended after {held:,} of {remote.size:,} bytes")


def _attempts(attempt: Callable[[], Any]) -> Any:
    """Call until it succeeds, as often as makes sense."""
    import requests

    for i in range(ATTEMPTS):
        try:
            return attempt()
        except (requests.RequestException, ValueError) as error:
            answer = getattr(error, "response", None)
            if i == ATTEMPTS - 1 or (answer is not None and answer.status_code not in BUSY):
                raise
            logging.getLogger("xr_avocado").info("%s; attempt %d of %d follows", error, i + 2, ATTEMPTS)
            time.sleep(WAIT * 2**i)
    raise AssertionError


def _broken_off(remote: Remote, part: Path, target: Path, error: Exception) -> str:
    answer = getattr(error, "response", None)
    if answer is not None and answer.status_code not in BUSY:
        return f"{remote.url} cannot be fetched: {error}. If it has moved, {_by_hand(target)}"
    held = part.stat().st_size if part.exists() else 0
    of = "" if remote.size is None else f" of {remote.size:,}"
    kept = f"the next call goes on after the {held:,}{of} bytes that came" if held else "nothing of it came"
    return (
        f"{remote.url} cannot be fetched after {ATTEMPTS} attempts: {error}. Check the connection and call again: {kept}. "
        f"Or {_by_hand(target)}"
    )


def _by_hand(target: Path) -> str:
    return f"fetch it by other means and put it at {target}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pooch from printing what the progress bar shows."""
    import pooch

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
