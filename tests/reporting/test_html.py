"""The report is one file, escapes text, and follows the theme's colours."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from vjepa.reporting import charts
from vjepa.reporting.html import (
    Chart,
    Figure,
    PictureBlock,
    Report,
    Section,
    Table,
    Text,
    write_report,
)
from vjepa.reporting.pictures import Strip


def _report() -> Report:
    lines = [
        charts.Line("loss <train>", [0, 1, 2], [3.0, 2.0, 1.5]),
        charts.Line("b", [0, 1], [1, 2], 2),
    ]
    estimates = [
        charts.Estimate("motion, 160 labels", "pretrained", 0.5, 0.45, 0.55, 1),
        charts.Estimate("motion, 160 labels", "random", 0.3, 0.25, 0.35, 3),
        charts.Estimate("appearance", "pretrained", 0.2, 0.18, 0.22, 1),
    ]
    blocks = (
        Chart(charts.line_chart(lines, x_label="step", y_label="loss"), "curves"),
        *(
            Chart(drawn, "")
            for drawn in charts.estimate_charts(estimates, x_label="%", chance={"appearance": 0.1})
        ),
        PictureBlock(
            [Strip("a <b>", np.zeros((2, 4, 4, 3), np.uint8), ("x & y", "z"))], "a picture"
        ),
        Table(("a", "b"), (("1", "<script>"),), strong_rows=frozenset({0})),
        Text("plain"),
        Text("key: 1", preformatted=True),
    )
    return Report(
        "Title",
        "Answer & more",
        (Figure("12 %", "gain"),),
        (Section("Open", "why", blocks), Section("Closed", folded=True), Section("Bare")),
        "end",
    )


def test_report_is_self_contained_and_escaped(tmp_path) -> None:
    path = tmp_path / "out" / "report.html"
    write_report(_report(), path)
    text = path.read_text()
    HTMLParser().feed(text)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "Answer &amp; more" in text
    assert "<b>a &lt;b&gt;</b>" in text
    assert "x &amp; y" in text
    assert text.count("Too little was measured") == 1, "no heading without a word below it"
    assert text.count("data:image/png;base64,") == 2
    assert text.count("<svg") == 3
    assert "<figcaption></figcaption>" not in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "prefers-color-scheme: dark" in text
    assert not list(path.parent.glob("*.partial"))


def test_charts_use_theme_variables_only() -> None:
    svg = charts.line_chart([charts.Line("x", [0, 1], [0, 1])], x_label="a", y_label="b")
    assert "var(--series-1)" in svg
    assert "var(--muted)" in svg
    assert "#0" not in re.sub(r'(?:xlink:href|href|id|clip-path)="[^"]*"', "", svg)
    assert svg == charts.line_chart([charts.Line("x", [0, 1], [0, 1])], x_label="a", y_label="b")


def test_names_of_files_and_runs_are_text_and_never_markup(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&$\\frac$'
    line = charts.Line(evil, [1, 2], [1, 2])
    chart = Chart(charts.line_chart([line, line], x_label=evil, y_label=evil), evil)
    report = Report(
        title=evil,
        answer=evil,
        figures=[Figure(evil, evil)],
        sections=[Section(evil, evil, [chart, Table([evil], [[evil]]), Text(evil)])],
        footer=evil,
    )
    write_report(report, tmp_path / "r.html")
    assert "<script" not in (tmp_path / "r.html").read_text()
