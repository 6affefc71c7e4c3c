"""Orders are done on this machine and on Ray, by the same rules; answers outlive the process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.prepare.config import (
    Order,
    Part,
    PrepareConfig,
    PreparedInputs,
    ShardConfig,
    TrimConfig,
)
from vjepa.data.prepare.matching import Removal
from vjepa.data.prepare.stages import Workplace, encode_all
from vjepa.data.prepare.storing import PLAN, PreparedVideo, Store
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError
from vjepa.runtime.files import JsonLines
from vjepa.runtime.ray_engine import EngineName, ray_map
from vjepa.runtime.workers import Outcome


def _starter() -> int:
    """The process whose worker this one is."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    return parent.pid


class Work:
    """What an order can do to its worker."""

    def __call__(self, order: Order) -> dict[str, str]:
        what = order.info.path
        if what == "hang":
            time.sleep(600)
        if what == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if what.startswith("end the Ray worker unless "):
            mark = Path(what.removeprefix("end the Ray worker unless "))
            if not mark.exists():
                if mark.parent.is_dir():
                    mark.write_text("it is done")
                os.kill(_starter(), signal.SIGKILL)
                time.sleep(600)
        return {"did": what}


def _orders(*names: str) -> list[Order]:
    return [Order(f"k{n}", VideoInfo(path=name), Part()) for n, name in enumerate(names)]


def _run(engine: EngineName, timeout: float, *names: str) -> dict[str, Outcome]:
    place = Workplace(Path("nowhere"), engine, 2, timeout)
    found = [(order.info.path, outcome) for order, outcome in place.run(Work(), _orders(*names))]
    assert sorted(name for name, _ in found) == sorted(names)
    return dict(found)


def _check(found: dict[str, Outcome]) -> None:
    assert [found[name].kind for name in ("hang", "crash")] == ["hang", "crash"]
    assert [found[name].value for name in "abcd"] == [{"did": name} for name in "abcd"]


_ALL = ("a", "hang", "b", "crash", "c", "d")


def test_a_hang_and_a_crash_cost_one_order_each() -> None:
    _check(_run("local", 3.0, *_ALL))


def test_nothing_to_do() -> None:
    assert not _run("local", 3.0)


