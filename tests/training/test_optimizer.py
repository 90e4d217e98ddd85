"""The optimizer of a run: paging changes where its state lies and nothing else; 8-bit state is a setting."""

import pytest
import torch
from tiny import adapted, pairs, tiny_tokenizer

from qlora_lab.paging.paged_adamw import PagedAdamW
from qlora_lab.training.loop import finetune
from qlora_lab.training.optimizer import device_bytes, make_optimizer
from qlora_lab.training.settings import Settings

FAST = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2}


def trained(**options):
    return finetune(adapted(), tiny_tokenizer(), pairs(), **{**FAST, **options})


def weights(result):
    return {name: p.detach().clone() for name, p in result.model.named_parameters() if p.requires_grad}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("paging", [{}, {"device_budget": 0}, {"device_budget": 8192, "page_size": 4096}])
def test_a_paged_run_gives_the_same_bits(tmp_path, paging):
    plain, paged = trained(), trained(out=tmp_path / "run", paging=paging)
    assert_same_bits(weights(plain), weights(paged))
    assert [r.loss for r in plain.records] == [r.loss for r in paged.records]
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")) == [
        "adapter",
        "checkpoints",
        "metrics.jsonl",
    ]


class Stop(Exception):
    pass


@pytest.mark.parametrize("paged_first", [True, False])
def test_a_run_may_stop_with_pages_and_go_on_without(tmp_path, paged_first):
    def stop(record):
        if record.step == 3:
            raise Stop

    paging = {"device_budget": 8192, "page_size": 4096}
    options = {"out": tmp_path, "checkpoint_every": 3}
    with pytest.raises(Stop):
        trained(**options, on_step=stop, paging=paging if paged_first else None)
    assert not list(tmp_path.glob("*page*"))
    resumed = trained(**options, resume=True, paging=None if paged_first else paging)
    assert resumed.resumed_from == 3
    assert_same_bits(weights(trained()), weights(resumed))


def test_8_bit_state_is_a_setting_of_the_run(tmp_path):
    large = {"steps": 2, "out": tmp_path}
    trained(**large, state_bits=8)
    with pytest.raises(ValueError, match="state_bits was 8, now 32"):
        trained(**large, resume=True)


def test_state_bits_decide_the_optimizer():
    parameter = [torch.nn.Parameter(torch.ones(8192))]
    assert type(make_optimizer(parameter, Settings(), None)) is torch.optim.AdamW
    with make_optimizer(parameter, Settings(state_bits=8), None) as small:
        assert isinstance(small, PagedAdamW)


@pytest.mark.parametrize(
    ("paging", "words"),
    [
        ({"budget": 4096}, "device_budget, host_budget, directory, page_size"),
        ({"directory": "/nowhere/at/all"}, "does not exist"),
        ({"device_budget": -1}, "0 or more"),
    ],
)
def test_paging_that_makes_no_sense(paging, words):
    with pytest.raises(ValueError, match=words):
        trained(paging=paging)


def test_what_stays_beside_the_model():
    parameters = [torch.nn.Parameter(torch.ones(1000))]
    assert device_bytes(parameters, Settings(), None) == 8000
    assert device_bytes(parameters, Settings(state_bits=8), {}) == 2000
    assert device_bytes(parameters, Settings(), {"device_budget": 4096}) == 4096
    assert device_bytes(parameters, Settings(), {"device_budget": 10**6}) == 8000
    assert device_bytes(parameters, Settings(), {"device_budget": "auto"}) == 0
