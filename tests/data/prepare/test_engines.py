"""Orders are done on this machine and on Ray, by the same rules."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from vjepa.data.prepare.engines import EngineName, ray_workers, run_orders
from vjepa.data.workers import Outcome
from vjepa.errors import UserError


class Work:
    """What an order can do to its worker."""

    def __call__(self, order: str) -> str:
        if order == "hang":
            time.sleep(600)
        if order == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
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


def test_ray_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'open-vjepa\[ray\]'"):
        list(run_orders("ray", Work(), [], 1, 1.0))
