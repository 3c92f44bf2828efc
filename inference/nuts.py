"""The no-U-turn sampler, all chains in one batch, each at its own place in its own tree.

Multinomial NUTS (Hoffman & Gelman 2014; Betancourt 2017) in the iterative form that keeps only
log2(leaves) checkpoints (Phan, Pradhan & Jankowiak 2019; Lao & Dillon 2019). A step is one
leapfrog of every chain: a chain that ends its transition begins the next one at once, so no chain
waits for the longest tree. On a CPU the same bookkeeping runs compiled (``nuts_loop``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from inference import hmc, nuts_cpu
from inference.chain_count import chain_count
from inference.chains import Block, Info, Randomness, Tuning
from inference.engine import Problem
from inference.hmc import DIVERGENCE, Phase, Prepared, leapfrog
from inference.stopping import Until
from inference.target import Target
from inference.warmup import Averaging
from ppl_models.errors import EngineError
from ppl_models.noise import Noise


class End(NamedTuple):
    """An end of the trajectory, or the leaf that moves."""

    x: Tensor  # (C, D)
    log_density: Tensor  # (C,)
    gradient: Tensor  # (C, D)
    momentum: Tensor  # (C, D), whitened


class Choice(NamedTuple):
    """A point drawn from a set of leaves, with probability in proportion to their weights."""

    x: Tensor  # (C, D)
    log_density: Tensor  # (C,)
    gradient: Tensor  # (C, D)
    energy: Tensor  # (C,)
    log_weight: Tensor  # (C,) of the whole set, relative to the transition's start
    momentum: Tensor  # (C, D), summed over the set


class Tree(NamedTuple):
    """A chain in the midst of a transition; ``x`` is where its last transition ended."""

    x: Tensor  # (C, D)
    log_density: Tensor  # (C,)
    leaf: End
    left: End
    right: End
    tree: Choice
    subtree: Choice
    energy: Tensor  # (C,) at the transition's start
    direction: Tensor  # (C,) +1 or -1
    depth: Tensor  # (C,) doublings made
    leaves: Tensor  # (C,) leaves in the subtree that grows
    n_steps: Tensor  # (C,)
    acceptance: Tensor  # (C,) summed over the leaves
    checkpoint_momentum: Tensor  # (C, max_depth, D)
    checkpoint_sum: Tensor  # (C, max_depth, D)


@dataclass(frozen=True)
class NUTS(Prepared):
    """The no-U-turn sampler: HMC that chooses its path length, with nothing to tune by hand.

    Args:
        chains: how many chains run, as one batch; "auto": as many as reach the precision of
            ``fit(..., until=Until(ess=...))`` soonest. That is predicted from the density's graph
            and the device, not measured; the fit's engine has the number, to be given again.
        target_acceptance: mean acceptance statistic aimed at by dual averaging; raise it to 0.95
            or 0.99 where transitions diverge.
        max_depth: at most 2^max_depth - 1 leapfrogs a transition.
        mass: which covariance warm-up learns: "diagonal", "dense", or "auto": dense up to 30
            dimensions, where the draws of all chains together determine it well.
        step_size: fixed where given; else adapted.
        starts: where chains begin: "uniform" on (-2, 2), or "pathfinder": each at a draw of the
            normal along an optimisation path of its own, with the scale of the best of these
            normals. It spares most of the gradients of warm-up's early windows.
        adapt: "throughout" the whole warm-up, or "until converged": once chains agree and the scale
            no longer changes, the windows left but the last are skipped. ``warmup_draws`` in the
            posterior's attributes says how long it was.
    """

    chains: int | Literal["auto"] = 4  # pyright: ignore[reportIncompatibleVariableOverride]
    max_depth: int = 10

    chooses_chains: ClassVar[bool] = True
    uniforms: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(max_depth=1)

    def check_until(self, until: Until) -> None:
        super().check_until(until)
        if self.chains == "auto" and not until.precise:
            raise EngineError(
                'NUTS(chains="auto") chooses the number of chains for a precision: give '
                "fit(..., until=Until(ess=1000)), or a number of chains"
            )

    def settled(self, problem: Problem) -> NUTS:
        if self.chains != "auto":
            return self
        with torch.no_grad():
            target = problem.target(self.tier, self.evaluations())
            dense = self.mass_matrix(target.dim) == "dense"
            number = chain_count(problem, target, self.warmup, self.draws, dense=dense)
        return replace(self, chains=number)

    def evaluations(self) -> int:
        return (self.warmup + self.draws) * self.thin * 16

    def init(self, target: Target, x: Tensor, tuning: Tuning, randomness: Randomness) -> Any:
        phase = Phase(x, *target.log_density_and_grad(x))
        if nuts_cpu.usable(x.device):
            return nuts_cpu.init(phase, tuning, randomness, self.max_depth)
        return begin(phase, randomness, self.max_depth)

    def block(
        self,
        target: Target,
        state: Any,
        tuning: Tuning,
        noise: Noise,
        first: int,
        most: int,
        averaging: Averaging | None = None,
        enough: int | None = None,
    ) -> Block:
        if isinstance(state, Tree):
            return super().block(target, state, tuning, noise, first, most, averaging, enough)
        goal = self.acceptance_target(target.dim)
        return nuts_cpu.block(target, state, tuning, noise, first, most, averaging, goal, enough)

    def step(
        self, target: Target, state: Tree, tuning: Tuning, randomness: Randomness
    ) -> tuple[Tree, Info]:
        """One leapfrog of every chain, and whatever it completes: subtree, tree, transition."""
        step = (state.direction * tuning.step_size)[:, None]
        phase, momentum = leapfrog(
            target, Phase(*state.leaf[:3]), state.leaf.momentum, step, tuning.scale
        )
        leaf = End(*phase, momentum)
        energy = hmc.energy(leaf.log_density, momentum)
        log_weight = torch.nan_to_num(state.energy - energy, nan=-torch.inf, posinf=-torch.inf)
        diverging = log_weight < -DIVERGENCE
        acceptance = state.acceptance + log_weight.clamp(max=0).exp()
        n_steps = state.n_steps + 1

        # the leaf joins the subtree
        first = state.leaves == 0
        old_weight = torch.where(first, -torch.inf, state.subtree.log_weight)
        joint_weight = torch.logaddexp(old_weight, log_weight)
        taken = (first | (randomness.uniform[:, 0].log() < log_weight - joint_weight)) & ~diverging
        chosen = Choice(*phase, energy, joint_weight, momentum)
        subtree = _where(taken, chosen, state.subtree)
        subtree = subtree._replace(
            log_weight=torch.where(diverging, old_weight, joint_weight),
            momentum=torch.where(first[:, None], 0.0, state.subtree.momentum) + momentum,
        )
        checkpoint_momentum, checkpoint_sum, turning = _checkpoints(state, momentum, subtree)
        leaves = state.leaves + 1
        failed = diverging | turning

        # a whole subtree joins the tree
        whole = ~failed & (leaves == 1 << state.depth)
        rightward = state.direction > 0
        left, right = (
            _where(whole & ~rightward, leaf, state.left),
            _where(whole & rightward, leaf, state.right),
        )
        better = randomness.uniform[:, 1].log() < subtree.log_weight - state.tree.log_weight
        tree = _where(whole & better, subtree, state.tree)
        total = torch.logaddexp(state.tree.log_weight, subtree.log_weight)
        summed = state.tree.momentum + subtree.momentum
        tree = tree._replace(
            log_weight=torch.where(whole, total, state.tree.log_weight),
            momentum=torch.where(whole[:, None], summed, state.tree.momentum),
        )
        depth = state.depth + whole
        over = depth >= self.max_depth
        done = failed | (whole & (over | turns(left.momentum, right.momentum, tree.momentum)))

        statistics = {
            "energy": tree.energy,
            "diverging": diverging,
            "tree_depth": depth + failed,
            "n_steps": n_steps,
            "reached_max_depth": over & ~failed,
        }
        info = Info(done, acceptance / n_steps, statistics)
        grown = Tree(
            x=torch.where(done[:, None], tree.x, state.x),
            log_density=torch.where(done, tree.log_density, state.log_density),
            leaf=leaf, left=left, right=right, tree=tree, subtree=subtree,
            energy=state.energy, direction=state.direction, depth=depth, leaves=leaves,
            n_steps=n_steps, acceptance=acceptance,
            checkpoint_momentum=checkpoint_momentum, checkpoint_sum=checkpoint_sum,
        )  # fmt: skip
        fresh = begin(Phase(*tree[:3]), randomness, self.max_depth)
        new = _where(done, fresh, grown)
        return _begin_subtree(new, whole & ~done, randomness), info


def begin(phase: Phase, randomness: Randomness, max_depth: int) -> Tree:
    """The start of a transition: a tree of one leaf with a fresh momentum."""
    chains, dim = phase.x.shape
    momentum = randomness.normal
    energy = hmc.energy(phase.log_density, momentum)
    zero = torch.zeros_like(energy)
    count = torch.zeros_like(zero, dtype=torch.int64)
    end = End(*phase, momentum)
    one = Choice(*phase, energy, zero, momentum)
    checkpoints = phase.x.new_zeros(chains, max_depth, dim)
    return Tree(
        x=phase.x, log_density=phase.log_density, leaf=end, left=end, right=end,
        tree=one, subtree=one, energy=energy, direction=_direction(randomness), depth=count,
        leaves=count, n_steps=count, acceptance=zero,
        checkpoint_momentum=checkpoints, checkpoint_sum=checkpoints,
    )  # fmt: skip


def turns(left: Tensor, right: Tensor, summed: Tensor) -> Tensor:
    """Betancourt's generalised U-turn criterion on a stretch of the trajectory; last axis D."""
    middle = summed - 0.5 * (left + right)
    return ((middle * left).sum(-1) <= 0) | ((middle * right).sum(-1) <= 0)


