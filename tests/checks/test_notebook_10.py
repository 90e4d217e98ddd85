"""The finished answers of notebook 10 are what the package has, and right answers may be written otherwise."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from qlora_lab import variants
from qlora_lab.checks import EXERCISES, notebook_10, verdict
from qlora_lab.quantization import calibrated, get_datatype, quantize

NF4 = get_datatype("nf4").table()
DECIMALS = st.integers(0, 10**6)


def case(out: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out, width), and moments of inputs of which a few are large."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(torch.randn(width, generator=generator))
    moments = spread[:, None] * notebook_10._moments(generator, width) * spread
    return torch.randn(out, width, generator=generator), moments


def test_values_and_scales_are_those_of_the_formats():
    values = torch.tensor([notebook_10.e2m1_value(code) for code in range(16)])
    for name in ("mxfp4", "nvfp4"):
        assert values.equal(get_datatype(name).table())


@given(seed=DECIMALS, blocks=st.integers(1, 9), exponent=st.integers(-30, 30))
def test_scales_are_mxfp4s(seed, blocks, exponent):
    weight = torch.randn(blocks, 32, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    assert notebook_10.power_of_two_scale(weight.abs().amax(1)).equal(quantize(weight, "mxfp4").scales)


def test_a_scale_is_right_just_below_a_power_of_two():
    below = torch.nextafter(torch.tensor([8.0, 0.25]), torch.tensor(0.0))
    assert notebook_10.power_of_two_scale(below).tolist() == [1.0, 2.0**-5]
    assert notebook_10.power_of_two_scale(torch.tensor([8.0, 0.25])).tolist() == [2.0, 2.0**-4]


@given(seed=DECIMALS, out=st.integers(1, 9), width=st.integers(2, 20))
def test_the_error_of_outputs_is_the_packages(seed, out, width):
    weight, moments = case(out, width, seed)
    error = weight.roll(1, 0).flip(1) / 10
    theirs = calibrated.output_error(error, moments, weight)
    assert notebook_10.output_error(error, moments, weight) == pytest.approx(theirs, rel=1e-4)


@given(seed=DECIMALS, out=st.integers(1, 6), width=st.integers(2, 24))
def test_a_pushed_error_is_what_least_squares_gives(seed, out, width):
    weight, moments = case(out, width, seed)
    moments, error = moments.double(), weight[:, 0].double()
    fitted = -error[:, None] * torch.linalg.solve(moments[1:, 1:], moments[1:, 0])
    torch.testing.assert_close(notebook_10.push_error(error, moments), fitted, rtol=1e-5, atol=1e-5)


@given(seed=DECIMALS, out=st.integers(1, 6), blocks=st.integers(1, 4), size=st.sampled_from([16, 32]))
def test_gptq_is_the_packages(seed, out, blocks, size):
    weight, moments = case(out, blocks * size, seed)
    assume(notebook_10._margin(weight, moments, NF4, size) > 2e-5)  # else the order of operations may decide a code
    found = notebook_10.gptq(weight, moments, NF4, size)
    theirs = calibrated.gptq(weight, moments, "nf4", size).dequantize()
    torch.testing.assert_close(found, theirs, atol=1e-5 * weight.abs().max().item(), rtol=1e-4)


@given(seed=DECIMALS, layers=st.integers(1, 3), size=st.sampled_from([16, 32]))
def test_scales_of_awq_are_the_packages(seed, layers, size):
    weight, moments = case(4 * layers, 2 * size, seed)
    squares = sorted(notebook_10._errors_of_exponents(weight, moments, NF4, size, 8)[0])
    assume(squares[1] > 1.001 * squares[0])
    s, exponent = notebook_10.awq_scales(weight, moments, NF4, size, 8)
    theirs = calibrated.awq_scales(weight.split(4), moments, "nf4", size, 8)
    assert exponent == theirs[1]
    torch.testing.assert_close(s, theirs[0])


class TestRightAnswersOfOtherKinds:
    @pytest.mark.parametrize("seed", range(3))
    def test_a_table_and_logarithms(self, seed):
        sizes = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
        assert verdict("e2m1-value", lambda code: (-1) ** (code // 8) * sizes[code % 8], seed).status == "right"
        by_logarithm = verdict("power-of-two-scale", lambda x: 2 ** (x.log2().floor() - 2), seed)
        assert by_logarithm.status == "right", by_logarithm

    @pytest.mark.parametrize("seed", range(3))
    def test_a_push_by_solving(self, seed):
        def push(error, moments):
            return -torch.outer(error, torch.linalg.solve(moments[1:, 1:], moments[0, 1:]))

        assert verdict("push-error", push, seed).status == "right"

    @pytest.mark.parametrize("seed", range(3))
    def test_gptq_with_an_inverse_for_every_column_and_in_float64(self, seed):
        def with_inverses(weight, moments, levels, block_size):
            w = weight.double().clone()
            m = moments.double() + 0.01 * moments.diagonal().double().mean() * torch.eye(len(moments))
            for j in range(w.shape[1]):
                if j % block_size == 0:
                    scale = w[:, j : j + block_size].abs().amax(1)
                nearest = (w[:, j, None] - levels * scale[:, None]).abs().argmin(1)
                error = levels[nearest] * scale - w[:, j]
                w[:, j] += error
                if j + 1 < len(m):
                    row = torch.linalg.inv(m[j:, j:])[0]
                    w[:, j + 1 :] += error[:, None] * row[1:] / row[0]
            return w.float()

        assert verdict("gptq", with_inverses, seed).status == "right"


@pytest.mark.parametrize("column", [0, 1, 8, 11])
def test_a_wrong_column_of_gptq_is_named(column):
    """Nobody's misconception: one column is off, and what is told depends on which."""
    exercise = EXERCISES["gptq"]
    arguments = next(case for n in range(0, 8, 2) if (case := _drawn(n))[0].shape[1] >= 16)
    right = exercise.solution(*arguments)
    wrong = right.clone()
    wrong[:, column] += 0.1
    told = notebook_10._describe_columns(arguments, wrong, right)
    assert f"the first is column {column}" in told
    ends = {0: "before anything is pushed", 1: "column 0 pushed", 8: "where a block begins", 11: "before it are right"}
    assert ends[column] in told


