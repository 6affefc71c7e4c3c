"""The worker pool: answers, hangs, deaths, errors, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vjepa.errors import UserError
from vjepa.runtime import workers
from vjepa.runtime.workers import Outcome, WorkerPool


def _task(job: tuple[str, Any]) -> Any:
    """What the tests' workers do; runs in a worker process."""
    name, value = job
    if name == "double":
        return 2 * value
    if name == "whoami":
        return os.getpid()
    if name == "block":  # inside the system, as a decoder on a dead disk
        Path(value).read_bytes()
    if name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "die once":
        if not Path(value).exists():
            Path(value).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "second time"
    if name == "large":
        return b"x" * value
    if name == "slow":
        for _ in range(value):
            time.sleep(0.05)
            workers.going_on()
        return "done"
    if name == "train":
        from tests.training.toy import ToyData, make_trainer, short_optim

        class Endless(ToyData):
            def batches(self, start_step: int, stop_step: int) -> Iterator[Any]:
                for batch in super().batches(start_step, stop_step):
                    Path(value).touch()
                    time.sleep(0.01)
                    yield batch

        make_trainer(None, Endless(), optim=short_optim(100_000)).fit()
    if name == "fail":
        raise KeyError("a mistake in the program")
    return None


@pytest.fixture
def new_pool() -> Iterator[Callable[..., WorkerPool]]:
    made: list[WorkerPool] = []

    def new(num_workers: int, timeout_seconds: float = 60.0) -> WorkerPool:
        made.append(WorkerPool(_task, num_workers, timeout_seconds))
        return made[-1]

    yield new
    for pool in made:
        pool.close()


@pytest.fixture
def pool(new_pool: Callable[..., WorkerPool]) -> WorkerPool:
    return new_pool(2)


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    """A file that blocks whoever reads it."""
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


def _finish(pool: WorkerPool, count: int) -> dict[int, Outcome]:
    found: dict[int, Outcome] = {}
    deadline = time.monotonic() + 600
    while len(found) < count and time.monotonic() < deadline:
        for outcome in pool.wait(5.0):
            assert outcome.ticket not in found
            found[outcome.ticket] = outcome
    assert len(found) == count
    return found


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_job_is_answered_once(pool: WorkerPool) -> None:
    tickets = {pool.submit(("double", number)): number for number in range(50)}
    tickets[pool.submit(("double", b"x" * 20_000))] = b"x" * 20_000
    for ticket, outcome in _finish(pool, 51).items():
        assert outcome.kind == "done"
        assert outcome.value == 2 * tickets[ticket]
    assert len(pool.worker_ids) == 2


def test_a_job_that_blocks_costs_its_worker_and_nothing_else(new_pool, pipe: str) -> None:
    pool = new_pool(1, timeout_seconds=1.5)
    whoami = pool.submit(("whoami", None))
    first = _finish(pool, 1)[whoami].value
    stuck = pool.submit(("block", pipe))
    others = [pool.submit(("double", number)) for number in range(3)]
    found = _finish(pool, 4)
    assert found[stuck].kind == "hang"
    assert "1.5 s" in found[stuck].reason
    assert [found[ticket].value for ticket in others] == [0, 2, 4]
    assert not _is_running(first)
    assert first not in pool.worker_ids


def test_a_job_whose_worker_dies_is_tried_once_more(
    pool: WorkerPool, tmp_path: Path, caplog
) -> None:
    unlucky = pool.submit(("die once", str(tmp_path / "flag")))
    deadly = pool.submit(("die", None))
    others = [pool.submit(("double", number)) for number in range(4)]
    found = _finish(pool, 6)
    assert found[unlucky] == Outcome(unlucky, "done", "second time")
    assert found[deadly].kind == "crash"
    assert "SIGKILL (out of memory?)" in found[deadly].reason
    assert [found[ticket].value for ticket in others] == [0, 2, 4, 6]
    assert caplog.text.count("it is replaced") == 3
    assert "die once" in caplog.text


def test_a_worker_that_is_killed_in_the_middle_of_its_answer_is_replaced(new_pool) -> None:
    """Who computes meanwhile leaves the answer in the pipe, half of it sent."""
    pool = new_pool(1)
    ticket = pool.submit(("large", 50_000_000))
    while not (pool._workers and pool._workers[0].jobs):
        pool.wait(0.05)
    assert pool._workers[0].pipe.poll(600.0)
    time.sleep(1.0)  # the pipe is full and the worker waits
    os.kill(pool.worker_ids[0], signal.SIGKILL)
    outcome = _finish(pool, 1)[ticket]
    assert len(outcome.value) == 50_000_000


