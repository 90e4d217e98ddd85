"""The ledger against counts made by hand, byte by byte, and against what the machine says."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from qlora_lab.memory.ledger import MemoryTrace
from qlora_lab.memory.records import CATEGORIES

NOTHING = dict.fromkeys(CATEGORIES, 0)


def network() -> nn.Sequential:
    """Weights of 128 and 64 bytes, biases of 32 and 8: 232 bytes."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def counted(trace) -> list[tuple[str, int, str, str]]:
    return [(r.event, r.nbytes, r.category, r.operation) for r in trace.records]


def assert_adds_up(trace) -> None:
    """Running totals, peak and categories all follow from the births and deaths."""
    live = 0
    for record in trace.records:
        live += record.nbytes if record.event == "born" else -record.nbytes
        assert record.live == live >= 0
    assert trace.live == live
    assert trace.peak == max((record.live for record in trace.records), default=0)
    assert sum(trace.by_category.values()) == trace.peak
    assert max((sum(at.values()) for _, at in trace.timeline), default=0) == trace.peak


def test_a_hand_counted_forward_and_backward_pass():
    model, x = network(), torch.randn(3, 4)
    with MemoryTrace(model) as trace:
        loss = model(x).sum()
        loss.backward()
        del loss
        model.zero_grad()
    after_weights = counted(trace)[4:]
    assert [(event, nbytes, category) for event, nbytes, category, _ in after_weights] == [
        ("born", 96, "temporary"),  # first layer's output: 3 x 8, only its ReLU is kept
        ("born", 96, "activations"),
        ("died", 96, "temporary"),
        ("born", 24, "temporary"),  # second layer's output
        ("born", 4, "temporary"),  # their sum
        ("died", 24, "temporary"),
        ("born", 4, "temporary"),  # the one that backward starts from
        ("born", 96, "temporary"),  # gradient of the ReLU's output
        ("born", 64, "gradients"),
        ("born", 8, "gradients"),
        ("born", 96, "temporary"),  # gradient of its input
        ("died", 96, "temporary"),
        ("died", 96, "activations"),
        ("born", 128, "gradients"),
        ("born", 32, "gradients"),
        ("died", 96, "temporary"),
        ("died", 4, "temporary"),
        ("died", 4, "temporary"),
        *[("died", nbytes, "gradients") for nbytes in (128, 32, 64, 8)],
    ]
    # weights, both halves around ReLU's backward pass, its result, gradients so far, sum and one
    assert trace.peak == 232 + 96 + 96 + 96 + 72 + 8
    assert trace.by_category == NOTHING | {
        "base weights": 232,
        "activations": 96,
        "gradients": 72,
        "temporary": 96 + 96 + 8,
    }
    assert trace.live == 232
    assert_adds_up(trace)


