"""Exercises of notebook 03 that change a model: any way to do it is right, and every other change is seen."""

import pytest
from torch import nn

from qlora_lab.checks import verdict
from qlora_lab.checks.notebook_03 import _model_of, _replaced


def set_submodule(model, path, module):
    model.set_submodule(path, module)


def by_dictionaries(model, path, module):
    *parents, leaf = path.split(".")
    for name in parents:
        model = model._modules[name]
    model._modules[leaf] = module


def by_attributes(model, path, module):
    *parents, leaf = path.split(".")
    for name in parents:
        model = getattr(model, name)
    delattr(model, leaf)
    model.add_module(leaf, module)
    return model


@pytest.mark.parametrize("answer", [set_submodule, by_dictionaries, by_attributes])
def test_a_module_is_replaced_in_any_way(answer):
    for seed in range(3):
        assert verdict("replace-module", answer, seed).status == "right"


def and_one_more(model, path, module):
    set_submodule(model, path, module)
    model.extra = nn.Linear(2, 2)


def and_without_the_others(model, path, module):
    set_submodule(model, path, module)
    for name in list(model._modules):
        if name != path.partition(".")[0]:
            delattr(model, name)


def a_wrapped_one(model, path, module):
    set_submodule(model, path, nn.Sequential(module))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (and_one_more, "at extra there is then another, and there should be nothing"),
        (and_without_the_others, "at down_proj there is then nothing, and there should be old down_proj"),
        (a_wrapped_one, "at up_proj there is then nothing, and there should be new"),
    ],
)
def test_a_model_that_is_changed_elsewhere_too_is_wrong(answer, says):
    found = verdict("replace-module", answer)
    assert found.status == "wrong" and says in found.message


def test_the_model_has_the_layers_it_should():
    paths = ["layers.0.q_proj", "layers.10.q_proj", "lm_head"]
    found = [name for name, module in _model_of(paths).named_modules() if isinstance(module, nn.Linear)]
    assert found == paths
    assert _replaced(set_submodule, (paths, "layers.10.q_proj")) == {
        "layers > 0 > q_proj": "old layers.0.q_proj", "layers > 10 > q_proj": "new", "lm_head": "old lm_head",
    }  # fmt: skip
