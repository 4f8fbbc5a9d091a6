"""Attention with dropout on a GPU, compared with whole matrices; without a GPU, its kernels run in Triton's interpreter
on a CPU."""

import pytest
import torch

from implicit_slate.models import attention
from implicit_slate.models.attention_gpu import attend_dropped
from tests.models.interpreter import interpret
from tests.models.test_attention import spelled_out

SHAPES = [(1, 100, 2, 24), (2, 128, 1, 32), (1, 70, 3, 8)]  # B, N, heads, d


def draw_odd(*shape, device="cpu"):
    return (2 * torch.randint(2**31, shape, device=device) + 1).to(torch.int32)


def dropped(rows, columns, rate):
    """Which weights (heads, N, N) are dropped, from odd numbers (heads, N) and (N,): products modulo 2³², in int64."""
    row, column = rows.long()[:, :, None] % 2**32, columns.long() % 2**32
    low, high = row * (column % 2**16), (row % 2**16) * (column // 2**16) % 2**16
    return (low + high * 2**16) % 2**32 < round(rate * 2**32)


def errors(shape, rate, dtype, device):
    """Relative errors of the output and of the gradients of queries, keys and values."""
    batch, length, heads, size = shape
    torch.manual_seed(0)
    projected = torch.randn(batch, length, 3, heads, size, dtype=dtype, device=device, requires_grad=True)
    rows, columns = draw_odd(batch * heads, length, device=device), draw_odd(length, device=device)
    mixed, _ = attend_dropped(projected, rows, columns, rate)
    up = torch.randn_like(mixed.transpose(1, 2)).transpose(1, 2)  # with another memory layout
    found = [mixed, *torch.autograd.grad(mixed, projected, up)[0].unbind(2)]
    exact = projected.detach().double().requires_grad_()
    queries, keys, values = (x.transpose(1, 2).cpu() for x in exact.unbind(2))
    lost = dropped(rows.cpu(), columns.cpu(), rate).unflatten(0, (batch, heads))
    expected = spelled_out(queries, keys, values, round(rate * 2**32) / 2**32, lost).transpose(1, 2)
    expected = [expected, *torch.autograd.grad(expected, exact, up.double().cpu())[0].unbind(2)]
    return [float((a.cpu() - b.cpu()).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


def test_kernels_do_what_is_spelled_out_in_triton_s_interpreter():
    found = [float(error) for error in interpret("tests.models.test_attention_gpu").split()]
    assert len(found) == 4 * len(SHAPES) and max(found) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES, (2, 576, 8, 24)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_does_what_is_spelled_out(shape, dtype):
    assert max(errors(shape, 0.1, dtype, "cuda")) < 1e-2


@pytest.mark.gpu
def test_a_gpu_drops_at_the_rate_with_other_numbers_every_time():
    torch._dynamo.reset()
    attend = torch.compile(attention.attend, fullgraph=True, mode="reduce-overhead")
    projected = torch.zeros(50, 96, 3, 8, 16, device="cuda", dtype=torch.bfloat16)
    projected[:, :, 2] = 1
    found = [attend(projected, 0.1).float().clone() for _ in range(5)]
    for mixed in found:  # the last query attends equally to 96 keys
        assert abs(float(mixed[:, -1].mean()) - 1) < 5 * (0.1 / 0.9 / (400 * 96)) ** 0.5 + 2e-3
    assert not any(torch.equal(a, b) for a, b in zip(found, found[1:]))


def test_weights_are_dropped_at_the_rate_any_two_of_them_independently():
    torch.manual_seed(0)
    masks = torch.stack([dropped(draw_odd(2, 3), draw_odd(3), 0.3).flatten() for _ in range(20_000)]).double()
    together = masks.T @ masks / len(masks)  # (18, 18): two heads, three rows, three columns
    expected = torch.full_like(together, 0.3**2).fill_diagonal_(0.3)
    assert ((together - expected).abs() < 5 * (expected * (1 - expected) / len(masks)) ** 0.5).all()


if __name__ == "__main__":
    projected = torch.randn(2, 70, 3, 2, 8, requires_grad=True)
    torch.library.opcheck(attend_dropped, (projected, draw_odd(4, 70), draw_odd(70), 0.1))
    for shape in SHAPES:
        print(*errors(shape, 0.1, torch.float32, "cpu"))
