"""Worker processes: jobs handed to a few of them at a time, each one's end told, whatever end that is."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from typing import Any

__all__ = ["run_jobs"]

PATIENCE = 900.0
"""Seconds for which a worker may give no sign of life: one chunk of one track, or its start, on a slow disk."""


def run_jobs(
    jobs: Sequence[dict[str, Any]], settings: dict[str, Any], *, n_jobs: int
) -> Iterator[tuple[int, str | None]]:
    """Run jobs in worker processes; yield, as each ends, its place in ``jobs`` and what went wrong, or None.

    A worker that crashes, or says nothing for 15 minutes, is replaced; the job it had is told as failed.
    """
    workers = [_Worker(settings) for _ in range(min(n_jobs, len(jobs)))]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run(job: dict[str, Any]) -> str | None:
        worker = idle.get()
        try:
            return worker.run(job)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(max(len(workers), 1))
    try:
        futures = {threads.submit(run, job): i for i, job in enumerate(jobs)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        # An interrupted build ends at once: threads that wait for a worker wake when it is gone.
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
        threads.shutdown(wait=True)
        for worker in workers:
            worker.close()


class _Worker:
    """A process that builds one track at a time; started with the first, and again after a crash."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.process: subprocess.Popen[str] | None = None
        self.complaints = tempfile.TemporaryFile()

    def run(self, job: dict[str, Any]) -> str | None:
        process = self.process or self._start()
        hung = threading.Event()
        try:
            self._send(process, job)
            reply = self._reply(process, hung)
        except BrokenPipeError:
            reply = None
        if reply is not None:
            return reply["error"]
        code = process.wait()
        self._forget()
        if hung.is_set():
            return f"the process that read it did nothing for {PATIENCE:,.0f} s and was ended: is the disk there?"
        return f"the process that read it ended {_ending(code)}{self._last_words()}"

    @staticmethod
    def _reply(process: subprocess.Popen[str], hung: threading.Event) -> dict[str, Any] | None:
        """Wait for a job's end through its signs of life; None where the process ends first, or is ended for its silence."""

        def end() -> None:
            hung.set()
            process.kill()

        while True:
            watch = threading.Timer(PATIENCE, end)
            watch.daemon = True
            watch.start()
            try:
                line = process.stdout.readline() if process.stdout else ""
            finally:
                watch.cancel()
            if not line.endswith("\n"):
                return None
            if reply := json.loads(line):
                return reply

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "xr_avocado.io.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
            encoding="utf-8",
            # One thread each: Blosc's threads would give the same blocks in another order every time.
            env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", "BLOSC_NTHREADS": "1"},
        )
        self._send(self.process, self.settings)
        return self.process

    @staticmethod
    def _send(process: subprocess.Popen[str], message: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()

    def _last_words(self) -> str:
        self.complaints.seek(0)
        lines = self.complaints.read().decode(errors="replace").strip().splitlines()
        self.complaints.seek(0)
        self.complaints.truncate()
        return f" (its last words: {lines[-1].strip()})" if lines else ""

    def _forget(self) -> None:
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                with suppress(BrokenPipeError):
                    pipe.close() if pipe is not None else None
        self.process = None

    def kill(self) -> None:
        """End the process, also amid a job."""
        if self.process is not None:
            self.process.kill()

    def close(self) -> None:
        """Let go of the process that was ended."""
        if self.process is not None:
            self.process.wait()
        self._forget()
        self.complaints.close()


def _ending(code: int) -> str:
    if code >= 0:
        return f"with status {code}"
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return "by SIGKILL, perhaps for lack of memory: try fewer n_jobs"
    return f"by {name}: the file is most likely damaged; download or write it again"
