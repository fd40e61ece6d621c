"""A model cut between two blocks: the first blocks on the device, the rest on the server.

    device i:  embedding, blocks 0 .. c_i - 1   --activation-->   server: blocks c_i .., norm, head
                                                <--gradient----

The halves advance stepwise and meet in tensors only, so one process that calls both and two that
are linked by a network run the same code. The server runs all devices in one pass: its rows are
ordered by cut, and at block j only the rows of devices with c_i <= j go through; the others wait.
It holds one set of adapters and computes `sum_i w_i L_i`, so the gradient of an adapter on block j
is the weighted mean over the devices that cut at or below j; each device gets the gradient of its
own loss, unweighted. With no compression between them the two halves give the gradients of the
whole model.

With labels that stay, the server ends with the last hidden state (after the final norm) and the
device holds the head, an encoder's pooler included. A tied embedding is frozen and held by both.

Source: Split Fine-Tuning for Large Language Models in Wireless Networks (arXiv 2501.09237);
U-shaped: Vepakomma et al., arXiv 1812.00564. One pass over unequal cuts is ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from airtune.errors import ModelError, TrainingError
from airtune.model.batch import IGNORED, Batch
from airtune.model.families import Family, replace_module_
from airtune.model.lora import Adapters, Head, attach
from airtune.model.loss import device_losses, scored_devices
from airtune.model.stages import (
    Nothing,
    ReceivedInput,
    Stage,
    check_cut,
    ends_of,
    head_network,
    held_by_device,
    held_by_server,
)


@dataclass(frozen=True, slots=True)
class Arrived:
    """What one device has sent for a step."""

    device: int
    cut: int
    activation: torch.Tensor
    """(batch, tokens, width), padded on the right."""
    attention_mask: torch.Tensor
    """(batch, tokens)."""
    labels: torch.Tensor | None
    """As in `Batch`; None where they stay on the device."""
    weight: float = 1.0
    """Positive; only the ratios count."""
    share: float = 1.0
    """Of the device's mean loss that this part of its batch makes up, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class ServerStep:
    """What the server returns, in the order of what arrived."""

    gradients: tuple[torch.Tensor | None, ...]
    """Of each device's own mean loss, times its share, with respect to its activation; None = it was
    refused, because its loss was not finite."""
    losses: torch.Tensor
    """(devices,); NaN where nothing was scored."""


