"""Site-Net Deep InfoMax as it was published: the yardstick that training steps are compared with.

Pairs lie in padded arrays, a row for each primitive site of the batch and as many columns as the largest supercell
has; every network is applied to every pair, to the concatenation of what it reads; the critic is applied pair by
pair; false pairs are rows rolled by half of the batch; three more passes without gradient make the false local
representations. Nothing is rearranged to be faster, and nothing is slower than the formulas ask for. The parameters
are those of a :class:`~pyg_dim.models.SiteNet` with one head and one block, on whose device and in whose type it runs.

Source: Moran et al., Digital Discovery 2025, 4, 790, and the numbers of their program that
``tests/test_reference_sitenet_dim.py`` compares with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_dim.models import SiteNet


@dataclass(frozen=True)
class PaddedBatch:
    """Pairs of a batch of C crystals with S primitive sites, padded to N columns.

    Attributes:
        x: [S, 9] scaled site features.
        distance: [S, N] from each site to the sites of its supercell, in angstrom; zero in padding.
        padding: [S, N] bool, true where there is no pair.
        source: [S, N] primitive site of each column; goes on around the crystal in padding.
        crystal: [S] crystal of each site.
        count: [C] sites of each crystal.
    """

    x: Tensor
    distance: Tensor
    padding: Tensor
    source: Tensor
    crystal: Tensor
    count: Tensor


@dataclass(frozen=True)
class Losses:
    """Losses of both levels.

    Attributes:
        local: Jensen-Shannon loss of the local level.
        local_kl: its KL term.
        crystal: Jensen-Shannon loss of the global level.
        crystal_kl: its KL term.
    """

    local: Tensor
    local_kl: Tensor
    crystal: Tensor
    crystal_kl: Tensor


def pad_pairs(batch: Any) -> PaddedBatch:
    """Lay the pairs of a batch out in padded arrays.

    Args:
        batch: crystal batch with the pairs of :class:`~pyg_dim.data.graphs.DenseSupercell`: sorted by target, the
            images of a source next to each other.

    Returns:
        The same pairs as a :class:`PaddedBatch`.
    """
    count = batch.ptr.diff()
    target = batch.edge_index[1]
    columns = torch.bincount(target, minlength=batch.batch.numel())
    column = torch.arange(int(columns.max()), device=target.device)
    padding = column >= columns[:, None]
    distance = batch.edge_dist.new_zeros(padding.shape)
    distance[~padding] = batch.edge_dist
    sites = count[batch.batch][:, None]
    images = columns[:, None] // sites
    around = batch.ptr[batch.batch][:, None] + column // images % sites
    return PaddedBatch(batch.x, distance, padding, around, batch.batch, count)


def roll(rows: Tensor) -> Tensor:
    """Give every site the row of the site half a batch before it."""
    return rows.roll(rows.size(0) // 2, dims=0)


def crystal_means(values: Tensor, batch: PaddedBatch) -> Tensor:
    """[C, ...] means over the sites of each crystal, of [S, ...] values."""
    sums = values.new_zeros(batch.count.numel(), *values.shape[1:]).index_add(0, batch.crystal, values)
    return sums / batch.count.view(-1, *(1 for _ in values.shape[1:]))


def encode(
    model: SiteNet, x: Tensor, distance: Tensor, padding: Tensor, source: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Local representations, from padded pairs.

    Args:
        model: its parameters are used.
        x: [S, 9] site features.
        distance: [S, N] distances, in angstrom.
        padding: [S, N] bool, true where there is no pair.
        source: [S, N] site of each column.

    Returns:
        ([S, L] local representations, [S, H] what they are read from, [S, N] attention weights).
    """
    local, block = model.local, model.local.blocks[0]
    sites = local.embed_site(x)
    pairs = local.embed_pair(distance[:, :, None])
    own = sites[:, None].expand(-1, source.size(1), -1)
    concatenated = torch.cat([own, sites[source], pairs], dim=2)
    logits = block.logits(block.attention(concatenated)).squeeze(2)
    weight = logits.masked_fill(padding, -torch.inf).softmax(dim=1)
    hidden = torch.einsum("sn,snc->sc", weight, block.value(concatenated))
    return local.output(hidden), hidden, weight


def local_terms(model: SiteNet, batch: PaddedBatch, z: Tensor) -> dict[str, Tensor]:
    """Terms of the local loss, each with a pass of the critic over all pairs.

    Args:
        model: its parameters are used.
        batch: true pairs.
        z: [S, L] local representations, with noise.

    Returns:
        [S] sums over the pairs of each site, by name; the first is that of the true pairs.
    """
    critic = model.local_level.critic
    features, distance, real = batch.x[batch.source], batch.distance, ~batch.padding
    inverse = (distance + 1).pow(-2)
    weight = inverse / (inverse * real).sum(dim=1, keepdim=True) * real
    query = critic.z_score(F.mish(critic.z_hidden(z)))

    def score(features: Tensor, distance: Tensor) -> Tensor:
        pairs = torch.cat([features, distance[:, :, None]], dim=2)
        return torch.einsum("sc,snc->sn", query, critic.c_score(F.mish(critic.c_hidden(pairs))))

    rolled_features, rolled_distance, rolled_weight = roll(features), roll(distance), roll(weight)
    return {
        "true": (F.softplus(-score(features, distance)) * weight).sum(dim=1),
        "false_both": (F.softplus(score(rolled_features, rolled_distance)) * rolled_weight).sum(dim=1),
        "false_distances": (F.softplus(score(features, rolled_distance)) * rolled_weight).sum(dim=1),
        "false_composition": (F.softplus(score(rolled_features, distance)) * weight).sum(dim=1),
    }


