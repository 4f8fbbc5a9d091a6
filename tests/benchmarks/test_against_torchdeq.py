"""In every run of the benchmark, both libraries do the same work."""

import pytest

from benchmarks import against_torchdeq as benchmark


class Counted:
    """A wrapper of f that counts its evaluations and the vector-Jacobian products through it."""

    def __init__(self, f):
        self.f, self.evaluations, self.products = f, 0, 0

    def __call__(self, z):
        self.evaluations, fz = self.evaluations + 1, self.f(z)
        if fz.requires_grad:
            fz.register_hook(lambda _: setattr(self, "products", self.products + 1))
        return fz


@pytest.mark.parametrize("make", [benchmark.layer, benchmark.slots])
def test_both_evaluate_f_and_multiply_by_its_jacobian_equally_often(make):
    problem = make(batch=2)
    f = Counted(problem.f)
    for run in benchmark.runs(problem._replace(f=f)):
        work = {}
        for who, call in (("ours", run.ours), ("theirs", run.theirs)):
            f.evaluations = f.products = 0
            call()
            work[who] = (f.evaluations, f.products)
        if run.what.startswith("forward"):
            assert work["ours"] == work["theirs"] == (run.count, 0), run.what
        elif "phantom" in run.what:
            assert work["ours"] == work["theirs"] == (0, run.count), run.what
        else:  # one more evaluation of f, and one more product, through the step recorded in the forward pass
            assert work["ours"] == work["theirs"] == (1, run.count + 1), run.what


def test_the_row_is_of_one_evaluation_and_the_ratio_that_of_neighbours(monkeypatch):
    calls = []
    seconds = {"ours": iter([1, 1, 10e-6, 10e-6, 40e-6]), "theirs": iter([1, 1, 10e-6, 20e-6, 20e-6])}
    run = benchmark.Run("a run", 5, lambda: calls.append("ours"), lambda: calls.append("theirs"))
    monkeypatch.setattr(benchmark, "timed", lambda call: (call(), next(seconds[calls[-1]]))[::-1])
    assert benchmark.measure(run, rounds=3) == ["a run", "2", "4", "1.00", "0.50 to 2.00"]  # five evaluations per call
