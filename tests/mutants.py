"""Mutation testing of the modules that all else rests on: is each small fault noticed? `make mutants`.

    python tests/mutants.py [masks losses perturb metrics] [--every 10]

Puts one fault at a time (by cosmic-ray: another operator, a number one up or down, a condition turned round)
into a copy of the project and runs the module's own tests there. Annotations are left alone. Of the operators
that could stand in place of another, one is tried: the nearest. Writes docs/mutants.md with all that no test
noticed.
"""

import argparse
import ast
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "mutants.md"
TESTS = {
    "masks": ("test_oracles", "test_masks"),
    "losses": ("test_losses",),
    "perturb": ("test_perturb", "test_oracles"),
    "metrics": ("test_metrics",),
}
# Loaded once, before all: each trial is a fork of this process.
SHARED = (
    *("torch", "pytest", "hypothesis", "beartype", "jaxtyping", "pandas", "av", "matplotlib", "quantus"),
    *("torchray.attribution.extremal_perturbation", "torchray.benchmark.pointing_game"),
)
NEAREST = {
    "Binary": "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul BitAnd_BitOr BitOr_BitAnd",
    "Comparison": "Lt_LtE LtE_Lt Gt_GtE GtE_Gt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is",
    "Unary": "USub_UAdd Delete_Not Invert_UAdd",
}
OTHERS = "AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd NumberReplacer"
OPERATORS = [
    *(f"Replace{kind}Operator_{pair}" for kind, pairs in NEAREST.items() for pair in pairs.split()),
    *OTHERS.split(),
    *("ZeroIterationForLoop", "RemoveDecorator", "ReplaceContinueWithBreak"),
]
PATIENCE = 120  # seconds for the tests of one mutant; a fault that makes them hang counts as noticed


def mutants(path: Path):
    """(line number, line before, line after, whole source) of every fault to try in a module."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = path.read_text(encoding="utf-8")
    apart = annotations(source)
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        spots = [spot for node in ast_nodes(get_ast(source)) for spot in operator.mutation_positions(node)]
        for number, (start, _) in enumerate(spots):
            if any(low <= start < high for low, high in apart):
                continue
            changed = mutate_code(source, operator, number)
            before, after = source.splitlines(), changed.splitlines()
            at = next(i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
            yield at + 1, before[at].strip(), after[at].strip(), changed


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            if (note := getattr(node, name, None)) is not None:
                found.append(((note.lineno, note.col_offset), (note.end_lineno, note.end_col_offset)))
    return found


def passes(folder: Path, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass in the copy, run by a fork of this process."""
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        files = [str(folder / "tests" / f"{name}.py") for name in tests]
        os._exit(import_module("pytest").main(["-x", "-q", "-p", "no:cacheprovider", *files]) != 0)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def survivors(module: str, every: int, folders: list[Path]) -> tuple[int, list[tuple[int, str, str]]]:
    """How many mutants of a module were tried, and those that no test noticed; a process for each folder."""
    if not passes(folders[0], TESTS[module]):
        raise SystemExit(f"the tests of {module} fail without any fault: {', '.join(TESTS[module])}")
    chosen = list(mutants(folders[0] / "steplab" / f"{module}.py"))[::every]
    children = [os.fork() or try_all(module, chosen[k :: len(folders)], f) for k, f in enumerate(folders)]
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        raise SystemExit(f"{module}: a process failed")
    left = [tuple(line) for folder in folders for line in json.loads((folder / f"{module}.json").read_text())]
    return len(chosen), sorted(left)


def try_all(module: str, chosen: list[tuple[int, str, str, str]], folder: Path) -> None:
    """In a process of its own: the mutants one after another; leaves those that passed in a file."""
    left, code, path = [], 1, folder / "steplab" / f"{module}.py"
    source = path.read_text(encoding="utf-8")
    try:
        for line, before, after, changed in chosen:
            path.write_text(changed, encoding="utf-8")
            if passes(folder, TESTS[module]):
                left.append((line, before, after))
                print(f"{module}:{line}: {before}  ->  {after}", flush=True)
        path.write_text(source, encoding="utf-8")
        (folder / f"{module}.json").write_text(json.dumps(left))
        code = 0
    finally:
        os._exit(code)


def report(found: dict[str, tuple[int, list[tuple[int, str, str]]]]) -> str:
    lines = ["# Small faults that the tests notice, and those that they do not", ""]
    lines += ["By `make mutants`: one fault at a time in a copy, the module's own tests run on it.", ""]
    lines += ["| module | faults | noticed | share |", "|---|---|---|---|"]
    for module, (tried, left) in found.items():
        lines.append(f"| {module} | {tried} | {tried - len(left)} | {1 - len(left) / tried:.1%} |")
    for module, (_, left) in found.items():
        lines += ["", f"## {module}", ""]
        for (before, after), times in Counter((b, a) for _, b, a in left).items():
            lines.append(f"- `{before}` → `{after}`{f' ({times} ×)' * (times > 1)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("modules", nargs="*", default=list(TESTS))
    options.add_argument("--jobs", type=int, default=1, help="processes")
    options.add_argument("--every", type=int, default=1, help="try each so many-th only; then no report")
    chosen = options.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTEST_XDIST_WORKER": "mutants"}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed here, and one takes seconds to load
    sys.dont_write_bytecode = True  # two versions of a file within a second would share one
    for name in SHARED:
        with suppress(ImportError):
            import_module(name)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / f"copy{k}" for k in range(chosen.jobs)]
        left_out = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.ipynb", "*.egg-info")
        for folder in folders:
            shutil.copytree(ROOT, folder, ignore=left_out)
        for module in chosen.modules:
            found[module] = survivors(module, chosen.every, folders)
            tried, left = found[module]
            print(f"{module}: {tried} faults, {tried - len(left)} noticed", flush=True)
    if chosen.every > 1 or set(found) != set(TESTS):
        return
    REPORT.write_text(report(found), encoding="utf-8")
    if path := os.environ.get("STEPLAB_FIGURES"):
        shares = [f"{name} {1 - len(left) / tried:.1%} of {tried}" for name, (tried, left) in found.items()]
        what = "Small faults in masks, losses, perturb and metrics that their tests notice"
        Path(path).write_text(json.dumps([what, ", ".join(shares)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
