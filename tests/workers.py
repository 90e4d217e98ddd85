"""Several processes, for tests: started from one that has everything imported, each on one thread.

`together(count, function, *arguments)` runs `function(*arguments)` in `count` connected processes and returns what each
returned, in the order of their ranks. The functions below are what tests run there. `alone(function, *arguments)` runs
any function of a module in one process.
"""

import multiprocessing
import os
import queue
import traceback

import torch
from tiny import Pair, adapted, pairs, tiny_model, tiny_tokenizer

from qlora_lab import distributed
from qlora_lab.evaluation.exact_match import generate
from qlora_lab.loss import supervised_loss_sum
from qlora_lab.machine import processes
from qlora_lab.models.gradient_checkpointing import enable_checkpointing
from qlora_lab.tasks.batches import Batches
from qlora_lab.tasks.encoding import encode
from qlora_lab.training.loop import finetune

FAST = {"steps": 6, "batch_size": 8, "learning_rate": 1e-2}
_context = multiprocessing.get_context("forkserver") if os.name == "posix" else multiprocessing.get_context("spawn")
if os.name == "posix":
    # what takes long to import; names that the server finds without pytest's search path
    slow = ("qlora_lab.evaluation.exact_match", "transformers.models.llama.modeling_llama", "torch._dynamo")
    slow += ("torch.distributed.checkpoint", "nbgrader.apps", "qlora_lab.cli.commands")
    _context.set_forkserver_preload([*slow])


def together(count: int, function, *arguments, timeout: float = 120) -> list:
    results = _context.Queue()
    port = _free_port()
    started = [
        _context.Process(target=_work, args=(number, count, port, results, function, arguments), daemon=True)
        for number in range(count)
    ]
    for process in started:
        process.start()
    found = {}
    try:
        for _ in started:
            number, value, problem = results.get(timeout=timeout)
            assert problem is None, f"process {number}:\n{problem}"
            found[number] = value
    except queue.Empty:
        raise AssertionError(f"only processes {sorted(found)} of {count} came back in {timeout} s") from None
    finally:
        for process in started:
            process.join(timeout=10)
            process.kill()
    return [found[number] for number in range(count)]


class Ended(Exception):
    """A process ended before its function did."""


def alone(function, *arguments):
    """What a function of a module returns, called in a process of its own.

    Raises:
        Ended: with its exit code, which a signal makes negative; the process's own output says why.
    """
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise Ended(f"exit code {process.exitcode}") from None


def _send(sender, function, arguments):
    torch.set_num_threads(1)
    sender.send(function(*arguments))


def _work(number, count, port, results, function, arguments):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        with processes.connected("cpu"):
            value = function(*arguments)
        results.put((number, value, None))
    except BaseException:
        results.put((number, None, traceback.format_exc()))


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def first_batch(count: int = 8):
    return Batches([encode(e, tiny_tokenizer()) for e in pairs(count)], count, 0, seed=0)[0]


def made(kind: str = "qlora", **options):
    """A model whose adapters do something; a fresh B is zero and would hide mistakes."""
    model = adapted(kind=kind, **options)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def loss_and_gradients(kind: str, checkpointing: str = "none", options=None):
    """Loss and whole gradients of one batch: of one process, or of all that are connected together."""
    model = distributed.shard(made(kind, **(options or {}))).train()
    enable_checkpointing(model, checkpointing)
    batch = first_batch()
    own = distributed.share_of_batch(batch)
    loss = supervised_loss_sum(model, own.input_ids, own.attention_mask, own.labels) / batch.supervised
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: processes.whole(p.grad).numpy() for name, p in trained.items()}  # arrays: pickled as they are
    return processes.summed(loss.detach()).item(), gradients