def test_the_optimizers_state_is_its_own_category():
    model, x = network(), torch.randn(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    with MemoryTrace(model) as trace:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    steps = 4 * 4  # AdamW counts steps in a tensor for each parameter
    state = [r for r in trace.records if r.category == "optimizer state"]
    assert sum(r.nbytes for r in state) == 2 * 232 + steps and all(r.event == "born" for r in state)
    assert trace.live == 232 + 2 * 232 + steps
    with MemoryTrace(model, optimizer) as second:  # now it is there from the start
        model(x).sum().backward()
    assert second.records[0].step == 0
    assert sum(r.nbytes for r in second.records if r.category == "optimizer state" and r.step == 0) == 464 + steps
    assert second.by_category["optimizer state"] == 464 + steps
    assert_adds_up(trace)


def test_a_model_and_an_optimizer_met_inside_count_as_if_named():
    model, x = network(), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with MemoryTrace(model, optimizer) as named:
        step()
    with MemoryTrace() as met:
        step()
    assert met.peak == named.peak
    assert met.by_category == named.by_category
    assert met.by_category["base weights"] == met.by_category["optimizer state"] == 232


def test_foreach_optimizers_return_lists():
    model, x = network(), torch.randn(3, 4)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    with MemoryTrace(model) as trace:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(r.nbytes for r in trace.records if r.category == "optimizer state") == 2 * 232 + 16
    assert any(r.operation.startswith("aten._foreach") and r.nbytes == 128 for r in trace.records)
    assert_adds_up(trace)


def test_views_aliases_and_results_in_place_count_nothing():
    with MemoryTrace() as trace:
        x = torch.zeros(10, 10)
        views = [x[2:], x.t(), x.view(-1), x.detach(), x.expand(5, 10, 10), x.add_(1), x.reshape(4, 25)]
        torch.add(x, 1, out=x)
        split = x.split(3)
        del x
    assert trace.peak == trace.live == 400
    assert counted(trace) == [("born", 400, "temporary", "aten.zeros")]
    del views, split


def test_tensors_made_outside_do_not_count():
    x = torch.zeros(100)
    with MemoryTrace() as trace:
        x.add_(1)
        x.view(10, 10).t()
        del x
    assert trace.records == [] and trace.peak == 0 and trace.timeline == []


def test_a_tensor_from_a_list_counts():
    with MemoryTrace() as trace:
        x = torch.tensor([1.0, 2.0, 3.0])
    assert trace.peak == 12
    del x


def test_storages_that_are_resized_count_with_their_new_size():
    with MemoryTrace() as trace:
        x = torch.empty(10)
        x.resize_(30)
        x.untyped_storage().resize_(0)  # what FSDP does; no operation
        x.untyped_storage().resize_(40)
        del x
    assert [(r.event, r.nbytes) for r in trace.records] == [
        ("born", 40),
        ("born", 80),
        ("died", 120),
        ("born", 40),
        ("died", 40),
    ]
    assert trace.peak == 120 and trace.live == 0
    assert torch.UntypedStorage.resize_.__qualname__.startswith(("UntypedStorage", "StorageBase"))


def test_gradients_that_are_accumulated_are_counted_once():
    model, x = nn.Linear(4, 8, bias=False), torch.randn(3, 4)
    with MemoryTrace(model) as trace:
        model(x).sum().backward()
        kept = trace.live
        model(x).sum().backward()
        assert trace.live == kept == 128 + 128
    assert [r.nbytes for r in trace.records if r.category == "gradients"] == [128]


def test_gradients_that_were_there_and_gradients_put_there_by_hand():
    model = nn.Linear(4, 8, bias=False)
    model.weight.grad = torch.zeros(8, 4)
    with MemoryTrace(model) as trace:
        pass
    assert trace.by_category == NOTHING | {"base weights": 128, "gradients": 128}
    with MemoryTrace(model) as trace:
        model.weight.grad = None
        model.weight.grad = torch.zeros(8, 4)
    assert [(r.event, r.category) for r in trace.records[-2:]] == [("died", "gradients"), ("born", "gradients")]


def test_shared_weights_count_once():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    with MemoryTrace(model) as trace:
        model(torch.ones(1, 8)).sum().backward()
    assert trace.by_category["base weights"] == 256
    assert trace.live == 512


def test_nothing_is_kept_alive_and_all_that_was_made_dies():
    def work():
        model = network()
        model(torch.randn(3, 4)).sum().backward()
        torch.optim.AdamW(model.parameters()).step()

    gc.collect()
    with MemoryTrace() as trace:
        work()
        gc.collect()
    assert trace.live == 0 and trace.peak > 0
    assert trace._alive == {}
    assert_adds_up(trace)


def test_deaths_after_the_end_do_not_count():
    with MemoryTrace() as trace:
        x = torch.zeros(10)
    del x
    assert trace.live == 40


@pytest.mark.parametrize("reentrant", [True, False])
def test_activations_recomputed_under_checkpointing(reentrant):
    """The wide middle of 1024 bytes is temporary in the forward pass and an activation once it is recomputed."""
    block = nn.Sequential(nn.Linear(4, 64, bias=False), nn.Sigmoid(), nn.Linear(64, 4, bias=False))
    x = torch.randn(4, 4, requires_grad=True)
    with MemoryTrace(block) as trace:
        checkpoint(block, x.sin(), use_reentrant=reentrant).sum().backward()
    wide = 4 * 64 * 4
    activations = [r for r in trace.records if r.category == "activations" and r.event == "born"]
    recomputed = [r for r in activations if r.operation == "aten.sigmoid"]
    assert len(recomputed) == 1 and recomputed[0].nbytes == wide  # the first is not kept
    assert recomputed[0].module == "1"
    assert [r.nbytes for r in activations if r.operation == "aten.sin"] == [64]  # the block's input is
    assert_adds_up(trace)


def test_what_a_custom_function_saves_is_an_activation():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            doubled, dropped = x * 2, x * 3
            ctx.save_for_backward(doubled)
            return doubled + dropped

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0]

    with MemoryTrace() as trace:
        Twice.apply(torch.ones(10, requires_grad=True)).sum().backward()
    products = [r.category for r in trace.records if r.operation == "aten.mul" and r.event == "born"]
    assert products == ["activations", "temporary", "temporary"]  # what is saved, what is not, the gradient


def test_without_gradients_nothing_is_an_activation():
    model = network()
    with torch.no_grad(), MemoryTrace(model) as trace:
        model(torch.randn(3, 4))
    assert {r.category for r in trace.records} == {"base weights", "temporary"}


def test_modules_are_named_also_in_the_backward_pass():
    model = nn.Sequential(network(), nn.Linear(2, 2))
    with MemoryTrace(model) as trace:
        model(torch.randn(3, 4)).sum().backward()
    forward = {r.module for r in trace.records if r.operation == "aten.addmm"}
    gradients = [r.module for r in trace.records if r.category == "gradients" and r.event == "born"]
    assert forward == {"0.0", "0.2", "1"}
    assert gradients == ["1", "1", "0.2", "0.2", "0.0", "0.0"]


