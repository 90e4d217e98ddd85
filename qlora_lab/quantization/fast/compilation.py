"""When a fast path runs, and whether it can be trusted: torch.compile and Triton, their cache, failures and bugs.

What a kernel computes first is compared with the definition. Where no compiler works, or makes something else of it,
one warning says so and the definitions run instead.
"""

import errno
import os
import platform
import re
import shutil
import sys
import tempfile
import types
import warnings
from collections.abc import Callable

import torch

from qlora_lab.machine.arguments import check_choice

TRITON = "triton"  # the fast path of `triton_decoder`; that of torch.compile has the name of the kind of device
SMALLEST = 2**16  # weights; below this a look-up in plain PyTorch takes microseconds and compiling seconds
_MODES = ("auto", "always", "never")


def _mode_from_environment() -> str:
    mode = os.environ.get("QLORA_LAB_COMPILE", "auto")
    if mode in _MODES:
        return mode
    choices = ", ".join(_MODES)
    warnings.warn(f"QLORA_LAB_COMPILE={mode!r} is none of {choices}; using auto", RuntimeWarning, stacklevel=2)
    return "auto"


_state = {"mode": _mode_from_environment(), "broken": set(), "proved": set()}
_reasons: dict[str, str] = {}  # kind of device, or TRITON -> why its kernels were given up


def set_compile(mode: str) -> str:
    """Choose when compiled kernels are used; returns the mode until now. The results are equal in every mode.

    Args:
        mode: "auto" (from `SMALLEST` weights on), "always", or "never". The environment variable QLORA_LAB_COMPILE
            sets it at import (another value there: a warning, and "auto").

    Raises:
        ValueError: unknown mode.
    """
    check_choice("mode", mode, _MODES)
    before, _state["mode"] = _state["mode"], mode
    return before


def wanted(tensor: torch.Tensor, weights: int, way: str | None = None) -> bool:
    """Whether the compiled kernel should handle `weights` weights that lie where `tensor` does.

    Args:
        way: `TRITON` asks for the decoder in Triton, None for what torch.compile makes.
    """
    mode, kind = _state["mode"], tensor.device.type
    if mode == "never" or weights == 0 or kind not in ("cpu", "cuda") or (way or kind) in _state["broken"]:
        return False
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False  # someone compiles the caller, or watches every operation (a FLOP counter, fake tensors)
    return mode == "always" or weights >= SMALLEST


def run(make, key: tuple, *tensors: torch.Tensor) -> bool:
    """Call the compiled kernel `make(context, *key)`; the number of blocks may change from call to call.

    Returns whether it worked; see `attempt`.
    """
    if torch._dynamo.config.disable:  # TORCH_COMPILE_DISABLE: it would run the kernel uncompiled, which is slow
        return False

    def call():
        with torch.no_grad():
            make(context(tensors[0]), *key)(*tensors)

    return attempt(tensors[0].device.type, call)


def attempt(way: str, call: Callable[[], None]) -> bool:
    """Whether a call went well. On the first failure of a way it says so, and `wanted` never takes it again."""
    try:
        call()
    except Exception as error:
        error = getattr(error, "inner_exception", error)
        _give_up(way, _told(error), _remedy(way, error))
        return False
    return True


