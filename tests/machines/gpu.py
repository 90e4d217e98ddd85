"""The branches for a GPU, on a stand-in for one: python tests/machines/gpu.py [--kind mps] [NOTEBOOK ...]

Every cell of every notebook, and the CUDA tests, as on a machine with a GPU, computed on the CPU: a tensor that would
lie on the GPU raises PyTorch's error where it meets one that would not. tests/stand_in_gpu.py says what that proves,
and what it does not. Outputs are not compared. Notebooks run for minutes each; the model is fetched once into the usual
cache. With `--kind mps` the notebooks run on a stand-in for one of Apple's.
"""

import argparse
import contextlib
import io
import json
import linecache
import os
import subprocess
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


def run_cells(notebook: Path, kind: str) -> int:
    """Run the cells of a notebook in this process; says which fail, goes on, and returns how many did."""
    sys.path.insert(0, str(TESTS))
    from stand_in_gpu import stand_in_gpu

    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    mine, module = sys.modules["__main__"], types.ModuleType("__main__")
    sys.modules["__main__"] = module  # where a notebook's names are
    failed = 0
    with stand_in_gpu(kind):
        for number, cell in enumerate(cells):
            if cell["cell_type"] != "code":
                continue
            source, name = "".join(cell["source"]), f"{notebook.stem}, cell {number}"
            linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(source, name, "exec"), vars(module))
            except Exception as error:
                failed += 1
                trace = "".join(
                    f"    {frame.filename}, line {frame.lineno}: {frame.line}\n"
                    for frame in traceback.extract_tb(error.__traceback__)
                    if frame.filename == name or "qlora_lab" in frame.filename
                )
                print(f"{name}: {type(error).__name__}: {error}\n{trace}", end="", flush=True)
    sys.modules["__main__"] = mine
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all, and with cuda its tests")
    parser.add_argument("--cells", action="store_true", help="run the cells of one notebook in this process")
    parser.add_argument("--kind", choices=("cuda", "mps"), default="cuda", help="whose GPU: NVIDIA's, or Apple's")
    options = parser.parse_args()
    if options.cells:
        failed = run_cells(options.notebooks[0], options.kind)
        sys.stdout.flush()
        os._exit(failed > 0)  # threads of a notebook may be left
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-o", "addopts=--strict-markers"]
    pytest += ["-p", "stand_in_gpu", "-p", "no:cacheprovider", str(TESTS)]
    notebooks = options.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    cells = [sys.executable, __file__, "--cells", "--kind", options.kind]
    steps = [(path.name, [*cells, str(path.resolve())]) for path in notebooks]
    if not options.notebooks and options.kind == "cuda":  # those for mps are among the usual ones
        steps.append(("CUDA tests", pytest))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}
    failed = []
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as place:
        for name, command in steps:
            began = time.perf_counter()
            fine = not subprocess.run(command, cwd=place, env=environment).returncode
            print(f"{name}: {'fine' if fine else 'FAILED'} ({time.perf_counter() - began:.0f} s)", flush=True)
            failed += [] if fine else [name]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
