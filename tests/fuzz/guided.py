"""Fuzzing led by coverage: `python -m tests.fuzz.guided SECONDS FOLDER [TARGET…]`, needs `atheris`.

Each target runs in a process of its own for SECONDS; what was interesting stays in FOLDER/TARGET for the next time, a
find in FOLDER/TARGET-crash-… (run `python -m tests.fuzz.guided again TARGET FILE` to see it). Exit status 1: something
was found.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from tests.processes import run_program

HANG_S = 10
MEMORY_MIB = 2048
LONGEST_BYTES = 8192


def main(words: list[str]) -> int:
    if words[0] == "again":
        return again(words[1], Path(words[2]))
    if words[0] == "one":
        return fuzz(words[1], words[2:])
    seconds, folder, *names = words
    from tests.fuzz.seeds import seeds
    from tests.fuzz.targets import NEED_NATIVE
    from tests.stream.decoding import NATIVE

    left_out = NEED_NATIVE if NATIVE.module is None else frozenset()
    if left_out:
        print(f"left out: {', '.join(left_out)}: the native module is not there: {NATIVE.reason}", flush=True)
    found = [
        name
        for name, inputs in seeds().items()
        if name in (names or [name]) and name not in left_out and drive(name, inputs, int(seconds), Path(folder))
    ]
    print(f"found something in: {', '.join(found)}" if found else "nothing found")
    return 1 if found else 0


def drive(name: str, inputs: list[bytes], seconds: int, folder: Path) -> bool:
    """Let one target run. Returns: something was found."""
    corpus = folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-max_len={LONGEST_BYTES}",
        f"-artifact_prefix={folder}/{name}-",
        "-print_final_stats=1",
    ]
    print(f"=== {name}, {seconds} s", flush=True)
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        argv = [sys.executable, "-m", "tests.fuzz.guided", "one", name, *options, str(corpus)]
        done = run_program(argv, stdout=output, stderr=output, check=False, quiet_s=seconds + 120)
    lines = log.read_text("utf-8", "replace").splitlines()
    shown = lines if done.returncode else [line for line in lines if "number_of_executed_units" in line]
    print("\n".join(shown[-40:]), flush=True)
    return done.returncode != 0


def fuzz(name: str, options: list[str]) -> int:
    import atheris

    with atheris.instrument_imports(include=["mtunnel_tx"]):
        from tests.fuzz.targets import run
    atheris.Setup([sys.argv[0], *options], lambda data: run(name, data))
    atheris.Fuzz()
    return 0


def again(name: str, file: Path) -> int:
    from tests.fuzz.targets import run

    run(name, file.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