@torch.no_grad()
def false_locals(model: SiteNet, batch: PaddedBatch, permutation: Tensor) -> dict[str, Tensor]:
    """Local representations of three kinds of false crystals, without gradient.

    Args:
        model: its parameters are used.
        batch: true pairs.
        permutation: [N] order of the columns of the kind "permuted".

    Returns:
        [S, L] representations of each kind.
    """
    x, distance, padding, source = batch.x, batch.distance, batch.padding, batch.source
    return {
        "composition": encode(model, roll(x), distance, padding, source)[0],
        "structure": encode(model, x, roll(distance), roll(padding), source)[0],
        "permuted": encode(model, x, distance, padding, source[:, permutation])[0],
    }


def represent_crystals(model: SiteNet, batch: PaddedBatch, z: Tensor) -> tuple[Tensor, Tensor]:
    """Global representations.

    Args:
        model: its parameters are used.
        batch: the batch.
        z: [S, L] local representations.

    Returns:
        ([C, D] global representations, [C, H] what they are read from).
    """
    hidden = model.post_pool(crystal_means(model.pre_pool(z), batch))
    return model.output(hidden), hidden


def global_terms(
    model: SiteNet, batch: PaddedBatch, crystal: Tensor, z: Tensor, false: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Terms of the global loss.

    Args:
        model: its parameters are used.
        batch: the batch.
        crystal: [C, D] global representations, with noise.
        z: [S, L] local representations.
        false: [S, L] false local representations of each kind.

    Returns:
        [S] terms of the sites, by name; the first is that of the true sites.
    """
    critic = model.global_level.critic
    queries = critic.z_score(F.mish(critic.z_hidden(crystal)))

    def score(index: Tensor, z: Tensor) -> Tensor:
        return (queries[index] * critic.c_score(F.mish(critic.c_hidden(z)))).sum(dim=1)

    terms = {
        "true": F.softplus(-score(batch.crystal, z)),
        "false_rolled": F.softplus(score(roll(batch.crystal), z)),
    }
    return terms | {f"false_{kind}": F.softplus(score(batch.crystal, sites)) for kind, sites in false.items()}


def jensen_shannon(terms: Mapping[str, Tensor], batch: PaddedBatch) -> Tensor:
    """True term plus the mean of the false ones; mean over the sites of a crystal, then over crystals.

    Args:
        terms: [S] terms, the true one first.
        batch: the batch.

    Returns:
        Scalar.
    """
    true, *false = terms.values()
    return crystal_means(true + torch.stack(false).mean(dim=0), batch).mean()


def kl_divergence(z: Tensor, log_variance: Tensor) -> Tensor:
    """Mean of z²/2 + exp(v) - v over all entries, v the log-variance of the noise (the authors' form)."""
    return (z.square() / 2 + log_variance.exp() - log_variance).mean()


def losses(
    model: SiteNet, batch: PaddedBatch, permutation: Tensor, noise: tuple[Tensor, Tensor] | None = None
) -> Losses:
    """Both levels of a batch; the global one learns nothing through the local representations.

    Args:
        model: its parameters are used; one head, one block, conditional noise.
        batch: true pairs.
        permutation: [N] order of the columns of the kind "permuted".
        noise: standard normal numbers, [S, L] and [C, D]; no noise where None.

    Returns:
        The :class:`Losses`.
    """
    z, hidden, _ = encode(model, batch.x, batch.distance, batch.padding, batch.source)
    log_variance = model.local_level.noise(hidden)
    seen = z if noise is None else z + noise[0] * (log_variance / 2).exp()
    local = jensen_shannon(local_terms(model, batch, seen), batch)
    local_kl = kl_divergence(z, log_variance)

    z, false = z.detach(), false_locals(model, batch, permutation)
    crystal, hidden = represent_crystals(model, batch, z)
    log_variance = model.global_level.noise(hidden)
    seen = crystal if noise is None else crystal + noise[1] * (log_variance / 2).exp()
    terms = global_terms(model, batch, seen, z, false)
    return Losses(local, local_kl, jensen_shannon(terms, batch), kl_divergence(crystal, log_variance))


def training_loss(model: SiteNet, batch: PaddedBatch, alpha: float = 1.0, beta: float = 0.1) -> Tensor:
    """What a training step goes back from: both losses with noise, permutation and noise drawn anew.

    Args:
        model: one head, one block, conditional noise, dot product, Jensen-Shannon estimator.
        batch: true pairs.
        alpha: weight of the Jensen-Shannon loss.
        beta: weight of the KL term.

    Returns:
        Scalar, with its gradient.

    Raises:
        ValueError: a model of other options, which the published program is not written out for.
    """
    published = {
        "heads": 1, "blocks": 1, "distance_weights": True, "noise": "conditional", "kl": "log_variance",
        "critic": "dot_product", "estimator": "jensen_shannon",
    }  # fmt: skip
    if other := {name: model.config[name] for name, value in published.items() if model.config[name] != value}:
        raise ValueError(f"the published program is written out for {published}; this Site-Net has {other}")
    x = batch.x
    permutation = torch.randperm(batch.source.size(1), device=x.device)
    noise = (
        torch.randn(x.size(0), model.local.output.out_features, dtype=x.dtype, device=x.device),
        torch.randn(batch.count.numel(), model.channels, dtype=x.dtype, device=x.device),
    )
    found = losses(model, batch, permutation, noise)
    return alpha * (found.local + found.crystal) + beta * (found.local_kl + found.crystal_kl)
