#!/usr/bin/env python3
"""Check that mypy and pyright, both strict, report the lines of calls.py marked wrong, no other."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
CALLS = HERE / "calls.py"


def reported_by_mypy() -> dict:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(CALLS)]
    environment = {**os.environ, "MYPYPATH": str(HERE.parent)}
    done = subprocess.run(command, env=environment, stdout=-1, text=True, cwd=HERE)
    found = re.findall(r"calls\.py:(\d+): error: (.*)", done.stdout)
    return {int(line): message for line, message in found}


def reported_by_pyright() -> dict:
    with (
        tempfile.TemporaryDirectory()
    ) as folder:  # for it passes over folders that begin with a dot
        for path in (CALLS, HERE.parent / "completions.py"):
            shutil.copy(path, folder)
        command = [sys.executable, "-m", "pyright", "--outputjson", CALLS.name]
        done = subprocess.run(command, stdout=-1, text=True, cwd=folder)
    found = json.loads(done.stdout)["generalDiagnostics"]
    mine = [d for d in found if d["file"].endswith("calls.py") and d["severity"] == "error"]
    return {d["range"]["start"]["line"] + 1: d["message"].split("\n")[0] for d in mine}


def main() -> int:
    lines = CALLS.read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    failures = 0
    for checker in (reported_by_mypy, reported_by_pyright):
        reported = checker()
        for number in sorted(wrong ^ reported.keys()):
            failures += 1
            verdict = reported.get(number, "not reported")
            print(f"{checker.__name__}: line {number}: {lines[number - 1]}\n    {verdict}")
        print(f"{checker.__name__}: {len(wrong & reported.keys())} of {len(wrong)} lines")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