def test_traces_nest():
    model, x = network(), torch.randn(3, 4)
    with MemoryTrace(model) as alone:
        model(x).sum().backward()
    model.zero_grad()
    with MemoryTrace(model) as outer:
        with MemoryTrace(model) as inner:
            model(x).sum().backward()
        torch.zeros(1000)
    assert counted(inner) == counted(alone)
    assert counted(outer)[: len(counted(alone))] == counted(alone)
    assert outer.peak == 232 + 232 + 4000


def test_an_exception_inside_passes_and_leaves_nothing_behind():
    class Broken(nn.Module):
        def forward(self, x):
            x = x + 1
            raise ValueError("broken")

    model = nn.Sequential(nn.Linear(4, 4), Broken())
    hooks = len(nn.modules.module._global_forward_pre_hooks), len(nn.modules.module._global_forward_hooks)
    trace = MemoryTrace(model)
    with pytest.raises(ValueError, match="broken"), trace:
        model(torch.zeros(2, 4))
    assert trace.peak == 64 + 16 + 3 * 32  # weight and bias, the zeros, the layer's output, one added
    assert (len(nn.modules.module._global_forward_pre_hooks), len(nn.modules.module._global_forward_hooks)) == hooks
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not model[0].weight._post_accumulate_grad_hooks
    with pytest.raises(RuntimeError, match="records once"), trace:
        pass


def test_results_are_the_same_as_without():
    def step(traced):
        torch.manual_seed(0)
        model, x = network(), torch.randn(3, 4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        trace = MemoryTrace(model, optimizer) if traced else torch.enable_grad()
        with trace:
            for _ in range(3):
                model(x).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(step(True), step(False), strict=True))


@pytest.mark.parametrize("save", [torch.exp, lambda y: y * y], ids=["result", "input"])
def test_saved_tensors_changed_in_place_are_still_an_error(save):
    with MemoryTrace():
        y = torch.ones(3, requires_grad=True) * 1
        z = save(y)
        (z if save is torch.exp else y).detach().add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


def test_the_same_code_gives_the_same_records():
    def trace():
        torch.manual_seed(0)
        with MemoryTrace() as trace:
            model = network()
            model(torch.randn(3, 4)).sum().backward()
            torch.optim.AdamW(model.parameters()).step()
        return trace.records

    assert trace() == trace()


def test_fake_and_meta_tensors_count_as_real_ones():
    def trace(device):
        with torch.device(device), MemoryTrace() as trace:
            model = network()
            model(torch.zeros(3, 4)).sum().backward()
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
        return [(r.event, r.nbytes, r.category, r.module) for r in trace.records if r.operation != "aten.uniform_"]

    real = trace("cpu")
    assert trace("meta") == real
    with FakeTensorMode():
        assert trace("cpu") == real


def test_a_trace_that_is_never_entered_leaves_no_hooks():
    model = network()
    MemoryTrace(model)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_what_is_asked_in_the_middle_does_not_change_the_end():
    model, x = network(), torch.randn(3, 4)
    with MemoryTrace(model) as trace:
        hidden = model[0](x).sigmoid()
        early = {r.category for r in trace.records if r.operation == "aten.sigmoid"}
        loss = hidden.square().sum()
    assert early == {"activations"} and trace.by_category["activations"] == 96
    loss.backward()


def test_arguments_of_the_wrong_kind():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        MemoryTrace(torch.zeros(3))
    with pytest.raises(TypeError, match="Optimizer"):
        MemoryTrace().watch(network(), network())


@pytest.mark.cuda
def test_the_peak_agrees_with_what_cuda_says():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(1024, 1024), nn.GELU()) for _ in range(8)]).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(16384, 1024, device="cuda")  # a peak of 1.3 GB, of which a workspace is less than 5 %

    def step():
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):  # cuBLAS takes its workspaces, one for each thread
        step()
    torch.cuda.synchronize()
    gc.collect()
    outside = torch.cuda.memory_allocated() - sum(
        t.untyped_storage().nbytes()
        for t in (*model.parameters(), *(v for s in optimizer.state.values() for v in s.values() if v.is_cuda))
    )
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    measured = torch.cuda.max_memory_allocated() - outside
    with MemoryTrace(model, optimizer) as trace:
        step()
    assert trace.peak == pytest.approx(measured, rel=0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_peak_agrees_with_the_resident_memory_of_a_process():
    """Half a gigabyte of activations and gradients; the interpreter and warm-up are subtracted."""
    script = """
import torch
from torch import nn
from qlora_lab.memory import MemoryTrace
torch.set_num_threads(1)

def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))

def step(model, width):
    with MemoryTrace(model) as trace:
        x = torch.randn(512, width)
        model(x).square().mean().backward()
    return trace.peak

warm = nn.Sequential(*[nn.Linear(64, 64) for _ in range(2)])
step(warm, 64)
before = status("VmRSS")
model = nn.Sequential(*[nn.Sequential(nn.Linear(512, 512), nn.Sigmoid()) for _ in range(256)])
peak = step(model, 512)
print(peak, status("VmHWM") - before)
"""
    # glibc otherwise keeps what is freed, so that the process holds more than lives
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    predicted, measured = map(int, done.stdout.split())
    assert measured == pytest.approx(predicted, rel=0.15)
