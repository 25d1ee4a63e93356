# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the members of a [`PixelClassifierEnsemble`], all at once.

The procedure is that of DatasetGAN (Zhang et al., CVPR 2021), adopted by Baranchuk et al. (ICLR 2022), section 4: each
member is an MLP on single pixels that sees all labelled pixels in a random order of its own.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..jobs.errors import NotFiniteError, UserError
from ..jobs.seeds import mixed_seed_32
from .ensemble import PixelClassifierEnsemble, StackedLinear
from .inputs import READS
from .recipes import Recipe
from .table import ActivationTable


PLANNED_STEPS = 32


def fit_members(
    head: PixelClassifierEnsemble,
    table: ActivationTable,
    recipe: Recipe,
    seed: int = 0,
    members: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    show_progress: bool = True,
    images: Sequence[Sequence[int]] | None = None,
) -> None:
    """Trains members of a head on labelled pixels, all at once, each stopping on its own; writes them to the head.

    Args:
        head ([`PixelClassifierEnsemble`]): On the CPU, in float32; the members' weights are initialised here.
        table ([`ActivationTable`]): Labelled pixels; standardised in place if the recipe wants it.
        recipe ([`Recipe`]): How to train.
        seed (`int`): With a member's number, determines its weights and the order of its pixels.
        members (sequence of `int`, *optional*): Which members to train; all if not given.
        device: Where to train.
        show_progress (`bool`): Whether to show a progress bar.
        images (sequence of sequences of `int`, *optional*): For each of `members`, the images that it learns from; all
            if not given. An epoch is as long as the smallest share.

    Raises:
        UserError: There are fewer than two labelled pixels.
        NotFiniteError: Training diverged.
    """
    members = list(range(head.config.num_members) if members is None else members)
    if head.config.member_inputs is not None:
        _fit_kinds(head, table, recipe, seed, members, device, show_progress, images)
        return
    pools = _labelled_pixels(table, head.config.ignore_index, members, images)
    smallest = min(map(len, pools))
    if smallest < 2:
        raise UserError("The masks have no labelled pixels: all are ignored or belong to classes that are too small.")
    if recipe.standardize:
        table.standardize()
    batch_size = min(recipe.batch_size, smallest)
    epoch_steps = smallest // batch_size
    total = epoch_steps * recipe.max_epochs
    total = min(total, recipe.max_steps or total)
    training = _MemberTraining(head, members, table, recipe, total, seed, device, None if images is None else pools)
    batches = _PixelBatches(table, pools, batch_size, epoch_steps, total, training)
    stopping = EarlyStopping(len(members), recipe.patience, recipe.patience_from_epoch, device)

    # With early stopping, how long it takes is not known; the bar counts to the earliest end, then along.
    earliest = recipe.patience_from_epoch * epoch_steps + recipe.patience if recipe.patience else total
    shown = dict(total=min(total, earliest), desc="Fitting members", unit="step", disable=not show_progress)
    with tqdm(**shown, mininterval=0.5, leave=None) as bar:  # it stays, unless within another bar
        for step in range(total):
            loss = training.step(*batches.at(step))  # [K]
            bar.total = max(bar.total, step + 1)
            bar.update()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.mean().item():.3f}", members=len(loss), refresh=False)
            done = stopping.update(loss, step // epoch_steps)
            if done is not None:
                training.finish(done)
                batches.drop(done)
                if done.all():
                    return
    training.finish(torch.ones(len(training.members), dtype=torch.bool))


def _fit_kinds(head, table, recipe, seed, members, device, show_progress, images) -> None:
    """[`fit_members`] for members that do not all read the same: each kind on its part of the table alone.

    Weights of inputs that a member does not read are exactly zero.
    """
    kinds, weight = head.config.member_inputs, head.layers[0].weight.data
    columns = torch.arange(weight.shape[2]).split(head.channels)
    for kind in dict.fromkeys(kinds[k] for k in members):
        at = [i for i, k in enumerate(members) if kinds[k] == kind]
        own = [members[i] for i in at]
        shares = None if images is None else [images[i] for i in at]
        alone: dict = {"filters": None} if kind == "activations" else {}
        if kind == "filters":
            alone = {"block_channels": [], "blocks": [], "timesteps": []}
        part = PixelClassifierEnsemble.from_config(head.config, member_inputs=None, member_weights=None, **alone)
        chosen = table.select(range(len(table.info))[READS[kind]])
        fit_members(part, chosen, recipe, seed, own, device, show_progress, shares)
        state = part.layers.state_dict()
        first, target = state.pop("0.weight"), head.layers.state_dict()
        for name, tensor in state.items():
            target[name][own] = tensor[own]
        weight[own] = 0
        weight[torch.tensor(own)[:, None], :, torch.cat(columns[READS[kind]])] = first[own].movedim(1, 2)


class EarlyStopping:
    """The published rule: a member stops once its loss has not improved for `patience` steps, if given.

    Losses count from epoch `from_epoch` on, counted from 0.
    """

    def __init__(self, num_members: int, patience: int | None, from_epoch: int, device: torch.device | str = "cpu"):
        self.patience, self.from_epoch = patience, from_epoch
        self.best = torch.full((num_members,), math.inf, device=device)
        self.stale = torch.zeros(num_members, dtype=torch.long, device=device)

    def update(self, loss: torch.Tensor, epoch: int) -> torch.Tensor | None:
        """Takes the losses `[K]` of the members that still train; returns which of them stop, boolean `[K]`, if any."""
        if not self.patience or epoch < self.from_epoch:
            return None
        self.stale = torch.where(loss < self.best, 0, self.stale + 1)
        self.best = torch.minimum(self.best, loss)
        done = self.stale > self.patience  # [K]
        if not done.any():
            return None
        self.best, self.stale = self.best[~done], self.stale[~done]
        return done


def _labelled_pixels(
    table: ActivationTable, ignore_index: int, members: Sequence[int], images: Sequence[Sequence[int]] | None
) -> list[torch.Tensor]:
    """For each member, the positions of its labelled pixels in the flattened label maps, `[P]` int32."""
    pool = (table.labels.view(-1) != ignore_index).nonzero().view(-1).to("cpu", torch.int32)  # [P]
    if images is None:
        return [pool] * len(members)
    of_image = pool // (table.size[0] * table.size[1])  # [P]
    return [pool[torch.isin(of_image, torch.tensor(own))] for own in images]


def _class_weights(labels: torch.Tensor, num_classes: int, balance: float) -> torch.Tensor:
    """The weight of each class, `[C]` float32, by its share of the labels; 1 on average over these."""
    counts = torch.bincount(labels, minlength=256)[:num_classes].float()
    share = counts / counts.sum()
    weights = share.clamp(min=1e-6) ** -balance  # a class without a pixel is never asked for
    return weights / (weights * share).sum()


class _PixelBatches:
    """The members' batches: each passes over its labelled pixels in an order of its own, the odd ones left over."""

    def __init__(self, table, pools, batch_size, epoch_steps, total_steps, training: "_MemberTraining"):
        self.table, self.pools, self.batch_size = table, pools, batch_size
        self.epoch_steps, self.total_steps, self.training = epoch_steps, total_steps, training
        shape = (len(pools) * batch_size, len(table.channel_order))
        self.buffer = torch.empty(shape, dtype=training.dtype, device=table.device)
        self.plan: list = []

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `[K, B, D]` and classes `[K, B]` of a step, on the device of the training."""
        i = step % self.epoch_steps
        if i == 0:
            count = min(self.epoch_steps, self.total_steps) * self.batch_size
            generators = self.training.generators
            chosen = [torch.randperm(len(p), generator=g)[:count] for p, g in zip(self.pools, generators)]
            order = torch.stack([p[c] for p, c in zip(self.pools, chosen)])
            self.order = order.unflatten(1, (-1, self.batch_size)).to(self.table.device)  # [K,S,B]
            self.plan = []
        if not self.plan:  # many small operations, done for several steps at once
            ahead = self.order[:, i : i + PLANNED_STEPS].transpose(0, 1).flatten(1).long()  # [S,K*B]
            labels = self.table.labels.view(-1)[ahead].long()
            self.plan = list(zip(labels, self.table.locate(ahead)))[::-1]
        y, located = self.plan.pop()
        device = self.training.layers[0].weight.device
        x = self.table.gather(located, self.buffer[: len(y)]).to(device).unflatten(0, (-1, self.batch_size))
        return x, y.to(device).unflatten(0, (-1, self.batch_size))

    def drop(self, done: torch.Tensor) -> None:
        """Leaves out the members, boolean `[K]`, that have stopped."""
        going = ~done.cpu()
        self.pools = [p for p, goes in zip(self.pools, going.tolist()) if goes]
        self.order, self.plan = self.order[going.to(self.order.device)], []


class _MemberTraining:
    """The members still in training: their stacked layers and Adam's state, which shrink as members finish."""

    def __init__(self, head, members, table, recipe, total_steps, seed, device, pools=None):
        self.head, self.table = head, table
        self.members = torch.tensor(members)  # [K]
        self.generators = [torch.Generator().manual_seed(mixed_seed_32(seed, k)) for k in members]
        # bfloat16 activations are multiplied in bfloat16; weights, sums over pixels and all other layers stay float32.
        self.dtype = torch.bfloat16 if table.dtype == torch.bfloat16 else torch.float32
        fresh = PixelClassifierEnsemble.from_config(head.config, num_members=len(members))
        layers = fresh.layers.to(device)
        for layer in layers:
            if isinstance(layer, StackedLinear):  # N(0, 0.02), as published; biases and batch norms are fresh
                for weight, generator in zip(layer.weight.data, self.generators):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
        layers[0].weight.data = layers[0].weight.data[:, :, table.channel_order].contiguous()
        self.layers = layers.train()
        self.optimizer = torch.optim.Adam(layers.parameters(), lr=recipe.learning_rate, fused=True)
        self.schedule = None
        if recipe.one_cycle:
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, recipe.learning_rate, total_steps)
        self.class_weights = None
        if recipe.balance:  # counted over a member's own pixels, if they are not all
            labels = table.labels.view(-1)
            counted = [labels] if pools is None else [labels[p.to(labels.device).long()] for p in pools]
            weights = [_class_weights(own, head.config.num_classes, recipe.balance) for own in counted]
            self.class_weights = torch.stack(weights).expand(len(members), -1).to(device)  # [K,C]
        self._allocate()

    def _allocate(self) -> None:
        # The largest tensors have buffers that stay: fresh ones every step would cost more in page faults than the
        # products that fill them.
        weight = self.layers[0].weight
        weight.grad = torch.empty_like(weight)
        self.weight, self.gradient = weight.data, weight.grad
        if self.dtype != torch.float32:
            self.weight, self.gradient = (torch.empty_like(weight, dtype=self.dtype) for _ in range(2))

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One step of every member on `[K, B, D]` features and `[K, B]` classes; returns the losses `[K]`."""
        first, rest = self.layers[0], self.layers[1:]
        with torch.no_grad():
            if self.weight.dtype != first.weight.dtype:
                self.weight.copy_(first.weight)
            hidden = torch.bmm(self.weight, x.mT).float() + first.bias.unsqueeze(-1)  # [K,hidden,B]
        hidden.requires_grad_()
        logits = self._rest(hidden)  # [K,C,B]
        loss = F.cross_entropy(logits, y, reduction="none")  # [K,B]
        if self.class_weights is not None:
            loss = loss * self.class_weights.gather(1, y)
        loss = loss.mean(1)  # [K]
        for parameter in rest.parameters():
            parameter.grad = None
        loss.sum().backward()
        # The first layer by hand: features need no gradient, and the members' losses are independent.
        torch.bmm(hidden.grad.to(self.dtype), x, out=self.gradient)
        if self.gradient.dtype != first.weight.dtype:
            first.weight.grad.copy_(self.gradient)
        first.bias.grad = hidden.grad.sum(-1)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return loss.detach()

    def _rest(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits from what the first layer gives: as the layers do one by one, with each batch norm's weight and bias
        multiplied into the layer behind it, which is smaller than a batch."""
        layers = self.layers
        for norm, linear in ((layers[2], layers[3]), (layers[5], layers[6])):
            weight = linear.weight * norm.weight.unsqueeze(1)  # [K,out,in]
            bias = linear.bias.unsqueeze(-1) + linear.weight @ norm.bias.unsqueeze(-1)  # [K,out,1]
            hidden = torch.baddbmm(bias, weight, norm.normalize(F.relu(hidden)))
        return hidden

    def finish(self, done: torch.Tensor) -> None:
        """Writes members to the head, `done` a boolean `[K]`, and goes on with the others."""
        done = done.cpu()
        target = self.head.layers.state_dict()
        members = self.members[done]
        for name, tensor in self.layers.state_dict().items():
            target[name][members] = tensor[done.to(tensor.device)].cpu()
        if not all(tensor[members].isfinite().all() for tensor in target.values()):
            raise NotFiniteError("Training diverged to values that are not finite; lower the learning rate.")
        # The first layer takes raw features, in the order of concatenation: w·(x - mean)/scale + b.
        weight = torch.empty_like(target["0.weight"][members])
        weight[:, :, self.table.channel_order] = target["0.weight"][members] / self.table.scale
        target["0.weight"][members] = weight
        mean = torch.empty_like(self.table.mean)
        mean[self.table.channel_order] = self.table.mean
        target["0.bias"][members] -= weight @ mean

        going = ~done
        self.members = self.members[going]
        self.generators = [g for g, goes in zip(self.generators, going.tolist()) if goes]
        for parameter in self.layers.parameters():
            kept = going.to(parameter.device)
            parameter.data = parameter.data[kept]
            state = self.optimizer.state[parameter]
            state["exp_avg"], state["exp_avg_sq"] = state["exp_avg"][kept], state["exp_avg_sq"][kept]
        for buffer in self.layers.buffers():
            buffer.data = buffer.data[going.to(buffer.device)]
        if self.class_weights is not None:
            self.class_weights = self.class_weights[going.to(self.class_weights.device)]
        self._allocate()
