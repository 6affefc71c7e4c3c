"""Orders are done on this machine and on Ray, by the same rules."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vjepa.data.prepare.stages import EngineName, ray_workers, run_orders
from vjepa.errors import UserError
from vjepa.runtime.workers import Outcome


def _starter() -> int:
    """The process whose worker this one is."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    return parent.pid


class Work:
    """What an order can do to its worker."""

    def __call__(self, order: str) -> str:
        if order == "hang":
            time.sleep(600)
        if order == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if order.startswith("end the Ray worker unless "):
            mark = Path(order.removeprefix("end the Ray worker unless "))
            if not mark.exists():
                if mark.parent.is_dir():
                    mark.write_text("it is done")
                os.kill(_starter(), signal.SIGKILL)
                time.sleep(600)
        return f"did {order}"


def _run(engine: EngineName, num_workers: int, timeout: float) -> dict[str, Outcome]:
    orders = [(f"k{n}", name) for n, name in enumerate(["a", "hang", "b", "crash", "c", "d"])]
    found = dict(run_orders(engine, Work(), orders, num_workers, timeout))
    assert sorted(found) == sorted(key for key, _ in orders)
    return found


def _check(found: dict[str, Outcome]) -> None:
    assert found["k0"].value == "did a"
    assert [found[key].kind for key in ("k1", "k3")] == ["hang", "crash"]
    assert [found[key].value for key in ("k2", "k4", "k5")] == ["did b", "did c", "did d"]


def test_a_hang_and_a_crash_cost_one_order_each() -> None:
    _check(_run("local", 2, 3.0))


def test_nothing_to_do() -> None:
    assert not list(run_orders("local", Work(), [], 2, 3.0))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray of two cores."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_raylet_start_wait_time_s"] = "300"  # noqa: SIM112 (as the engine does)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_same_on_ray(cluster: None) -> None:
    assert ray_workers() == 2
    _check(_run("ray", 2, 5.0))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_ray_worker_costs_nothing_the_first_time(cluster: None, tmp_path: Path) -> None:
    """Its order is done by another one; an order that ends two is given up, the others are done."""
    once = f"end the Ray worker unless {tmp_path / 'mark'}"
    always = f"end the Ray worker unless {tmp_path / 'no such folder' / 'mark'}"
    orders = [("a", "x"), ("once", once), ("always", always), ("b", "y")]
    found = dict(run_orders("ray", Work(), orders, 2, 60.0))
    assert found["once"].value == f"did {once}"
    assert (found["always"].kind, found["always"].reason) == ("crash", "two Ray workers died of it")
    assert [found[key].value for key in ("a", "b")] == ["did x", "did y"]


def test_ray_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'open-vjepa\[ray\]'"):
        list(run_orders("ray", Work(), [], 1, 1.0))
