"""Probing many files at once, each in a process that may hang or crash without harm."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from queue import SimpleQueue

from vjepa.data.video.info import LimitsConfig, MediaKind, VideoInfo, info_from_json
from vjepa.data.video.inspect_worker import READY
from vjepa.errors import UserError

_START_SECONDS = 120.0
# Files handed out ahead of the one waited for, per process: keeps all busy while one is slow.
_AHEAD = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRequest:
    """One file to look into; with `deep`, every frame of it is decoded."""

    path: str
    kind: MediaKind | None = None
    image_folder_fps: float = 30.0
    deep: bool = False


class _Reader:
    """One reader process, started when needed and again after its death."""

    def __init__(self, limits: LimitsConfig, timeout_seconds: float, worker_module: str) -> None:
        self._command = [sys.executable, "-m", worker_module, json.dumps(asdict(limits))]
        self._timeout = timeout_seconds
        self._process: subprocess.Popen[str] | None = None
        self._has_expired = False
        self._is_retired = False

    def ask(self, request: ProbeRequest) -> VideoInfo:
        """Look into one file; a hang or a crash of the process is a bad file with a reason."""
        process = self._process or self._start()
        line = self._exchange(process, json.dumps(asdict(request)), self._timeout)
        if line:
            return info_from_json(json.loads(line))
        self.close()
        if self._has_expired:
            reason = f"reading it took longer than {self._timeout:g} s"
        else:
            reason = f"the decoder crashed (exit status {process.returncode})"
        return VideoInfo(path=request.path, kind=request.kind or "video", ok=False, reason=reason)

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            # A session of its own: Ctrl-C reaches only this process, which then ends its readers.
            start_new_session=True,
        )
        self._process = process
        if self._is_retired:  # the pool was left while this thread started the process
            process.kill()
        if self._exchange(process, None, _START_SECONDS).strip() != READY:
            self.close()
            raise RuntimeError(
                f"a reader process does not start; `{' '.join(self._command[1:])}` shows why"
            )
        return process

    def _exchange(self, process: subprocess.Popen[str], line: str | None, seconds: float) -> str:
        """Send a line (unless None) and read one; empty when the process died or was killed."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._has_expired = False
        timer = threading.Timer(seconds, self._expire, [process])
        timer.start()
        try:
            if line is not None:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            return ""
        finally:
            timer.cancel()
        # A reply cut short by the kill is none.
        return answer if answer.endswith("\n") else ""

    def _expire(self, process: subprocess.Popen[str]) -> None:
        self._has_expired = True
        process.kill()

    def retire(self) -> None:
        """Kill the process and any that would follow, from another thread than the reader's own."""
        self._is_retired = True
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process, if there is one, and wait for it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class ProbePool:
    """Several readers at work; a context manager that ends them all."""

    def __init__(
        self,
        workers: int,
        limits: LimitsConfig,
        timeout_seconds: float,
        worker_module: str = "vjepa.data.video.inspect_worker",
    ) -> None:
        """Prepare the pool; processes start with the first files.

        Args:
            workers: Number of reader processes, at least 1.
            limits: What a file may demand at most.
            timeout_seconds: Longest time for one file.
            worker_module: What the processes run; it must answer as probe_worker does.

        Raises:
            UserError: `workers` is below 1.
        """
        if workers < 1:
            raise UserError(f"workers: must be at least 1, got {workers}")
        self._workers = workers
        self._readers = [_Reader(limits, timeout_seconds, worker_module) for _ in range(workers)]
        self._idle: SimpleQueue[_Reader] = SimpleQueue()
        for reader in self._readers:
            self._idle.put(reader)
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="probe")

    def __enter__(self) -> ProbePool:
        """Nothing to do: readers start when needed."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End all readers, also those in the middle of a file."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for reader in self._readers:
            reader.retire()
        self._threads.shutdown(wait=True)
        for reader in self._readers:
            reader.close()

    def probe_all(self, requests: Iterable[ProbeRequest]) -> Iterator[VideoInfo]:
        """What was found in each file, in the order of the requests, which are read lazily."""
        waiting: deque[Future[VideoInfo]] = deque()
        for request in requests:
            waiting.append(self._threads.submit(self._probe, request))
            if len(waiting) >= _AHEAD * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _probe(self, request: ProbeRequest) -> VideoInfo:
        reader = self._idle.get()
        try:
            return reader.ask(request)
        finally:
            self._idle.put(reader)