def test_an_answer_without_the_memory_for_it_is_a_failure_of_that_job_alone() -> None:
    pool = WorkerPool(_task, 1, 60.0, memory_gigabytes=0.2)
    jobs = [("large", 150_000_000), ("large", 10**10), ("double", 4)]
    found = [outcome for _, outcome in pool.map(jobs, 1)]
    pool.close()
    assert [outcome.kind for outcome in found] == ["crash", "crash", "done"]
    assert found[0].reason == "it takes more than the 0.2 GB of a worker process"
    assert found[2].value == 8


def test_a_job_that_goes_on_may_take_longer(new_pool) -> None:
    ((_, outcome),) = new_pool(1, timeout_seconds=4.0).map([("slow", 100)], ahead=1)
    assert outcome.value == "done"  # after 5 seconds


def test_a_worker_that_trains_ends_without_a_word(
    new_pool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A signal to all processes of a job, such as a probe's in the demonstration."""
    pool = new_pool(1)
    pool.submit(("train", str(tmp_path / "trains")))
    while not (tmp_path / "trains").exists():
        pool.wait(0.05)
    (worker,) = pool.worker_ids
    os.kill(worker, signal.SIGTERM)
    deadline = time.monotonic() + 600
    while pool.worker_ids == [worker] and time.monotonic() < deadline:
        pool.wait(0.05)
    assert pool.worker_ids != [worker]
    assert "Traceback" not in capfd.readouterr().err


def _server_of(worker: int) -> int:
    return int(Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_what_is_sent_to_all_processes_of_a_job_is_their_parents_to_handle(
    new_pool, number: signal.Signals
) -> None:
    pool = new_pool(1)
    pool.submit(("whoami", None))
    worker = _finish(pool, 1)[0].value
    for process in (worker, _server_of(worker)):
        os.kill(process, number)
    pool.submit(("whoami", None))
    assert _finish(pool, 1)[1].value == worker


def test_an_idle_worker_that_is_killed_is_replaced(pool: WorkerPool) -> None:
    pool.submit(("double", 1))
    _finish(pool, 1)
    victim = pool.worker_ids[0]
    os.kill(victim, signal.SIGKILL)
    while _is_running(victim):
        time.sleep(0.01)
    tickets = [pool.submit(("double", number)) for number in range(6)]
    found = _finish(pool, 6)
    assert [found[ticket].value for ticket in tickets] == [0, 2, 4, 6, 8, 10]
    assert victim not in pool.worker_ids


def test_a_mistake_in_the_task_is_not_taken_for_bad_data(pool: WorkerPool) -> None:
    pool.submit(("fail", "a whole batch " * 10_000))
    with pytest.raises(
        RuntimeError, match=r"(?s)test_workers.py.*KeyError: 'a mistake in the"
    ) as error:
        _finish(pool, 1)
    first = str(error.value).splitlines()[0]
    assert "failed at ('fail', 'a whole batch" in first
    assert len(first) < 300


def test_a_waiting_job_can_be_put_first(new_pool) -> None:
    pool = new_pool(1)
    tickets = [pool.submit(("double", number)) for number in range(3)]
    urgent = pool.submit(("double", 9), first=True)
    assert list(_finish(pool, 4)) == [urgent, *tickets]


def test_cancel_forgets_jobs_and_close_leaves_no_process(pipe: str) -> None:
    pool = WorkerPool(_task, 2, timeout_seconds=60.0)
    pool.submit(("double", 1))
    _finish(pool, 1)
    pool.submit(("block", pipe))
    pool.submit(("double", 2))
    pool.wait(0.2)
    known = pool.worker_ids
    pool.cancel()
    again = pool.submit(("double", 3))
    assert _finish(pool, 1)[again].value == 6
    known += pool.worker_ids
    pool.close()
    assert not any(_is_running(process) for process in known)
    assert pool.worker_ids == []


def test_a_worker_that_is_killed_while_it_starts_is_replaced(
    monkeypatch, tmp_path: Path, caplog
) -> None:
    monkeypatch.setattr(workers, "_serve", _die_at_the_first_start)
    with closing(WorkerPool(partial(_die_once, str(tmp_path / "flag")), 1, 60.0)) as pool:
        pool.submit(21)
        assert _finish(pool, 1)[0].value == 42
    assert "killed by SIGKILL (out of memory?) while it started; it is replaced" in caplog.text


def test_workers_that_are_always_killed_while_they_start_are_a_clear_error(
    pool: WorkerPool, monkeypatch
) -> None:
    monkeypatch.setattr(workers, "_serve", _die_at_once)
    pool.submit(("double", 1))
    with pytest.raises(UserError, match=r"cannot start \(.*SIGKILL.*6 in a row\).*num_workers 0"):
        _finish(pool, 1)


def test_the_death_of_the_server_costs_no_job(new_pool, pipe: str) -> None:
    """Nobody can tell any more how its workers end: they must not write beside their successors."""
    pool = new_pool(1)
    stuck = pool.submit(("block", pipe))
    _wait_until_busy(pool)
    for _ in range(2):  # a worker that died of it would be blamed for the second time
        (worker,) = pool.worker_ids
        os.kill(_server_of(worker), signal.SIGKILL)
        while pool.worker_ids == [worker]:
            assert not pool.wait(0.05)
        while _is_running(worker):  # its files are closed, and its end is not told yet
            time.sleep(0.01)
        _wait_until_busy(pool)
    Path(pipe).write_bytes(b"at last")
    assert _finish(pool, 1)[stuck].kind == "done"


def _wait_until_busy(pool: WorkerPool) -> None:
    while not (pool._workers and pool._workers[0].jobs):
        assert not pool.wait(0.05)


def _die_once(flag: str, value: int) -> int:
    return 2 * value


def _die_at_the_first_start(pipe: Any, task: Any, memory_gigabytes: float) -> None:
    flag = Path(task.args[0])
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    workers._serve(pipe, task, memory_gigabytes)


def _die_at_once(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_cannot_start_are_a_clear_error(pool: WorkerPool, monkeypatch) -> None:
    monkeypatch.setattr(workers, "_serve", _leave_at_once)
    pool.submit(("double", 1))
    with pytest.raises(UserError, match=r"could not start .* with num_workers 0"):
        _finish(pool, 1)


def test_a_machine_that_allows_no_processes_is_a_clear_error(pool: WorkerPool, monkeypatch) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", refuse)
    pool.submit(("double", 1))
    with pytest.raises(UserError, match=r"cannot start \(.*Too many open files\).*num_workers 0"):
        _finish(pool, 1)


def _leave_at_once(*_: object) -> None:
    sys.exit(3)


def test_workers_end_with_a_parent_that_is_killed(pipe: str, tmp_path: Path) -> None:
    """Also when they are inside a call that does not come back."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from vjepa.runtime.workers import WorkerPool

            if __name__ == "__main__":
                pool = WorkerPool(Path.read_bytes, 2, 60.0)
                pool.submit(Path(__file__))
                while not pool.wait(5.0):
                    pass
                pool.submit(Path(sys.argv[1]))
                pool.wait(0.2)
                print(*pool.worker_ids, flush=True)
                pool.wait(60.0)
            """
        )
    )
    with subprocess.Popen(
        [sys.executable, str(script), pipe], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        known = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert known
    deadline = time.monotonic() + 600
    while any(_is_running(process) for process in known) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_is_running(process) for process in known)


@pytest.mark.parametrize("in_order", [True, False])
def test_map_answers_every_payload(pool: WorkerPool, in_order: bool, tmp_path: Path) -> None:
    payloads = [("double", number) for number in range(20)]
    payloads[3:3] = [("die", None), ("die once", str(tmp_path / "flag"))]
    found = list(pool.map(payloads, 5, in_order))
    if in_order:
        assert [payload for payload, _ in found] == payloads
    by_payload = dict(found)
    assert by_payload.keys() == set(payloads)
    assert by_payload[("die", None)].kind == "crash"
    assert by_payload[("die", None)].exit_code == -signal.SIGKILL
    assert all(by_payload[(name, n)].value == 2 * n for name, n in payloads if name == "double")


def test_map_reads_an_endless_stream_no_further_than_ahead(pool: WorkerPool) -> None:
    read: list[int] = []

    def endless() -> Iterator[tuple[str, int]]:
        while True:
            read.append(len(read))
            yield "double", read[-1]

    mapped = pool.map(endless(), 3)
    assert [next(mapped)[1].value for _ in range(4)] == [0, 2, 4, 6]
    assert len(read) <= 4 + 3
    mapped.close()  # what it had handed out is forgotten, or its answer is
    again = [outcome.value for _, outcome in pool.map([("double", 21), ("double", 4)], 2)]
    assert again == [42, 8]


def test_map_raises_a_mistake_in_the_task(pool: WorkerPool) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)KeyError: 'a mistake in the program"):
        list(pool.map([("double", 1), ("fail", None)], 2))


def test_map_without_workers_works_here(new_pool) -> None:
    found = list(new_pool(0).map(iter([("whoami", None), ("double", 3)]), 1))
    assert [outcome.value for _, outcome in found] == [os.getpid(), 6]