def test_what_is_noted_is_not_done_again(tmp_path: Path, capsys) -> None:
    place = Workplace(tmp_path, "local", 1, 60.0)

    def do(*names: str) -> dict:
        orders = {order.key: lambda o=order: o for order in _orders(*names)}
        return place.do_all("work", "a.jsonl", Work(), orders)

    expected = {"k0": {"did": "a"}, "k1": {"did": "b"}}
    assert do("a", "b") == expected
    assert do("crash", "crash") == expected, "known by their keys"
    assert capsys.readouterr().err == 2 * "work: 2/2 (100 %)\n"
    found = do("a", "b", "crash")
    assert "killed by SIGKILL" in found["k2"]["failed"]
    assert "work: 3/3 (100 %), 1 bad" in capsys.readouterr().err


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
    _check(_run("ray", 5.0, *_ALL))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_ray_worker_costs_nothing_the_first_time(cluster: None, tmp_path: Path) -> None:
    """Its order is done by another one; an order that ends two is given up, the others are done."""
    once = f"end the Ray worker unless {tmp_path / 'mark'}"
    always = f"end the Ray worker unless {tmp_path / 'no such folder' / 'mark'}"
    found = _run("ray", 60.0, "x", once, always, "y")
    assert found[once].value == {"did": once}
    assert (found[always].kind, found[always].reason) == ("crash", "two Ray workers died of it")
    assert [found[name].value for name in ("x", "y")] == [{"did": "x"}, {"did": "y"}]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_with_room_for_fewer_workers_does_all(cluster: None) -> None:
    """Workers that never come hold no order back."""
    place = Workplace(Path("nowhere"), "ray", 4, 60.0)
    names = [f"{n}" for n in range(8)]
    found = {order.info.path: outcome for order, outcome in place.run(Work(), _orders(*names))}
    assert {name: outcome.value for name, outcome in found.items()} == {
        name: {"did": name} for name in names
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_that_ray_kills_for_its_memory_is_a_lost_one(
    cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ray = pytest.importorskip("ray")
    get, answers = ray.get, []

    def first_is_killed(reference: object) -> object:
        answers.append(value := get(reference))
        if len([one for one in answers if one is not None]) == 1 and value is not None:
            raise ray.exceptions.OutOfMemoryError("2 workers were killed\nMemory on the node was")
        return value

    monkeypatch.setattr(ray, "get", first_is_killed)
    found = _run("ray", 60.0, "x", "y")
    assert {name: outcome.value for name, outcome in found.items()} == {
        name: {"did": name} for name in ("x", "y")
    }
    assert "a Ray worker was lost: 2 workers were killed" in caplog.text


def _make_mistaken(number: int):
    def mistaken(payload: str) -> str:
        raise KeyError(f"a mistake at {payload}")

    return mistaken


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_mistake_on_ray_is_raised(cluster: None) -> None:
    with pytest.raises(KeyError, match="a mistake at x"):
        list(ray_map(_make_mistaken, ["x"], 1))


def test_ray_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"needs ray: pip install 'open-vjepa\[ray\]'"):
        _run("ray", 1.0)


def _encoded(info: VideoInfo, monkeypatch: pytest.MonkeyPatch) -> dict[str, Order]:
    """The orders to encode a video in windows of 0.4 s, by key; none is carried out."""
    found: dict[str, Order] = {}

    def do_none(self: Workplace, what: str, name: str, task: object, orders: dict) -> dict:
        found.update({key: make() for key, make in orders.items()})
        return {key: {"failed": "not done"} for key in orders}

    monkeypatch.setattr(Workplace, "do_all", do_none)
    config = PrepareConfig(trim=TrimConfig(window_seconds=0.4, min_seconds=0.0))
    rows = Manifest.from_rows([ManifestRow(info=info)], "/v")
    inputs = PreparedInputs([rows], config.trim)
    place = Workplace(Path("/nowhere"), "local", 1, 1.0)
    encode_all(inputs, Removal(inputs, config.match), config, place)
    return found


def test_windows_are_keyed_by_the_frame_rate_and_an_image_is_none(monkeypatch) -> None:
    info = VideoInfo(path="/v/frames", kind="image_folder", fps=30.0, duration_seconds=1.0)
    first = _encoded(info, monkeypatch)
    assert len(first) == 3
    assert not first.keys() & _encoded(replace(info, fps=10.0), monkeypatch).keys()
    image = VideoInfo(path="/v/a.png", kind="image", fps=1.0, duration_seconds=1.0)
    assert [order.part for order in _encoded(image, monkeypatch).values()] == [Part()]


def _noted(file: Path) -> dict:
    """The answers that a run with nothing new to do finds."""
    return Workplace(file.parent, "local", 1, 60.0).do_all("work", file.name, Work(), {})


def _note(file: Path, key: str, answer: dict) -> None:
    with JsonLines(file) as journal:
        journal.append({"key": key, **answer})


def test_a_line_cut_off_anywhere_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.jsonl"
    _note(file, "a", {"text": "one"})
    start = file.stat().st_size
    _note(file, "b", {"text": "ü\n"})
    whole = file.read_bytes()
    assert _noted(file) == {"a": {"text": "one"}, "b": {"text": "ü\n"}}
    for end in range(start, len(whole)):
        file.write_bytes(whole[:end])
        _note(file, "c", {})
        assert _noted(file) == {"a": {"text": "one"}, "c": {}}


def test_a_failure_is_tried_again_until_the_set_is_fixed(tmp_path: Path) -> None:
    """It may have been the network's; of a set that is fixed it is why a video is not there."""
    file, order = tmp_path / "a.jsonl", _orders("a")[0]
    place = Workplace(tmp_path, "local", 1, 60.0)

    def do() -> dict:
        return place.do_all("work", file.name, Work(), {order.key: lambda: order})

    _note(file, order.key, {"failed": "connection timed out"})
    assert do() == {order.key: {"did": "a"}}
    (tmp_path / PLAN).write_text("{}")
    assert do() == {order.key: {"did": "a"}}, "the newest line counts"
    _note(file, order.key, {"failed": "connection timed out"})
    assert do() == {order.key: {"failed": "connection timed out"}}


def test_rubbish_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"key": "a", "x": 1}\n\0\0\0\n[1]\n{"x": 2}\n{"key": "b", "x": 3}\n{"key')
    assert _noted(file) == {"a": {"x": 1}, "b": {"x": 3}}
    _note(file, "c", {"x": 4})
    assert sorted(_noted(file)) == ["a", "b", "c"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        _noted(tmp_path / "a" / "b.jsonl")


def test_no_two_splits_share_a_shard(tmp_path: Path) -> None:
    splits = ["训练", "训练", "验证", None, "all", "a/b", "a b", "a_b", "train"]
    videos = [
        PreparedVideo(
            key=f"{number} {split}",
            number=number,
            name=str(number),
            file=tmp_path / str(number),
            row=ManifestRow(info=VideoInfo(path="a.mp4"), split=split),
            part=Part(),
            info=VideoInfo(path="b.mp4", bytes=1000),
        )
        for number, split in enumerate(splits)
    ]
    plans = [
        Store(tmp_path / place, tmp_path / place, ShardConfig(shuffle_seed=None), []).plan(given)
        for place, given in (("a", videos), ("b", videos[::-1]))
    ]
    found = {name: [key.split(" ", 1)[1] for key in keys] for name, keys in plans[0].items()}
    assert found == {
        "_-000000": ["训练", "训练"],
        "__2-000000": ["验证"],
        "a_b-000000": ["a_b"],
        "a_b_2-000000": ["a b"],
        "a_b_3-000000": ["a/b"],
        "all-000000": ["all"],
        "all_2-000000": ["None"],
        "train-000000": ["train"],
    }
    assert {name: sorted(keys) for name, keys in plans[1].items()} == plans[0]
