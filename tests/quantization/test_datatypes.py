"""The tables against bitsandbytes', and the rules that follow from them."""

import bitsandbytes.functional as reference
import pytest
import torch

from qlora_lab.quantization.datatypes import DATATYPES, DataType, dynamic_map, get_datatype


def test_nf4_equals_bitsandbytes_bit_for_bit():
    assert torch.equal(get_datatype("nf4").table(), reference.get_4bit_type("nf4", device="cpu"))


def test_fp4_equals_bitsandbytes_to_its_four_decimals():
    torch.testing.assert_close(
        get_datatype("fp4").table(), reference.get_4bit_type("fp4", device="cpu"), rtol=2e-3, atol=1e-12
    )


def test_the_dynamic_map_equals_bitsandbytes_bit_for_bit():
    assert torch.equal(torch.tensor(dynamic_map()), reference.create_dynamic_map())
    assert len(set(dynamic_map())) == 256


@pytest.mark.parametrize("name", DATATYPES)
def test_order_sorts_the_distinct_levels(name):
    datatype = get_datatype(name)
    levels = [datatype.levels[code] for code in datatype.order]
    assert levels == sorted(set(datatype.levels))
    assert all(low < t < high for low, t, high in zip(levels[:-1], datatype.thresholds, levels[1:], strict=True))


@pytest.mark.parametrize("name, code", [("nf4", 7), ("fp4", 0), ("int4", 8), ("int4_affine", 0)])
def test_zero_has_a_code_of_its_own(name, code):
    datatype = get_datatype(name)
    assert datatype.zero_code == code
    assert datatype.levels[code] == 0.0


@pytest.mark.parametrize("name", ["nf5", "", None, 4, ["nf4"]])
def test_an_unknown_name_is_told_the_known_ones(name):
    with pytest.raises(ValueError, match="nf4, fp4, int4, int4_affine"):
        get_datatype(name)


def test_a_data_type_has_sixteen_levels():
    with pytest.raises(ValueError, match="16 levels; 'short' was given 3"):
        DataType("short", (0.0, 0.5, 1.0))
