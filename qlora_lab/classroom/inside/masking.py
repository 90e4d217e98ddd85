"""While an answer is graded, the package's own version of what is asked, and the libraries', cannot be used.

Importing them works, since many a notebook does so in its first cell; using anything of them raises `Masked`.
"""

import importlib.abc
import importlib.machinery
import sys
import types

NAMES = ("qlora_lab", "bitsandbytes", "peft", "torchao", "transformers", "accelerate")


class Masked(Exception):
    """Something was used that is masked while answers are graded."""


def _refuse(name: str):
    raise Masked(
        f"`{name}` is masked while answers are graded: using the finished version of what is asked gets no points. "
        "Write it yourself, with torch and Python alone."
    )


class Thing:
    """Anything found in a masked module."""

    def __init__(self, name: str):
        object.__setattr__(self, "_name", name)

    def __getattr__(self, name: str):
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Thing(f"{object.__getattribute__(self, '_name')}.{name}")

    def __mro_entries__(self, bases):
        _refuse(self._name)

    def _used(self, *arguments, **options):
        _refuse(object.__getattribute__(self, "_name"))

    __call__ = __getitem__ = __setitem__ = __iter__ = __len__ = __contains__ = __bool__ = __float__ = __int__ = _used
    __index__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _used
    __matmul__ = __rmatmul__ = __lt__ = __gt__ = __le__ = __ge__ = __neg__ = __enter__ = _used


class Module(types.ModuleType):
    """A masked module: every name is in it, and nothing can be done with what it stands for."""

    def __getattr__(self, name: str):
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Thing(f"{self.__name__}.{name}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands before the finders of real modules."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Module(spec.name)

    def exec_module(self, module):
        pass


def install() -> None:
    """Mask from now on, in this process and those forked from it."""
    for name in list(sys.modules):
        if name.partition(".")[0] in NAMES:
            del sys.modules[name]
    sys.meta_path.insert(0, Finder())