def _told(error: Exception) -> str:
    """The line of an error that says what happened: of a compiler's many, the first that it calls an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), next(iter(lines), "")) or type(error).__name__


def _remedy(way: str, error: Exception) -> str:
    """What would bring the fast path: where it fails with a compiler at hand, installing one would not."""
    told = str(error)
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    where = f"TORCHINDUCTOR_CACHE_DIR ({folder})" if folder else f"temporary folder ({_temporary_folder()})"
    if "temporary directory" in told:
        return "A temporary folder that is there and may be written to (TMPDIR)"
    if getattr(error, "errno", None) in _FOLDER_TROUBLE and not re.search(r"\bc(\+\+|c|lang|l)\b|g(\+\+|cc)", told):
        return f"A {where} that is there, may be written to and has room"
    chosen = os.environ.get("CXX" if way == "cpu" else "CC")
    if chosen and shutil.which(chosen.split()[0] if chosen.split() else chosen) is None:
        return f"A compiler where {'CXX' if way == 'cpu' else 'CC'}={chosen} says there is one (or unsetting it)"
    there = any(map(shutil.which, ("g++", "clang++", "c++", "cl") if way == "cpu" else ("gcc", "clang", "cc", "cl")))
    if not there:
        return f"Installing {'a C++ compiler (g++ or clang++)' if way == 'cpu' else 'Triton and a C compiler'}"
    for name, path in ((where, folder or _temporary_folder()), (f"Python in a path ({sys.prefix})", sys.prefix)):
        if odd := re.search(r"""[\s'"`$&;|<>()*?\[\]#]""", path):
            what = "space" if odd[0].isspace() else odd[0]
            return f"A {name} without a {what} in it, which commands of the compiler do not survive,"
    return "A compiler that translates what PyTorch writes (there is one, and it does not)"


# no rights, read-only, full, not there, a file in the way, too long a name, a link to itself
_FOLDER_TROUBLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.ENOTDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "none"


def proved(what: str, tensor: torch.Tensor, key: tuple, agrees: Callable[[], bool | None], way: str = "") -> bool:
    """Whether the kernel for `key`, under the circumstances of `tensor`, has the results of its definition.

    Asked once for each kind of device, of its first results; None from `agrees` means that these can't tell. Compilers
    have bugs, and wrong weights make no noise. Where the results differ, `way` (or what torch.compile makes for that
    device) is given up, and a warning says so.
    """
    key = (what, tensor.device.type, *key, *context(tensor))
    if key not in _state["proved"]:
        verdict = agrees()
        if verdict is None:
            return True
        if not verdict:
            reason = f"its {what} differs from the definition"
            _give_up(way or tensor.device.type, reason, "Another version of the compiler")
            return False
        _state["proved"].add(key)
    return True


def path_taken(kind: str) -> dict:
    """What weights on a kind of device ("cpu", "cuda") went through so far in this process, for a record.

    Returns:
        {"compiled and proved": names of what ran compiled, with the definition's results, "given up": why plain PyTorch
        runs from then on, or None}. Both empty: nothing large enough was asked for. For "cuda" also "decoder in Triton
        given up": why decoding takes what torch.compile makes, or None.
    """
    compiled = {key[0] for key in _state["proved"] if key[1] == kind}
    found = {"compiled and proved": sorted(compiled), "given up": _reasons.get(kind)}
    return found if kind != "cuda" else found | {"decoder in Triton given up": _reasons.get(TRITON)}


def _give_up(way: str, reason: str, remedy: str) -> None:
    _state["broken"].add(way)
    _reasons[way] = reason[:500]
    if way == TRITON:
        what, instead = "The decoder in Triton does not work here", "decoding takes what torch.compile makes"
    else:
        what, instead = f"torch.compile does not work here for {way}", "quantization takes the plain PyTorch path"
    warnings.warn(
        f"{what} ({reason[:200]}); {instead}: the same results, several times slower. {remedy} brings the fast path.",
        RuntimeWarning,
        stacklevel=5,
    )


def context(tensor: torch.Tensor) -> tuple:
    """Settings around the call that PyTorch compiles anew for; a kernel of its own for each keeps all below its limit.

    Dynamo gives up on a function after eight recompilations. Block sizes take up to four.
    """
    kind = tensor.device.type
    return (
        torch.is_inference_mode_enabled(),
        tensor.is_inference(),
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


class Compiled:
    """torch.compile of a function that writes into some of its tensors, for any size of their first dimensions.

    Args:
        vectors: False for a function of look-ups in tables, which has nothing to gain from vectors on a CPU. The
            indices are not checked then.
    """

    def __init__(self, function, vectors: bool = True):
        # Dynamo counts recompilations per code object; the closures made here share theirs, so each gets a copy
        own = types.FunctionType(
            function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
        )
        options = _vector_width() if vectors else {"cpp.simdlen": 1, "assert_indirect_indexing": False}
        self._call = torch.compile(own, fullgraph=True, options=options)

    def __call__(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:  # one compilation serves every number of blocks
            if tensor.ndim:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        self._call(*tensors)


def _vector_width() -> dict[str, int]:
    """The width of vectors, spelled out as an option, so that it is part of the key in the compiler's cache on disk.

    That cache outlives a process, and may lie on a disk that machines share. Its key lacks the processor: what was
    made for AVX-512 would be taken in a process that computes with AVX2, and silently write every other vector only.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return {}
    return {"cpp.simdlen": {"AVX512": 512, "AVX2": 256}.get(torch.backends.cpu.get_cpu_capability(), 1)}
