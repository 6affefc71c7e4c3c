"""Options of argparse and settings of a config on one command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.config.sample import Mask

from vjepa.cli.main import build_parser
from vjepa.cli.parser import Answered, Parser, resolve_config
from vjepa.errors import UserError


def _parser() -> Parser:
    parser = Parser(prog="job", allow_abbrev=False)
    parser.take_config("tests.config.sample:Root")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.set_defaults(parser=parser)
    return parser


def _parse(*argv: str) -> argparse.Namespace:
    args, extras = _parser().parse_known_args(argv)
    assert not extras
    return args


def test_settings_and_options_in_any_order() -> None:
    args = _parse(
        "--optim.steps", "3", "a", "--optim.peak-lr=-1e-3", "b", "--out", "x", "--name", "-7"
    )
    assert args.files == ["a", "b"]
    assert args.out == Path("x")
    assert args.overrides == ["optim.steps=3", "optim.peak_lr=-1e-3", "name=-7"]


def test_the_resolved_config_prints_and_loads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("optim: {steps: 3}\n")
    argv = ["--config", str(base), "--masking.masks.0.num_blocks", "4"]
    config = resolve_config(_parse(*argv))
    assert config.masking.masks == (Mask(num_blocks=4), Mask(num_blocks=2))
    with pytest.raises(Answered):
        resolve_config(_parse(*argv, "--print-config"))
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert resolve_config(_parse("--config", str(again))) == config


def test_config_files_merge_in_order_and_the_command_line_wins(tmp_path: Path) -> None:
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text("optim: {steps: 1, peak_lr: 1}\n")
    two.write_text("optim: {steps: 2}\n")
    args = _parse("--optim.fused", "true", "--config", str(one), "--config", str(two))
    optim = resolve_config(args).optim
    assert (optim.steps, optim.peak_lr, optim.fused) == (2, 1.0, True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optim.steps"], "--optim.steps needs a value, as in --optim.steps VALUE"),
        (["--optim.steps", "--out", "x"], "--optim.steps needs a value"),
        (["--ouy", "x"], "unknown argument --ouy; did you mean --out? (see job --help)"),
        (["--confg=x"], "unknown argument --confg; did you mean --config?"),
        (["-x"], "unknown argument -x (see job --help)"),
    ],
)
def test_mistakes(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        _parse(*argv)
    assert str(caught.value).startswith(message)


def test_a_misspelt_setting_is_named_by_the_config() -> None:
    with pytest.raises(UserError, match=r"command line: optim.step: unknown .* optim.steps\?"):
        resolve_config(_parse("--optim.step", "3"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "data prepare V --exclude A --match.x 1 B --out o",
            "B: put it before the setting if it is for --exclude, else before --exclude",
        ),
        ("data index --source-name a --label_from_folder true b --out o", "b: put it before the"),
        ("data prepare --exclude A B --out o", "MANIFEST: .*; words behind --exclude are its own"),
        ("data prepare V --exclude A --out o B", "unknown argument B; give all MANIFEST together"),
        ("show features a --model m b", "unknown argument b; give all VIDEO together"),
        ("detect predict d a --top 3 b", "unknown argument b; give all SRC together"),
    ],
)
def test_words_behind_an_option_of_several_are_not_lost(words: str, message: str) -> None:
    def read() -> None:
        args, extras = build_parser().parse_known_args(words.split())
        args.parser.refuse_unknown(extras)
        resolve_config(args)

    with pytest.raises(UserError, match=message):
        read()


def test_words_of_an_option_of_several_end_where_they_seem_to() -> None:
    for words in ("--exclude A B --workers 2 V", "--exclude=A --match.x 1 V", "V --exclude A B"):
        argv = ["data", "prepare", *words.split(), "--out", "o", "--match.y=2"]
        assert build_parser().parse_known_args(argv)[0].manifests == [Path("V")]


@pytest.mark.parametrize("before", [["--out", "x"], ["--config", "c"], ["--optim.steps=3"]])
def test_options_of_a_command_are_not_lost_before_its_subcommand(before: list[str]) -> None:
    for words in (["eval", "run", "m.parquet"], ["predict", "run", "a.mp4"]):
        with pytest.raises(UserError, match=f"vjepa finetune {words[0]}: its options stand behind"):
            build_parser().parse_known_args(["finetune", *before, *words])
        assert build_parser().parse_known_args(["finetune", *words])[0].probe == Path("run")


def test_help_lists_every_setting() -> None:
    text = _parser().format_help()
    assert "--optim.steps  an integer (required)" in text
    assert "--optim.peak_lr  a number (default: 0.001)" in text
    assert "        Largest learning rate, reached after warm-up." in text
    assert "--masking.masks.N.kind  one of multiblock, tube (default: multiblock)" in text
    assert "--masking.masks  a list of groups (default: 2 of them)" in text
    assert "--name  a text or null (default: null)" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_command_without_config_refuses_settings() -> None:
    parser = Parser(prog="job", allow_abbrev=False)
    with pytest.raises(UserError, match=r"unknown argument --optim\.steps"):
        parser.refuse_unknown(parser.parse_known_args(["--optim.steps", "3"])[1])


@pytest.mark.parametrize(
    "words",
    [
        "search query a.mp4 --database d --start nan",
        "search report --database d --alike inf",
        "show similarity a.mp4 --model m --at nan 0.5",
        "show neighbours a.mp4 --features f --at nan",
        "decode sample a.mp4 --decoder d --guidance nan",
        "detect predict d a.mp4 --every=nan",
        "detect predict d a.mp4 --min-person-score=-inf",
    ],
)
def test_what_is_no_number_is_refused_at_once(words: str) -> None:
    with pytest.raises(UserError, match=r"invalid number value: '-?(nan|inf)'"):
        build_parser().parse_known_args(words.split())


@pytest.mark.parametrize(
    "words",
    [
        "show features a.png --model demo --out a.png",
        "show features b.mp4 a.png --model demo --out {folder}/a.png",
        "data ava t.csv --videos a.png --out sub/../a.png",
        "detect eval a.png boxes.parquet --detections a.png",
        "detect predict detector a.png --persons p.csv --draw a.png",
        "search query a.png --database moments --out a.png",
    ],
)
def test_what_a_command_reads_is_not_written_over(
    words: str, vjepa: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_text("years of work")
    said = vjepa(*words.format(folder=tmp_path).split()).error
    assert "a.png: is to be read and would be lost; name another" in said
    assert (tmp_path / "a.png").read_text() == "years of work"
