"""Least squares on a support, the sweep of SparseGPT, ADMM and exchanges, against float64 written out row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nmlearn as nm
from nmlearn.errors import DataError
from nmlearn.maths.exchange import exchange
from nmlearn.maths.importance import live, relative, ria, top_of_groups, wanda
from nmlearn.maths.obs import inverse_factor, sweep
from nmlearn.maths.reconstruction import errors, refit_pcg
from nmlearn.maths.splitting import split

PATTERNS = ["2:4", "1:16", "3:7", "4:8", "5:5"]


def problem(columns: int, groups: int = 2, rows: int = 5, tokens: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows ``[G, O, K]`` and correlated inputs ``[G, T, K]`` of very different sizes, in float64."""
    g = torch.Generator().manual_seed(seed)
    rows_gok = torch.randn(groups, rows, columns, generator=g, dtype=torch.float64)
    mixed = torch.eye(columns, dtype=torch.float64) + 0.3 * torch.randn(columns, columns, generator=g).double()
    size = torch.rand(columns, generator=g).double() * 2 + 0.05
    x_gtk = torch.randn(groups, tokens, columns, generator=g, dtype=torch.float64) @ mixed * size + 0.5 * size
    return rows_gok, x_gtk


def width(pattern: str, least: int = 1) -> int:
    """A number of columns that M divides."""
    m = nm.Pattern(pattern).m
    return -(-least // m) * m


def per_group(keep_gok: Tensor, pattern: str) -> list[int]:
    return keep_gok.unflatten(-1, (-1, nm.Pattern(pattern).m)).sum(-1).unique().tolist()


def test_an_error_is_that_of_the_outputs() -> None:
    rows, x = problem(12)
    other = rows * (torch.arange(12) % 3 > 0)
    outputs = (x @ (rows - other).mT).square().sum(1)
    torch.testing.assert_close(errors(rows - other, x.mT @ x), outputs)


def least_squares(rows: Tensor, keep: Tensor, x: Tensor) -> Tensor:
    """The exact optimum on the support of each row."""
    found = torch.zeros_like(rows)
    for g, row in torch.cartesian_prod(torch.arange(rows.shape[0]), torch.arange(rows.shape[1])).tolist():
        columns = keep[g, row].nonzero()[:, 0]
        answer = torch.linalg.lstsq(x[g][:, columns], (x[g] @ rows[g, row])[:, None], driver="gelsd").solution
        found[g, row, columns] = answer[:, 0]
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
def test_refitted_rows_are_the_least_squares_on_their_support(pattern: str) -> None:
    rows, x = problem(width(pattern, 24))
    keep = top_of_groups(rows.abs(), nm.Pattern(pattern))
    found = refit_pcg(rows, keep, x.mT @ x, rows, steps=200)
    torch.testing.assert_close(found, least_squares(rows, keep, x), rtol=1e-7, atol=1e-9)
    assert not found[~keep].any()


def test_every_step_of_a_refit_lowers_the_error_and_none_raises_it() -> None:
    rows, x = problem(32)
    gram, keep = x.mT @ x, top_of_groups(rows.abs(), nm.Pattern("2:4"))
    best = least_squares(rows, keep, x)
    found = [errors(refit_pcg(rows, keep, gram, rows, n) - rows, gram) for n in (1, 2, 4, 8, 16, 64)]
    before = errors(rows * keep - rows, gram)
    for after in found:
        assert bool((after <= before * (1 + 1e-12)).all())
        before = after
    torch.testing.assert_close(found[-1], errors(best - rows, gram), rtol=1e-8, atol=1e-9)
    rest = refit_pcg(best, keep, gram, rows, 5)  # from the optimum nothing gets worse, in float32 either
    assert bool((errors(rest - rows, gram) <= errors(best - rows, gram)).all())
    narrow = [t.float() for t in (best, gram, rows)]
    again = refit_pcg(narrow[0], keep, narrow[1], narrow[2], 50)
    assert bool((errors(again - narrow[2], narrow[1]) <= errors(narrow[0] - narrow[2], narrow[1])).all())


def test_a_refit_with_fewer_tokens_than_weights_and_with_dead_inputs() -> None:
    rows, x = problem(24, tokens=7)
    x[..., 3] = x[..., 16:24] = 0.0
    gram, keep = x.mT @ x, top_of_groups(rows.abs(), nm.Pattern("2:4"))
    found = refit_pcg(rows, keep, gram, rows, 100)
    exact = errors(least_squares(rows, keep, x) - rows, gram)
    torch.testing.assert_close(errors(found - rows, gram), exact, rtol=1e-6, atol=1e-6)
    dead = keep & (gram.diagonal(dim1=-2, dim2=-1) == 0)[:, None]
    assert dead.any() and torch.equal(found[dead], rows[dead])  # nothing says that they should move


def surgery(row: Tensor, hessian: Tensor, pattern: nm.Pattern) -> tuple[Tensor, Tensor]:
    """Optimal brain surgery from left to right on one row, inverting what is left of the Hessian each time."""
    row, keep = row.clone(), torch.ones_like(row, dtype=torch.bool)
    for j in range(len(row)):
        if j % pattern.m == 0:
            cost = [row[k] ** 2 / torch.linalg.inv(hessian[k:, k:])[0, 0] for k in range(j, j + pattern.m)]
            order = torch.stack(cost).argsort(descending=True)
            keep[j + order[pattern.n :]] = False
        if not keep[j]:
            inverse = torch.linalg.inv(hessian[j:, j:])
            row[j:] -= row[j] / inverse[0, 0] * inverse[0]
    return keep, row * keep


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_sweep_is_surgery_with_the_inverse_of_what_is_left(pattern: str) -> None:
    rows, x = problem(width(pattern, 140), rows=2)  # more than one block of 128
    gram = x.mT @ x
    keep, values = sweep(rows, inverse_factor(gram, 0.01, "here"), nm.Pattern(pattern))
    assert per_group(keep, pattern) == [nm.Pattern(pattern).n]
    for g in range(2):
        damped = gram[g] + 0.01 * gram[g].diagonal().mean() * torch.eye(rows.shape[-1], dtype=torch.float64)
        for row in range(2):
            expected, wanted = surgery(rows[g, row], damped, nm.Pattern(pattern))
            assert torch.equal(keep[g, row], expected)
            torch.testing.assert_close(values[g, row], wanted, rtol=1e-8, atol=1e-9)


def test_an_inverse_factor_is_upper_and_of_the_damped_matrix() -> None:
    _, x = problem(12)
    gram = x.mT @ x
    factor = inverse_factor(gram, 0.1, "here")
    damped = gram + 0.1 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(12)
    assert not factor.tril(-1).any()
    torch.testing.assert_close(factor.mT @ factor, torch.linalg.inv(damped))


def test_too_little_damping_is_raised_and_what_is_no_matrix_of_inputs_is_refused() -> None:
    flat = torch.ones(1, 8, 8)
    assert torch.isfinite(inverse_factor(flat, 0.0, "here")).all()
    nothing = inverse_factor(torch.zeros(1, 8, 8), 0.01, "here")
    assert torch.isfinite(nothing).all() and bool((nothing.diagonal(dim1=-2, dim2=-1) > 0).all())
    for broken in (torch.full((1, 4, 4), torch.nan), -5 * torch.eye(4)[None] + torch.eye(4).roll(2, 0) * 40):
        with pytest.raises(DataError, match=r"conv\.weight: given .*no Cholesky factor"):
            inverse_factor(broken, 0.01, "conv.weight")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_admm_ends_on_a_better_support_than_magnitude(pattern: str) -> None:
    rows, x = problem(width(pattern, 32))
    gram = x.mT @ x
    keep, values = split(rows, gram, nm.Pattern(pattern), damping=0.01, rho=0.1, rounds=300)
    assert per_group(keep, pattern) == [nm.Pattern(pattern).n] and not values[~keep].any()
    if pattern == "5:5":
        torch.testing.assert_close(values, rows)
        return
    magnitude = least_squares(rows, top_of_groups(rows.abs(), nm.Pattern(pattern)), x)
    ours = least_squares(rows, keep, x)
    assert errors(ours - rows, gram).sum() < errors(magnitude - rows, gram).sum()
    # The values that ADMM left are near that optimum already: it has converged, not just stopped.
    assert errors(values - rows, gram).sum() < 1.2 * errors(ours - rows, gram).sum() + 1e-9


def test_the_penalty_grows_with_the_change_and_ends_the_rounds_when_the_support_rests() -> None:
    """Growing by 1.1 throughout takes 57 rounds and more on these; what rests is returned, however many are allowed."""
    for pattern in map(nm.Pattern, ("2:4", "1:16", "3:7", "4:8")):
        rows, x = problem(width(str(pattern), 32))
        some, more = (split(rows, x.mT @ x, pattern, damping=0.01, rho=0.1, rounds=n) for n in (42, 3000))
        assert torch.equal(some[1], more[1])


def test_a_round_of_admm_is_the_formula() -> None:
    """One round, with the linear system solved and not decomposed."""
    rows, x = problem(8)
    gram = x.mT @ x
    size = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    pattern, rho = nm.Pattern("2:4"), 0.3
    hessian = gram / size[:, :, None] / size[:, None, :] + 0.01 * torch.eye(8)
    scaled = rows * size[:, None]
    first = scaled * top_of_groups(scaled.abs(), pattern)
    dense = torch.linalg.solve(hessian + rho * torch.eye(8), (scaled @ hessian + rho * first).mT).mT
    expected = top_of_groups(dense.abs(), pattern)
    keep, values = split(rows, gram, pattern, damping=0.01, rho=rho, rounds=1)
    assert torch.equal(keep, expected)
    torch.testing.assert_close(values, dense * expected / size[:, None])


def exchanged(keep: Tensor, effect: Tensor, grow: Tensor, prune: Tensor, m: int, cycles: int, least: float) -> Tensor:
    """The same for one row, in plain words."""
    kept = keep.tolist()
    for _ in range(cycles):
        error = sum(float(e) for e, k in zip(effect, kept, strict=True) if not k)
        sign = 1.0 if error > 0 else -1.0
        able = [k for k in range(len(kept)) if not kept[k] and sign * effect[k] > 0]
        if abs(error) < least or not able:
            break
        grown = max(able, key=lambda k: sign * float(grow[k]))
        others = [k for k in range(grown // m * m, grown // m * m + m) if kept[k]]
        pruned = min(others, key=lambda k: float(prune[k]))
        after = error - float(effect[grown]) + float(effect[pruned])
        if after * sign < 0 or abs(after) >= abs(error):
            break
        kept[grown], kept[pruned] = True, False
    return torch.tensor(kept)


@pytest.mark.parametrize("pattern", ["2:4", "1:16", "3:7", "5:5"])
@pytest.mark.parametrize("threshold", [0.0, 3.0])
def test_exchanges_are_those_of_one_row_at_a_time(pattern: str, threshold: float) -> None:
    rows, x = problem(width(pattern, 64), rows=12)
    keep = top_of_groups(rows.abs(), nm.Pattern(pattern))
    effect, prune = rows * x.mean(1)[:, None], wanda(rows, x.square().sum(1).sqrt())
    gain = effect / x.var(1)[:, None]
    found = exchange(
        keep,
        effect,
        (gain, torch.zeros_like(gain)),
        prune,
        nm.Pattern(pattern),
        cycles=50,
        threshold=threshold,
    )
    assert per_group(found, pattern) == [nm.Pattern(pattern).n]
    assert torch.equal(found, keep) == (pattern == "5:5")
    for g, row in [(g, row) for g in range(2) for row in range(12)]:
        given = (keep[g, row], effect[g, row], gain[g, row], prune[g, row])
        assert torch.equal(found[g, row], exchanged(*given, nm.Pattern(pattern).m, 50, threshold))


def test_scores_are_their_formulas_and_dead_inputs_leave_the_choice_to_magnitude() -> None:
    rows, x = problem(12, rows=3)
    norm = x.square().sum(1).sqrt()
    size = rows.abs()
    torch.testing.assert_close(wanda(rows, norm), size * norm[:, None])
    important = size / size.sum(2, keepdim=True) + size / size.sum(1, keepdim=True)
    torch.testing.assert_close(relative(rows), important)
    torch.testing.assert_close(ria(rows, norm, 0.5), important * norm.sqrt()[:, None])
    assert torch.equal(live(torch.zeros(1, 4)), torch.ones(1, 4))
    norm[:, 4:8] = 0.0
    norm[:, 8] = 0.0
    keep = top_of_groups(wanda(rows, norm), nm.Pattern("2:4"))
    assert torch.equal(keep[..., 4:8], top_of_groups(size[..., 4:8], nm.Pattern("2:4")))
    assert not keep[..., 8].any()
    assert torch.isfinite(ria(torch.zeros(1, 3, 4), torch.zeros(1, 4), 0.5)).all()