def _drawn(number: int) -> tuple:
    return EXERCISES["gptq"].draw(torch.Generator().manual_seed(number), number)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=30))
def test_ranks_are_correlated_as_by_counting(pairs):
    x, y = map(list, zip(*pairs, strict=True))
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    ranks = []
    for values in (x, y):
        _, place, count = torch.tensor(values).unique(return_inverse=True, return_counts=True)
        ranks.append((count.cumsum(0) - (count - 1) / 2)[place].double())
    found = notebook_10.rank_correlation(x, y)
    assert found == pytest.approx(torch.corrcoef(torch.stack(ranks))[0, 1].item(), abs=1e-9)
    assert notebook_10.rank_correlation([2.0**value for value in x], y) == pytest.approx(found, abs=1e-12)
    assert notebook_10.rank_correlation(y, [-value for value in x]) == pytest.approx(-found, abs=1e-12)


@given(seed=DECIMALS, out=st.integers(2, 12), blocks=st.integers(1, 3), rank=st.integers(1, 2))
def test_a_round_of_loftq_is_the_packages(seed, out, blocks, rank):
    weight = torch.randn(out, 16 * blocks, generator=torch.Generator().manual_seed(seed))
    rounded, a, b = notebook_10.loftq(weight, rank, 2.0, NF4, 16, 1)
    theirs, their_a, their_b = variants.loftq(weight, rank, 2.0, "nf4", 16, rounds=1)
    torch.testing.assert_close(rounded, theirs.dequantize())
    lost = weight - rounded
    ours, by_theirs = (lost - 2 * b @ a).norm(), (lost - 2 * their_b @ their_a).norm()
    assert (ours - by_theirs).abs() <= 1e-5 * lost.norm() and ours < lost.norm()  # part of it is made good


def test_rounds_of_loftq_begin_with_what_the_adapter_leaves():
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    _, a, b = notebook_10.loftq(weight, 3, 0.5, NF4, 32, 2)
    rounded, *_ = notebook_10.loftq(weight, 3, 0.5, NF4, 32, 3)
    theirs = quantize(weight - 0.5 * b @ a, "nf4", 32).dequantize()
    assert ((rounded - theirs).abs() > 1e-5).float().mean() < 0.01


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_singular_values_may_be_shared_in_any_way(share):
    def shared(*arguments):
        rounded, a, b = notebook_10.loftq(*arguments)
        length = b.norm(dim=0)
        return rounded, a * length[:, None] ** share, b / length**share

    assert verdict("loftq", shared).status == "right"
