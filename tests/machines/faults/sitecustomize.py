"""One stage that fails and one that hangs half-way: `bare.py` puts this file where the kit's wheels are.

Both happen in the functions of `benchmarks/` that the stages call, so that the script under test knows nothing of it.
"""

import importlib.util
import subprocess
import sys

FOREVER = "98765"  # seconds of a `sleep` that nothing else would ask for: it must be gone afterwards


class Hook:
    """Changes `race` and `paging` as soon as they are imported."""

    def find_spec(self, name, path=None, target=None):
        if name not in ("race", "paging") or name in self.seen:
            return None
        self.seen.add(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            if name == "race":
                module.kernels = fail
            else:
                module.race = hang_at_second(module.race)

        spec.loader.exec_module = exec_module
        return spec

    seen = set()  # noqa: RUF012


def fail(*_):
    raise RuntimeError("made to fail")


def hang_at_second(race):
    calls = []

    def hanging(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            subprocess.run(["sleep", FOREVER])
        return race(*arguments)

    return hanging


sys.meta_path.insert(0, Hook())
