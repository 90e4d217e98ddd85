"""Parts of tensors are put together again, and what earlier versions left as a pickle is read without running it."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tiny import adapted, metrics, pairs, tiny_tokenizer

from qlora_lab.machine.files import save_tensors
from qlora_lab.training.loop import finetune
from qlora_lab.training.run_folder.checkpoints import load_checkpoint
from qlora_lab.training.run_folder.parts import load_parts, save_parts

EARLIER = Path(__file__).resolve().parents[1] / "made_before" / "run-of-two"
OPTIONS = {"steps": 6, "batch_size": 8, "learning_rate": 1e-2, "checkpoint_every": 4}


def a_run(tmp_path) -> Path:
    return Path(shutil.copytree(EARLIER, tmp_path / "run"))


def resumed(run):
    model = adapted(target_modules=["q_proj"])
    return finetune(model, tiny_tokenizer(), pairs(), out=run, resume=True, **OPTIONS)


def test_what_two_processes_of_an_earlier_version_wrote_is_resumed(tmp_path):
    run = a_run(tmp_path)
    before = metrics(run)
    result = resumed(run)
    assert result.resumed_from == 4 and metrics(run)[:4] == before[:4]
    whole = finetune(adapted(target_modules=["q_proj"]), tiny_tokenizer(), pairs(), **OPTIONS)
    assert [r.loss for r in result.records] == pytest.approx([r.loss for r in whole.records], rel=1e-4)


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(mark: str) -> dict[str, bytes]:
    import torch.distributed.checkpoint.metadata as m

    write = f"open({mark!r}, 'w').close()"
    as_value = m.Metadata({"a": Runs(exec, write)})
    as_state = m.StorageMeta(modules=[Runs(eval, write)])
    return {
        "a call of exec": pickle.dumps(Runs(exec, write)),
        "a call of os.system": pickle.dumps(Runs(os.system, f"touch {mark}")),
        "inside of honest metadata": pickle.dumps(as_value),
        "inside of a field": pickle.dumps(m.Metadata({}, storage_meta=as_state)),
        "in the oldest format": pickle.dumps(Runs(exec, write), protocol=0),
        "through torch": b"ctorch.serialization\nload\n(V" + mark.encode() + b"\ntR.",
        "through a name with dots": b"\x80\x04\x8c\x05torch\x8c\x13serialization.os.system\x93\x8c\x01x\x85R.",
        "through a module that torch has": b"ctorch\nos\n.",
        "a class of this package": b"cqlora_lab.training.loop\nfinetune\n)R.",
        "builtins": b"c__builtin__\neval\n(V" + write.encode() + b"\ntR.",
        "something outside": b"\x80\x04\x8c\x01xQ.",
        "no pickle": b"{}",
        "nothing": b"",
    }


@pytest.mark.parametrize("name", hostile(""))
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path, name):
    run, mark = a_run(tmp_path), tmp_path / "it ran"
    (run / "checkpoints" / "checkpoint-000004" / ".metadata").write_bytes(hostile(str(mark))[name])
    with pytest.raises(ValueError, match=r"checkpoint-000004 is damaged"):
        resumed(run)
    assert not mark.exists()


def test_such_a_file_would_run_where_a_pickle_is_read(tmp_path):
    mark = tmp_path / "it ran"
    pickle.loads(hostile(str(mark))["inside of honest metadata"])
    assert mark.exists()


@pytest.mark.parametrize("where", ["/etc/passwd", "../checkpoint-000002/__0_0.distcp", 7])
def test_it_reads_no_file_outside(tmp_path, where):
    folder = a_run(tmp_path) / "checkpoints" / "checkpoint-000004"
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    next(iter(metadata.storage_data.values())).relative_path = where
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="outside of the checkpoint"):
        load_checkpoint(folder.parent)


def test_a_chunk_that_is_a_pickle_is_refused_and_runs_nothing(tmp_path):
    import io

    folder, mark = a_run(tmp_path) / "checkpoints" / "checkpoint-000004", tmp_path / "it ran"
    content = io.BytesIO()
    torch.save(Runs(exec, f"open({str(mark)!r}, 'w').close()"), content)
    for path in folder.glob("*.distcp"):
        path.write_bytes(content.getvalue().ljust(path.stat().st_size, b"\0"))
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.offset, info.length = 0, len(content.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(folder.parent)
    assert not mark.exists()


def test_parts_of_several_come_together(tmp_path):
    whole = torch.arange(24.0).view(6, 4)
    for number, (a, b) in enumerate([(0, 2), (2, 5), (5, 6), (6, 6)]):  # the last process holds nothing of it
        place = {"a": {"whole": [6, 4], "start": [a, 0]}}
        save_tensors(tmp_path / f"part-{number:05d}.safetensors", {"a": whole[a:b]}, {"places": json.dumps(place)})
    assert torch.equal(load_parts(tmp_path, lambda name: None)["a"], whole)
    (tmp_path / "part-00001.safetensors").unlink()
    with pytest.raises(ValueError, match="of a 12 of 24 elements are there"):
        load_parts(tmp_path, lambda name: None)


def test_tensors_that_are_not_cut_come_from_the_main_process(tmp_path):
    tensors = {"scalar": torch.tensor(3.0), "bytes": torch.arange(5, dtype=torch.uint8), "none": torch.empty(0, 3)}
    save_parts(tmp_path, tensors)
    found = load_parts(tmp_path, lambda name: None)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
