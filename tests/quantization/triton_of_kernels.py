"""Run by test_kernels.py, in a process of its own: compiles for GPUs what torch.compile makes of the kernels for CUDA.

No GPU is needed. A kernel is traced on CPU tensors, its graph is moved to a device that is not there, PyTorch's own
generator writes Triton code for that graph, and Triton compiles this down to the machine code of each generation.

Prints a line of JSON: {kernel: {"guards": [...], "ptx": {capability: [text per Triton kernel]}, "cubin": {...}}}.
"""

import contextlib
import copy
import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch._inductor.runtime.triton_helpers
import torch._inductor.scheduler
import triton
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.compile_fx import compile_fx
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qlora_lab.quantization.datatypes import get_datatype
from qlora_lab.quantization.fast import kernels

CUDA = torch.device("cuda", 0)
GENERATOR = 80  # the capability that the code is written for; it is compiled for each
BLOCKS, HALF = 300, 32


@contextlib.contextmanager
def a_gpu_that_is_not_there():
    properties = SimpleNamespace(
        name="none",
        major=GENERATOR // 10,
        minor=GENERATOR % 10,
        multi_processor_count=108,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        total_memory=2**35,
        L2_cache_size=2**25,
    )
    answers = [
        (CudaInterface, "is_available", True),
        (CudaInterface, "get_compute_capability", GENERATOR),
        (CudaInterface, "get_device_properties", properties),
        (CudaInterface.Worker, "get_device_properties", properties),
        (torch.cuda, "is_available", True),
        (torch.cuda, "get_device_properties", properties),
        (torch.cuda, "get_device_capability", (GENERATOR // 10, GENERATOR % 10)),
        (torch.cuda, "current_device", 0),
        (torch._inductor.scheduler, "has_triton", True),
        (torch._inductor.runtime.triton_helpers, "set_driver_to_gpu", None),
    ]
    target = GPUTarget("cuda", GENERATOR, 32)
    triton.runtime.driver.set_active(
        SimpleNamespace(get_current_target=lambda: target, get_active_torch_device=lambda: CUDA)
    )
    with contextlib.ExitStack() as stack:
        for owner, name, answer in answers:
            found = lambda *_, answer=answer, **__: answer  # noqa: E731
            found = staticmethod(found) if isinstance(owner, type) else found
            stack.enter_context(mock.patch.object(owner, name, found, create=True))
        yield


def moved(value):
    if not isinstance(value, FakeTensor):
        return value
    with in_kernel_invocation_manager(value.fake_mode):
        there = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
    return FakeTensor(value.fake_mode, there, CUDA)


def code_for_cuda(graph_module) -> tuple[str, list[str]]:
    """What Inductor writes for the graph on a GPU, and what it assumed of sizes."""
    graph_module = copy.deepcopy(graph_module)
    for node in graph_module.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = torch.utils._pytree.tree_map(moved, node.meta["val"])
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": CUDA}
    inputs = [node.meta["val"] for node in graph_module.graph.nodes if node.op == "placeholder"]
    mode = next(value.fake_mode for value in inputs if isinstance(value, FakeTensor))
    before = len(mode.shape_env.guards)
    graph = GraphLowering(graph_module, example_inputs=inputs, shape_env=mode.shape_env)
    with V.set_debug_handler(DebugContext()), V.set_graph_handler(graph), V.set_fake_mode(mode):
        graph.run(*inputs)
        code = graph.codegen()[0]
    return getattr(code, "value", code), [str(guard.expr) for guard in mode.shape_env.guards[before:]]


def compiled(code: str, capability: int, folder: Path):
    """Every Triton kernel in the code, compiled."""
    sources = re.findall(r"async_compile\.triton\('\w+', '''(.*?)''', device_str", code, re.DOTALL)
    assert sources, code
    for number, source in enumerate(sources):
        file = folder / f"generated_{number}.py"
        file.write_text(source)
        spec = importlib.util.spec_from_file_location(f"generated_{number}", file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        tuner = next(value for value in vars(module).values() if hasattr(value, "triton_meta"))
        meta, config = tuner.triton_meta, tuner.configs[0]
        constants = {**meta["constants"], **config.kwargs}
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        options["enable_fp_fusion"] = meta.get("enable_fp_fusion", True)
        source = ASTSource(tuner.fn, meta["signature"], constants, meta["configs"][0])
        yield triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main(capabilities: list[int]) -> None:
    found = {}
    real = torch.compile

    def compile_for_cuda(function, fullgraph, options):
        def inner(graph_module, inputs, **_):
            with a_gpu_that_is_not_there(), tempfile.TemporaryDirectory() as folder:
                code, guards = code_for_cuda(graph_module)
                entry = found[name] = {"guards": guards, "ptx": {}, "cubin": {}}
                for capability in capabilities:
                    made = list(compiled(code, capability, Path(folder)))
                    entry["ptx"][capability] = [kernel.asm["ptx"] for kernel in made]
                    entry["cubin"][capability] = [len(kernel.asm["cubin"]) for kernel in made]
            nothing = lambda arguments: ()  # noqa: E731
            nothing._boxed_call = True
            return nothing

        def backend(graph_module, inputs):
            return compile_fx(graph_module, inputs, inner_compile=inner)

        return real(function, fullgraph=True, backend=backend)

    codes = torch.zeros(BLOCKS, HALF, dtype=torch.uint8)
    scales = torch.zeros(BLOCKS)
    pairs = {t: torch.zeros(BLOCKS, HALF, dtype=t) for t in (torch.int64, torch.int32)}
    products = torch.zeros(8, BLOCKS, dtype=torch.int32).t()
    with mock.patch.object(torch, "compile", compile_for_cuda):
        for datatype in (get_datatype("nf4"), get_datatype("fp4")):  # int4 is nf4 with other numbers
            for dtype, wide in ((torch.float32, torch.int64), (torch.bfloat16, torch.int32)):
                name = f"quantize {datatype.name} {dtype}"
                kernels._quantize_kernel(("here",), datatype, dtype)(pairs[wide], codes, scales)
            name = f"decode {datatype.name} 32 bits"
            kernels._dequantize_32bit_kernel(("here",), datatype)(pairs[torch.int64], codes, scales)
            for dtype in (torch.float16, torch.bfloat16):
                name = f"products {datatype.name} {dtype}"
                kernels._products_kernel(("here",), datatype, dtype)(products, scales)
        name = "decode 16 bits"
        kernels._dequantize_16bit_kernel(("here",))(codes, products, pairs[torch.int32])
    print(json.dumps(found))


if __name__ == "__main__":
    main([int(capability) for capability in sys.argv[1:]])
