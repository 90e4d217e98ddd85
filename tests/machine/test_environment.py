"""What the machine is: facts with values, and no promise that the hardware does not keep."""

import torch

from qlora_lab.machine import dtypes, environment, processor


def test_versions_name_what_is_missing(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "a-package-that-does-not-exist"))
    found = environment.versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["a-package-that-does-not-exist"] == "missing"


def test_every_fact_has_a_value():
    facts = environment.describe()
    assert {"device", "computes in", "bfloat16", "float32 products", "free memory", "compiler"} == facts.keys()
    assert all(facts.values())


def test_bfloat16_products_only_where_the_processor_has_them(monkeypatch):
    for has, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(processor, "multiplies_bfloat16", lambda has=has: has)
        assert dtypes.default_compute_dtype("cpu") == expected
        assert dtypes.default_compute_dtype("cuda") is None


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert "none found" in environment.describe()["compiler"]