class DeviceHalf:
    """The embedding and the first blocks, of one device or of several that cut alike.

    Several are stacked as in `attach`: the batch holds them one after the other, and nothing of one
    reaches another.
    """

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        stacks: Sequence[Mapping[str, torch.Tensor]],
        *,
        cut: int,
        scale: float,
        dropout: float = 0.0,
        seeds: Sequence[int] = (),
        heads: Sequence[Mapping[str, torch.Tensor]] | None = None,
    ) -> None:
        """Take the device's part of a network, which stays as it is.

        Args:
            network: A base, dense or sliced.
            family: Its description.
            stacks: Adapters of each device; those from block `cut` on are ignored.
            cut: Blocks on the device.
            scale: alpha / rank.
            dropout: Of the adapters' input.
            seeds: One a device, for dropout.
            heads: None = the head is the server's. Where labels stay: one trained head a device,
                or () where the task has none.

        Raises:
            ModelError: if the cut is outside the model, or adapters do not fit.
        """
        check_cut(cut, len(family.block_list(network)))
        held = [held_by_device(adapters, cut) for adapters in stacks]
        self.cut = cut
        self.lora = attach(
            network, family, held, scale=scale, dropout=dropout, seeds=seeds, heads=heads or ()
        )
        self._head = None if heads is None else head_network(self.lora.network, family)
        self._backbone = family.backbone
        self.body = self.lora.network.get_submodule(family.backbone)
        replace_module_(self.body, family.blocks, family.block_list(self.lora.network)[:cut])
        if ends_of(family).norm:
            replace_module_(self.body, ends_of(family).norm, nn.Identity())
        if getattr(self.body, "pooler", None) is not None:
            replace_module_(self.body, "pooler", nn.Identity())
        self._activations: deque[torch.Tensor] = deque()

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the activation at the cut, (rows, tokens, width), cut off from the graph."""
        output = self.body(**batch.inputs, use_cache=False)
        self._activations.append(torch.as_tensor(output.last_hidden_state))
        return self._activations[-1].detach()

    def forget(self) -> None:
        """Forget the passes whose gradient has not come, and what gradients there are."""
        self._activations.clear()
        for parameter in self.lora.parameters():
            parameter.grad = None

    def backward(self, gradient: torch.Tensor) -> None:
        """Add to the gradients of the adapters; `gradient` is of the first activation that has none.

        Raises:
            TrainingError: if no forward pass is waiting for it.
        """
        if not self._activations:
            raise TrainingError("a gradient came that no forward pass is waiting for")
        activation = self._activations.popleft()
        torch.autograd.backward(activation, gradient.to(activation.dtype))

    def finish(
        self, hidden: torch.Tensor, batch: Batch, *, chunk: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the losses where labels stay, and add to the gradients of the head.

        Args:
            hidden: What the server returned, (rows, tokens, width).
            batch: The batch it belongs to.
            chunk: Positions whose logits exist at a time; 0 = all.

        Returns:
            Losses (devices,), NaN where nothing is scored, and the gradient of each device's loss
            with respect to `hidden`.

        Raises:
            TrainingError: if this half holds no head.
        """
        if self._head is None:
            raise TrainingError("labels travel in this run, so the device holds no head")
        leaf = hidden.detach().requires_grad_()
        given = self._head.get_submodule(self._backbone)
        given.hidden = leaf
        rows = [hidden.shape[0] // self.lora.devices] * self.lora.devices
        losses = device_losses(self._head, batch, rows, chunk=chunk)
        torch.autograd.backward(losses.nan_to_num(nan=0.0).sum())
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return losses.detach(), gradient


class ServerHalf:
    """The blocks after the cuts, norm and head, with one set of adapters for all devices."""

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        adapters: Mapping[str, torch.Tensor],
        *,
        first: int,
        scale: float,
        dropout: float = 0.0,
        seed: int = 0,
        head: Mapping[str, torch.Tensor] | None = None,
        trains_from: int = 0,
    ) -> None:
        """Take the server's part of a network, which stays as it is.

        Args:
            network: A base, dense or sliced.
            family: Its description.
            adapters: The server's; those of blocks before `first` are ignored.
            first: The smallest cut that will be served.
            scale: alpha / rank.
            dropout: Of the adapters' input.
            seed: For dropout.
            head: The trained task head, where there is one and labels travel.
            trains_from: Adapters of blocks before this one are used, but not trained.

        Raises:
            ModelError: if the cut is outside the model, or adapters do not fit.
        """
        blocks = len(family.block_list(network))
        check_cut(first, blocks)
        self.first = first
        self.lora = attach(
            network,
            family,
            [held_by_server(adapters, first)],
            scale=scale,
            dropout=dropout,
            seeds=[seed],
            heads=[head] if head else (),
        )
        self._body = self.lora.network.get_submodule(family.backbone)
        places = family.block_list(self.lora.network)
        for block in places[:trains_from]:
            block.requires_grad_(requires_grad=False)
        self._stages = [Stage(places[j], is_held=j >= first) for j in range(blocks)]
        replace_module_(self._body, family.blocks, nn.ModuleList(self._stages))
        ends = ends_of(family)
        self._arrival = ReceivedInput(self._body.get_submodule(ends.embedding))
        replace_module_(self._body, ends.embedding, self._arrival)
        if ends.position:
            replace_module_(self._body, ends.position, Nothing())
        self._waiting: tuple[torch.Tensor, list[torch.Tensor], list[Arrived]] | None = None

    def step(
        self, arrived: Sequence[Arrived], *, chunk: int = 0, total_weight: float | None = None
    ) -> ServerStep:
        """Run all devices in one pass and add to the gradients of adapters and head.

        A device whose loss is not finite is refused and leaves no trace in any gradient.

        Args:
            arrived: What came, with labels; at least one.
            chunk: Positions whose logits exist at a time; 0 = all.
            total_weight: Of all devices of the pass, where these are not all; None = they are.

        Raises:
            ModelError: if what arrived does not fit the model or one another.
        """
        order, batch, leaves = self._join(arrived)
        parts = [arrived[index] for index in order]
        rows = [len(part.activation) for part in parts]
        losses = device_losses(self.lora.network, batch, rows, chunk=chunk)
        has_loss = scored_devices(batch, rows)
        bad = ~torch.isfinite(losses.detach()) & has_loss
        if bool(bad.any()):
            out = {order[i] for i in torch.where(bad)[0].tolist()}
            return self._without(arrived, out, chunk, total_weight)
        weights = losses.new_tensor(_weights(parts, total_weight))
        shares = losses.new_tensor([part.share for part in parts])
        torch.autograd.backward((losses.nan_to_num(nan=0.0) * weights * shares).sum())
        gradients = _unweighted(leaves, weights)
        back = sorted(range(len(order)), key=order.__getitem__)
        return ServerStep(tuple(gradients[index] for index in back), losses.detach()[back])

    def forward(self, arrived: Sequence[Arrived]) -> list[torch.Tensor]:
        """Return each device's last hidden state (batch, tokens, width), where labels stay.

        Raises:
            ModelError: if what arrived does not fit the model or one another.
        """
        order, batch, leaves = self._join(arrived)
        output = self._body(**batch.inputs, use_cache=False)
        hidden = torch.as_tensor(output.last_hidden_state)
        self._waiting = (hidden, leaves, [arrived[index] for index in order])
        pieces = hidden.detach().split_with_sizes([len(leaf) for leaf in leaves])
        back = sorted(range(len(order)), key=order.__getitem__)
        return [pieces[index][:, : leaves[index].shape[1]] for index in back]

    def backward(self, gradients: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Add to the gradients of the adapters; return those of the activations.

        Args:
            gradients: Device -> gradient of its own loss with respect to its last hidden state. A
                device that is missing has dropped out and contributes nothing.

        Raises:
            TrainingError: if no forward pass is waiting for it.
        """
        if self._waiting is None:
            raise TrainingError("gradients came that no forward pass is waiting for")
        (hidden, leaves, parts), self._waiting = self._waiting, None
        outer = torch.zeros_like(hidden)
        weights = outer.new_tensor(_weights(parts))
        start = 0
        for part, weight in zip(parts, weights, strict=True):
            if part.device in gradients:
                given = gradients[part.device].to(outer)
                outer[start : start + len(given), : given.shape[1]] = given * weight
            start += len(part.activation)
        torch.autograd.backward(hidden, outer)
        found = _unweighted(leaves, weights)
        return {
            part.device: gradient
            for part, gradient in zip(parts, found, strict=True)
            if part.device in gradients
        }

    def adapters(self) -> Adapters:
        """Return a copy of the server's adapters."""
        return self.lora.adapters()[0]

    def head(self) -> Head:
        """Return a copy of the trained head; {} where the server trains none."""
        return self.lora.heads()[0]

    def _join(self, arrived: Sequence[Arrived]) -> tuple[list[int], Batch, list[torch.Tensor]]:
        """Lay the rows out by cut and hand them to the stages; return order, batch and leaves."""
        _check_arrived(arrived, first=self.first, blocks=len(self._stages))
        order = sorted(range(len(arrived)), key=lambda place: arrived[place].cut)
        parts = [arrived[place] for place in order]
        tokens = max(part.activation.shape[1] for part in parts)
        leaves = [part.activation.detach().requires_grad_() for part in parts]
        self._arrival.activation = torch.cat([_longer(leaf, tokens, 0.0) for leaf in leaves])
        for place, stage in enumerate(self._stages):
            stage.joined = sum(len(part.activation) for part in parts if part.cut <= place)
        mask = torch.cat([_longer(part.attention_mask, tokens, 0) for part in parts])
        labels = [part.labels for part in parts if part.labels is not None]
        joined = (
            torch.cat(
                [item if item.dim() == 1 else _longer(item, tokens, IGNORED) for item in labels]
            )
            if labels
            else mask
        )
        return order, Batch(torch.zeros_like(mask), mask, joined), leaves

    def _without(
        self, arrived: Sequence[Arrived], bad: set[int], chunk: int, total_weight: float | None
    ) -> ServerStep:
        """Run the step again without the refused devices."""
        good = [index for index in range(len(arrived)) if index not in bad]
        losses = torch.full((len(arrived),), torch.inf)
        gradients: list[torch.Tensor | None] = [None] * len(arrived)
        if good:
            kept = [arrived[index] for index in good]
            rest = self.step(kept, chunk=chunk, total_weight=total_weight)
            losses[good] = rest.losses.to(losses)
            for index, gradient in zip(good, rest.gradients, strict=True):
                gradients[index] = gradient
        return ServerStep(tuple(gradients), losses)


def _longer(tensor: torch.Tensor, tokens: int, fill: float) -> torch.Tensor:
    """Pad (rows, tokens, ...) on the right of its second axis."""
    missing = tokens - tensor.shape[1]
    sides = [0, 0] * (tensor.dim() - 2) + [0, missing]
    return nn.functional.pad(tensor, sides, value=fill) if missing else tensor


def _weights(parts: Sequence[Arrived], total_weight: float | None = None) -> list[float]:
    total = sum(part.weight for part in parts) if total_weight is None else total_weight
    return [part.weight / total for part in parts]


def _unweighted(leaves: Sequence[torch.Tensor], weights: torch.Tensor) -> list[torch.Tensor]:
    return [
        torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / weight.to(leaf.grad.dtype)
        for leaf, weight in zip(leaves, weights, strict=True)
    ]


def _check_arrived(arrived: Sequence[Arrived], *, first: int, blocks: int) -> None:
    if not arrived:
        raise ModelError("a server step needs at least one device's activation, got none")
    if len({part.labels is None for part in arrived}) > 1:
        raise ModelError("labels of all devices must travel, or of none; got some")
    widths = {part.activation.shape[2:] for part in arrived}
    for part in arrived:
        check_cut(part.cut, blocks)
        if part.cut < first:
            raise ModelError(
                f"device {part.device} cuts at block {part.cut}, but the server holds blocks "
                f"from {first} on"
            )
        if part.activation.dim() != 3 or len(widths) > 1 or part.weight <= 0:
            raise ModelError(
                f"device {part.device} sent an activation of shape {tuple(part.activation.shape)} "
                f"with weight {part.weight:g}; (batch, tokens, width) and a positive one are needed"
            )
        if part.attention_mask.shape != part.activation.shape[:2]:
            raise ModelError(
                f"device {part.device} sent a mask of shape {tuple(part.attention_mask.shape)} "
                f"for an activation of shape {tuple(part.activation.shape)}"
            )
