"""Gradient modes combined with other features of PyTorch."""

import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from implicit_slate.fixed_point import fixed_point
from tests.fixed_point.maps import ALL_MODES, EXACT, tanh_leaves, tanh_map


def loss(weight, inputs, gradient, n=60):
    z0 = torch.zeros_like(inputs)
    return fixed_point(tanh_map(weight, inputs), z0.detach(), max_iterations=n, gradient=gradient).z.square().sum()


def gradients(gradient, weight, inputs):
    return torch.autograd.grad(loss(weight, inputs, gradient), (weight, inputs))


@pytest.mark.parametrize("gradient", ["unrolled", *EXACT])
def test_gradcheck_where_the_fixed_point_is_converged(gradient):
    def z(weight, inputs):
        z0 = torch.zeros_like(inputs).detach()
        return fixed_point(tanh_map(weight, inputs), z0, max_iterations=300, gradient=gradient).z

    assert torch.autograd.gradcheck(z, tanh_leaves(batch=2, size=3))


def test_unrolled_can_be_differentiated_twice():
    assert torch.autograd.gradgradcheck(lambda w, x: loss(w, x, "unrolled", n=20), tanh_leaves(batch=2, size=2))


@pytest.mark.parametrize("gradient", EXACT)
def test_exact_says_that_it_cannot_be_differentiated_twice(gradient):
    weight, inputs = tanh_leaves()
    (first,) = torch.autograd.grad(loss(weight, inputs, gradient), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        first.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("gradient", ALL_MODES)
def test_gradient_checkpointing_and_torch_func(gradient, reentrant):
    weight, inputs = tanh_leaves()
    expected = gradients(gradient, weight, inputs)
    checkpoint(loss, weight, inputs, gradient, use_reentrant=reentrant).backward()
    assert torch.equal(weight.grad, expected[0]) and torch.equal(inputs.grad, expected[1])
    found = torch.func.grad(loss, argnums=(0, 1))(weight.detach(), inputs.detach(), gradient)
    assert all(torch.allclose(ours, theirs, atol=1e-9) for ours, theirs in zip(found, expected))


@pytest.mark.parametrize("gradient", ["unrolled", "implicit", "exact(gmres)"])
def test_torch_compile_gives_the_same_gradients(gradient):
    torch._dynamo.reset()
    weight, inputs = tanh_leaves()
    compiled = torch.compile(loss, backend="aot_eager")
    found = torch.autograd.grad(compiled(weight, inputs, gradient, 5), (weight, inputs))
    expected = torch.autograd.grad(loss(weight, inputs, gradient, 5), (weight, inputs))
    assert all(torch.allclose(ours, theirs) for ours, theirs in zip(found, expected))


@pytest.mark.parametrize("gradient", ALL_MODES)
def test_autocast(gradient):
    """The backward pass runs outside the autocast region, but evaluates f as inside."""
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(8, 8), torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = layer(inputs)  # bfloat16, kept by the step

        def f(z):
            return torch.tanh(0.3 * layer(z) + encoded).float()

        z = fixed_point(f, torch.zeros(4, 8), max_iterations=20, gradient=gradient).z
    z.square().sum().backward()
    assert z.dtype == torch.float32 and layer.weight.grad.isfinite().all() and layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("gradient", ALL_MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits(gradient, dtype):
    """As with Lightning's `bf16-true` and `16-true`."""
    weight, inputs = tanh_leaves()
    expected = torch.autograd.grad(loss(weight, inputs, gradient), weight)[0]
    rounded = [leaf.detach().to(dtype).requires_grad_() for leaf in (weight, inputs)]
    found = torch.autograd.grad(loss(*rounded, gradient), rounded[0])[0].double()
    assert (found - expected).norm() <= 0.05 * expected.norm()


@pytest.mark.parametrize("gradient", ALL_MODES)
@pytest.mark.parametrize("backward", [True, False])
def test_nothing_is_kept_alive(gradient, backward):
    """The step's tensors are freed with the solution, even without the cyclic garbage collector."""

    class Held(torch.nn.Parameter):
        pass

    gc.collect()
    gc.disable()
    try:
        weight, inputs = tanh_leaves()
        held = Held(weight.detach())
        watch = weakref.ref(held)
        solution = fixed_point(tanh_map(held, inputs), torch.zeros_like(inputs.detach()), gradient=gradient)
        if backward:
            solution.z.sum().backward()
        del solution, held
        assert watch() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("gradient", ALL_MODES)
def test_a_second_backward_needs_its_graph_as_everywhere_and_no_grad_makes_none(gradient):
    weight, inputs = tanh_leaves()
    value = loss(weight, inputs, gradient)
    value.backward(retain_graph=True)
    first = weight.grad.clone()
    value.backward()
    assert torch.allclose(weight.grad, 2 * first)
    with torch.no_grad():
        assert not loss(weight, inputs, gradient).requires_grad