def _direction(randomness: Randomness) -> Tensor:
    return torch.where(randomness.uniform[:, 2] > 0.5, 1.0, -1.0).to(randomness.uniform)


def _begin_subtree(tree: Tree, where: Tensor, randomness: Randomness) -> Tree:
    direction = _direction(randomness)
    end = _where(direction > 0, tree.right, tree.left)
    return tree._replace(
        leaf=_where(where, end, tree.leaf),
        direction=torch.where(where, direction, tree.direction),
        leaves=torch.where(where, 0, tree.leaves),
    )


def _checkpoints(state: Tree, momentum: Tensor, subtree: Choice) -> tuple[Tensor, Tensor, Tensor]:
    """Store even leaves; at an odd leaf, test every subtree that it completes for a U-turn.

    Leaf n's checkpoint has the index of the number of ones in n // 2; the subtrees that an odd leaf
    completes begin at as many stored checkpoints as n has trailing ones.
    """
    levels = torch.arange(state.checkpoint_sum.shape[1], device=momentum.device)  # (L,)
    n = state.leaves[:, None]  # (C, 1)
    last = ((n >> (levels + 1)) & 1).sum(-1, keepdim=True)
    trailing = ((n >> levels) & 1).cumprod(-1).sum(-1, keepdim=True)
    even = (n & 1) == 0
    store = (even & (levels == last))[:, :, None]
    momenta = torch.where(store, momentum[:, None], state.checkpoint_momentum)
    sums = torch.where(store, subtree.momentum[:, None], state.checkpoint_sum)
    stretch = subtree.momentum[:, None] - sums + momenta  # summed over each candidate subtree
    turning = turns(momenta, momentum[:, None].expand_as(momenta), stretch)
    tested = ~even & (levels <= last) & (levels > last - trailing)
    return momenta, sums, (turning & tested).any(-1)


def _where(mask: Tensor, a: Any, b: Any) -> Any:
    """Chain by chain, ``a`` where ``mask`` (C,), else ``b``; through nested tuples."""
    if isinstance(a, Tensor):
        return torch.where(mask.reshape(-1, *[1] * (a.dim() - 1)), a, b)
    return type(a)(*(_where(mask, x, y) for x, y in zip(a, b, strict=True)))
