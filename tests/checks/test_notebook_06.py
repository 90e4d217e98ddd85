"""The loop of notebook 06 against torch's own optimizer, and answers to it that are right in other words."""

import pytest
import torch

from qlora_lab.checks import notebook_06, verdict


@pytest.mark.parametrize("seed", range(6))
def test_the_loop_is_torch_s_adamw_on_the_whole_batch(seed):
    """Both kinds of problems, with the parts of a step put together before torch sees them."""
    for number in (3, 4, 5, 6):
        values, batches, peak, adamw = notebook_06._problem(torch.Generator().manual_seed(seed), number)
        assert adamw
        parameters = [value.clone().requires_grad_() for value in values]
        optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)
        wanted = []
        for step, parts in enumerate(batches, 1):
            optimizer.param_groups[0]["lr"] = peak / (1 + 0.5 * abs(step - 2))
            if isinstance(parts[0], tuple):
                x, y = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
                loss = (x @ parameters[0] + parameters[1] - y).square().mean() / 2
            else:
                pairs = zip(parameters, torch.cat(parts, 1), strict=True)
                loss = sum((p - targets).square().sum(1).mean() for p, targets in pairs) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            wanted.append(loss.item())
        found, losses = notebook_06._run(notebook_06.train, (values, batches, peak, True))
        for one, other in zip(found, parameters, strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-5)
        assert losses == pytest.approx(wanted, rel=1e-4)


def test_the_given_list_may_be_written_to():
    def train(values, batches, gradients_of, rate_at, combine, update):
        new, losses = notebook_06.train(values, batches, gradients_of, rate_at, combine, update)
        values[:] = new
        return values, losses

    assert verdict("train", train).status == "right"


def test_moments_may_begin_as_numbers():
    def train(values, batches, gradients_of, rate_at, combine, update):
        state, losses = {i: (0.0, 0.0) for i in range(len(values))}, []
        for step in range(1, len(batches) + 1):
            losses_of, tokens, gradients = zip(*(gradients_of(values, part) for part in batches[step - 1]), strict=True)
            losses.append(sum(a * b for a, b in zip(losses_of, tokens, strict=True)) / sum(tokens))
            values = list(values)
            for i, parts in enumerate(zip(*gradients, strict=True)):
                values[i], *state[i] = update(
                    values[i], combine(list(parts), list(tokens)), *state[i], step, rate_at(step)
                )
        return tuple(values), tuple(losses)

    assert verdict("train", train).status == "right"
