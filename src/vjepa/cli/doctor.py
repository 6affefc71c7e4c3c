"""``vjepa doctor``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vjepa.cli.parser import Parser
from vjepa.runtime.environment import Finding, inspect_environment

NAME = "doctor"
HELP = """\
say what this machine offers: versions, devices, decoders, and what is missing

Paste its output into a bug report. Exit code 0 when nothing is missing that a command needs.
"""


def add_arguments(parser: Parser) -> None:
    """This command has no options."""
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:  # noqa: ARG001 (every command takes its arguments)
    """Print the report."""
    report = inspect_environment()
    for name, version in report.versions.items():
        print(f"{name:<18} {version}")
    print("\ndevices")
    for line in report.devices:
        print(f"  {line}")
    _print_group("packages", report.packages)
    _print_group("decoders", report.decoders)
    _print_group("tools", report.tools)
    needed = [finding for finding in (*report.packages, *report.decoders) if not finding.found]
    if needed:
        print("\nmissing: " + ", ".join(finding.name for finding in needed))
        return 1
    print("\nall that is needed is there")
    return 0


def _print_group(title: str, findings: Sequence[Finding]) -> None:
    print(f"\n{title}")
    for finding in findings:
        state = finding.found or f"MISSING, needed for {finding.needed_for}: {finding.remedy}"
        print(f"  {finding.name:<16} {state}")
