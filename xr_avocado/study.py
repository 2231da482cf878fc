"""The record of a search: an optuna study, in memory or in a file that outlives a kill."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from xr_avocado.cube import CubeError
from xr_avocado.io.atomic import file_to_write

__all__ = ["Interrupted", "interruptible", "load_optuna", "open_study", "quiet"]

logger = logging.getLogger("xr_avocado")

NAME, RECORD = "xr_avocado", "search"


def load_optuna() -> ModuleType:
    """Import optuna, or say how to install it."""
    try:
        import optuna
        import optuna.storages.journal
    except ImportError:
        raise ImportError("search needs the package optuna: pip install optuna") from None
    return optuna


@contextmanager
def open_study(optuna: ModuleType, file: str | Path | None, direction: str, asked: Mapping[str, Any]) -> Iterator[Any]:
    """Open the study in a file, or one in memory.

    A trial that was running when an earlier process was killed is marked as failed. The file is optuna's journal: JSON
    lines.

    Parameters
    ----------
    optuna
        The package.
    file
        Path; None keeps the study in memory.
    direction
        ``"minimize"`` or ``"maximize"``.
    asked
        What the search is, in JSON's types; a file goes on with the same only.

    Raises
    ------
    CubeError
        Where the file holds another search or no search, or another process writes to it.
    """
    if file is None:
        yield optuna.create_study(direction=direction)
        return
    path = file_to_write(file, "a search is")
    _check_file(path)
    with _alone(path):
        _drop_torn_line(path)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        try:
            study = optuna.load_study(study_name=NAME, storage=storage)
        except KeyError:
            study = optuna.create_study(study_name=NAME, storage=storage, direction=direction)
        held = study.user_attrs.get(RECORD)
        if held is None:
            study.set_user_attr(RECORD, asked)
        elif differing := [name for name in asked if asked[name] != held.get(name)]:
            raise CubeError(
                f"{path} holds another search: {'; '.join(_difference(name, held, asked) for name in differing)}. "
                "Go on with the same call, or give another file"
            )
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        yield study


def _difference(name: str, held: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    there, here = (record.get(name) for record in (held, asked))
    if isinstance(there, dict) and isinstance(here, dict):
        names = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
        return f"its {name} has other {', '.join(names)}"
    short = max(len(str(there)), len(str(here))) <= 80
    return f"its {name} is {there}, not {here}" if short else f"it has other {name}"


def _check_file(path: Path) -> None:
    """Raise where something else lies there; nothing and an empty file are fine."""
    if not os.path.exists(path):
        return
    try:
        with open(path, "rb") as lines:
            first = lines.readline(1 << 20)
        known = first == b"" or json.loads(first)["study_name"] == NAME
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise CubeError(f"{path} is there already and holds no search: give another file")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from the file; the lock goes with the process, however it ends."""
    with open(path, "ab") as held:
        try:
            import fcntl

            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CubeError(f"another search is writing to {path}: wait for it, or give another file") from None
        except (ImportError, OSError):
            logger.info("%s cannot be locked here: let one process at a time search with it", path)
        yield


def _drop_torn_line(path: Path) -> None:
    """Drop the line that a kill cut short, so that the next one does not run on from it."""
    with open(path, "rb+") as file:
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)


@contextmanager
def quiet(optuna: ModuleType) -> Iterator[None]:
    """Keep optuna from telling what the progress bar tells."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class Interrupted(BaseException):
    """Ctrl-C; not KeyboardInterrupt, which ``fit`` takes as the wish to keep what was learned so far."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C into ``Interrupted`` for as long as the block runs."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield
        return

    def stop(*_: Any) -> None:
        raise Interrupted

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
