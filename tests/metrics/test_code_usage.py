"""How many codes are in use, and how evenly."""

import pytest
import torch

from implicit_slate.metrics import CodeUsage


def test_codes_are_counted_over_all_batches_until_it_is_reset():
    usage = CodeUsage(5)
    for _ in range(2):
        usage.update(torch.tensor([[0, 0], [0, 3]]))
        once = usage.compute()
        usage.update(torch.tensor([[3, 3], [3, 0]]))
        assert {name: value.item() for name, value in usage.compute().items()} == pytest.approx(
            {"codes_in_use": 2, "code_perplexity": 2}
        )
        assert once["codes_in_use"] == 2 and once["code_perplexity"].item() == pytest.approx(4 / 27**0.25)
        usage.reset()