def memory():
    """Bytes that this process holds, by name: after being sharded, and after two steps; and its traffic in them."""
    model = distributed.shard(made()).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    before = {name: distributed.part_bytes([p]) for name, p in model.named_parameters()}
    groups = [list(layer.parameters()) for layer in distributed.decoder_layers(model)]
    batch = first_batch()
    own = distributed.share_of_batch(batch)
    traffic = []
    for _ in range(2):  # the first step also sets things up
        with distributed.Traffic() as counted:
            loss = supervised_loss_sum(model, own.input_ids, own.attention_mask, own.labels) / batch.supervised
            loss.backward()
        traffic.append((dict(counted.by_kind), dict(counted.calls)))
        gradients = distributed.part_bytes(p.grad for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
    after = {name: distributed.part_bytes([p]) for name, p in model.named_parameters()}
    state = [t for s in optimizer.state.values() for t in s.values() if t.ndim]
    blocks = sum(map(distributed.gathered_bytes, groups))
    trained = distributed.gathered_bytes(p for p in model.parameters() if p.requires_grad)
    return {
        "before": before,
        "after": after,
        "gradients": gradients,
        "state": distributed.part_bytes(state),
        "traffic": traffic,
        "predicted": (2 * blocks, trained),
    }


def timeline():
    """Spans of a step's layers, and its calls."""
    model, batch = distributed.shard(made()).train(), distributed.share_of_batch(first_batch())
    with distributed.Timeline(model) as seen:
        supervised_loss_sum(model, batch.input_ids, batch.attention_mask, batch.labels).backward()
    return seen.spans, dict(seen.calls)


def trained(out, resume: bool = False, kind: str = "qlora", dropout: float = 0.0, **changed):
    """A fine-tune; its records, and whether this process saw the adapter's file."""
    model = distributed.shard(adapted(kind=kind, dropout=dropout))
    settings = FAST | {"checkpoint_every": 2} | changed
    result = finetune(model, tiny_tokenizer(), pairs(), out=out, resume=resume, **settings)
    with distributed.whole_model(model):
        texts = generate(model, tiny_tokenizer(), ["red=", "one two="], 4)
    return [(r.step, r.loss, r.grad_norm, r.tokens) for r in result.records], result.resumed_from, texts


def stopped(out, at: int, dropout: float = 0.0):
    """A fine-tune that all processes leave after step `at`."""

    class Stop(Exception):
        pass

    def stop(record):
        if record.step == at:
            raise Stop

    model = distributed.shard(adapted(dropout=dropout))
    try:
        finetune(model, tiny_tokenizer(), pairs(), out=out, on_step=stop, checkpoint_every=2, **FAST)
    except Stop:
        return True


def validated(out, until: int | None = None, resume: bool = False):
    """A fine-tune with validation examples, five of them: no two processes have as many."""

    class Stop(Exception):
        pass

    def stop(record):
        if record.step == until:
            raise Stop

    held = [Pair(pair.prompt[::-1], pair.target) for pair in pairs(5, seed=5)]
    options = FAST | {"steps": 8, "learning_rate": 3e-2, "validate_every": 2, "checkpoint_every": 3}
    model = distributed.shard(adapted(dropout=0.1))
    try:
        result = finetune(
            model, tiny_tokenizer(), pairs(), out=out, resume=resume, on_step=stop, validation=held, **options
        )
    except Stop:
        return None
    return [(record.step, record.loss) for record in result.validations], result.best.step


def refused(what: str, out=None):
    """The message of what is refused."""
    model = adapted(tiny_model(), seed=processes.rank() if what == "seeds" else 1)
    options = {"batch": {"batch_size": 1}, "bits": {"state_bits": 8}, "paging": {"paging": {"device_budget": 0}}}
    options["resume"] = {"resume": True, "learning_rate": 1e-3, "out": out}
    try:
        if what != "unsharded":
            distributed.shard(model)
        finetune(model, tiny_tokenizer(), pairs(), **FAST | options.get(what, {}))
    except ValueError as error:
        return str(error)


def main_raises():
    def fail():
        raise ValueError("said by one")

    try:
        processes.from_main(fail)
    except ValueError as error:
        return str(error), getattr(error, "told_by_main", False)
