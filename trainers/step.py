"""What one optimizer step computes: log-probabilities, the loss on them, and its exact gradient.

One micro-batch or many, one process or many: the gradient is the same, because losses are summed with the rows' weights
and divided by the count of the whole step. A loss that couples examples takes two passes: the log-probabilities of the
whole step without gradients, the loss on them and its slopes, then each micro-batch backward with those slopes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from dataloaders.batches import Place, Row, trees
from models.head import Head
from models.logprobs import branch_logps, cut, positions
from models.precision import WorkingCopy
from models.probe import use_tree_rows
from models.sharding import in_step, shards_of
from models.tree_rows import NOTHING
from trainers import distributed
from trainers.coupling import refuse_undeclared_coupling
from trainers.finite import refuse_non_finite
from trainers.metrics import Clock
from trainers.naming import Logps, Naming
from trainers.outputs import LossOutput, StepResult, Tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from models.reference import Reference
    from models.tree_rows import TreeRow
    from trainers.basic import BasicTrainer


class StepComputer:
    """Computes steps for a trainer, which says what the loss is and what its names mean.

    Args:
        trainer: gives `loss`, `needs`, `roles`, `select`, `loss_groups`, `couples_examples` and `value_head`.
        tokens_per_microbatch: tokens of one forward pass.
        dtype: compute dtype of the policy; with bfloat16 its weights stay in float32.
        clamp: see `trainers.naming`.
    """

    def __init__(
        self,
        trainer: BasicTrainer,
        policy: PreTrainedModel,
        reference: Reference | None,
        *,
        tokens_per_microbatch: int,
        dtype: torch.dtype,
        clock: Clock,
        clamp: tuple[float, float] | None = None,
    ):
        self.trainer = trainer
        self.policy = policy
        self.reference = reference
        self.budget = tokens_per_microbatch
        self.clock = clock
        use_tree_rows(policy)
        self.shards = shards_of(policy)
        self._copy = WorkingCopy(policy, dtype) if dtype == torch.bfloat16 and self.shards is None else None
        aligned = any(need.kind == "alignments" for need in trainer.needs)
        self._values = (lambda *seen: Head.of(policy).squares(*seen)) if aligned else trainer.value_head
        own = [] if trainer.value_head is None else [*trainer.value_head.parameters()]
        trained = [weight for weight in policy.parameters() if weight.requires_grad]
        self.parameters = [*(trained if self.shards is None else self.shards.parameters), *own]
        self._summed_here = self.parameters if self.shards is None else own
        roles = self.roles = {(need.model, trainer.select(need.role, [])[0]) for need in trainer.needs if need.model}
        self.trained_roles = [role for role in trainer.roles if ("policy", role) in roles]
        self.passed = np.zeros(3, dtype=np.int64)  # positions computed, tokens in trees, tokens of all paths
        self._still = sorted(roles - {("policy", role) for role in self.trained_roles})
        self._naming = Naming(trainer, self.trained_roles, clamp, policy.device)

    def evaluate(self, rows: Sequence[Row]) -> StepResult:
        """Loss and tensors of rows (this process's share), without gradients."""
        logps = self._referred(rows)
        with self.clock.part("forward"), torch.no_grad(), self.in_its_precision():
            logps |= self._policy(rows, [*self.trained_roles, *self._still_of("policy")])
            return self._result(rows, logps | self._with_all_processes(logps))

    def gradients(self, rows: Sequence[Row]) -> StepResult:
        """Adds the gradient of a step to the parameters, summed over processes; `rows` are this process's share.

        Raises:
            NonFiniteError: when a loss is not finite.
            ValueError: when a loss couples examples and does not say so.
        """
        logps = self._referred(rows)
        with self.in_its_precision():
            with self.clock.part("forward"):
                logps |= self._policy(rows, self._still_of("policy"))
            result = self._coupled(rows, logps) if self.trainer.couples_examples else self._apart(rows, logps)
        with self.clock.part("backward"):
            distributed.sum_gradients(self._summed_here)
            if self.shards is not None:
                self.shards.collect_gradients()
        return result

    def token_shares(self) -> dict[str, float]:
        """Of the training passes since the last call: which share of a sequence's tokens was computed only once for
        all responses, and which share of what was computed was no padding."""
        computed, unique, paths = (max(1, int(count)) for count in self.passed)
        self.passed[:] = 0
        padded = computed != unique
        return {"tokens/unique_share": unique / paths, "tokens/real_share": (paths if padded else unique) / computed}

    # Log-probabilities ---------------------------------------------------------------------------------------------

    def in_its_precision(self) -> AbstractContextManager[None]:
        """Inside, the policy computes as it does in a step."""
        if self.shards is not None:
            return self.shards.gathered()
        return nullcontext() if self._copy is None else self._copy.installed()

    def _still_of(self, model: str) -> list[str]:
        """The roles for which a model's log-probabilities are needed without gradients."""
        return [role for which, role in self._still if which == model]

    @torch.no_grad()
    def _policy(self, rows: Sequence[Row], roles: Sequence[str]) -> Logps:
        """The policy's log-probabilities, without gradients."""
        logps: Logps = {(kind, role): [self._empty()] * len(rows) for kind in self._kinds() for role in roles}
        for places, forest in self._packs(rows, roles):
            if not places:
                self._accompany()
                continue
            for kind, values in self._computed(forest).items():
                for (index, role), value in zip(places, values, strict=True):
                    logps[kind, role][index] = value
        return logps

    def _kinds(self) -> tuple[str, ...]:
        return ("policy",) if self._values is None else ("policy", "values")

    def _computed(self, forest: Sequence[TreeRow]) -> dict[str, list[torch.Tensor]]:
        """For each branch of a forward pass log-probabilities, and what a loss wants made of hidden states."""
        if self._values is None:
            return {"policy": branch_logps(self.policy, forest)}
        return dict(zip(self._kinds(), branch_logps(self.policy, forest, self._values), strict=True))

    def _referred(self, rows: Sequence[Row]) -> Logps:
        """The reference's log-probabilities."""
        roles = self._still_of("reference")
        logps: Logps = {("reference", role): [self._empty()] * len(rows) for role in roles}
        if not roles or not (rows or self.reference.sharded):
            return logps
        with self.clock.part("reference"):
            made, places = trees(rows, roles, self.budget)
            for of, values in zip(places, self.reference.logps(made, self.budget), strict=True):
                for (index, role), value in zip(of, values, strict=True):
                    logps["reference", role][index] = value.to(self.policy.device)
        return logps

    def _packs(self, rows: Sequence[Row], roles: Sequence[str]) -> Iterator[tuple[list[Place], list[TreeRow]]]:
        """The forward passes over some roles of rows: which responses, and the tree rows that hold them.

        Both are empty for a pass of a sharded model that other processes have and this one has not.
        """
        if not roles:
            return
        made, places = trees(rows, roles, self.budget)
        for group in in_step(self.policy, cut(self.policy, made, self.budget)):
            numbers = group or []
            yield [place for number in numbers for place in places[number]], [made[number] for number in numbers]

    def _accompany(self) -> None:
        """A pass that other processes have and this one has not: nothing is added to any gradient."""
        values = [part.sum() for parts in self._computed([NOTHING]).values() for part in parts]
        if torch.is_grad_enabled():
            sum(values).backward()

    def _forward(self, places: Sequence[Place], forest: Sequence[TreeRow]) -> tuple[list[int], Logps]:
        """One forward pass with gradients: the rows in it, and for each of them its log-probabilities by role."""
        values = {kind: dict(zip(places, some, strict=True)) for kind, some in self._computed(forest).items()}
        paths = sum(len(row.prompt) + len(branch.ids) for row in forest for branch in row.branches)
        self.passed += np.array([positions(self.policy, forest), sum(map(len, forest)), paths])
        group = sorted({index for index, _ in places})
        return group, {
            (kind, role): [of[index, role] for index in group]
            for kind, of in values.items()
            for role in self.trained_roles
        }

    # The loss ------------------------------------------------------------------------------------------------------

    def _empty(self) -> torch.Tensor:
        return torch.zeros(0, device=self.policy.device)

    def _with_all_processes(self, logps: Logps) -> Logps:
        """Log-probabilities of roles that are not trained on, from every process: a loss sees the whole step's."""
        everybody = {}
        for model, role in self._still:
            own = logps[model, role]
            if role in self.trained_roles:
                everybody[model, role] = own
            else:
                parts = distributed.gather_objects([part.cpu() for part in own])
                everybody[model, role] = [part.to(self.policy.device) for some in parts for part in some]
        return everybody

    def _weights(self, rows: Sequence[Row], logps: Logps) -> torch.Tensor:
        """The weight of each loss, in the order of the loss's output.

        That is one for each row, or one for each scored token, the tokens of one role after those of another.
        """
        weights = [rows[index].weight for index in self._owners(rows, logps)]
        return torch.tensor(weights, dtype=torch.float32, device=self.policy.device)

    def _owners(self, rows: Sequence[Row], logps: Logps) -> list[int]:
        """The row of each loss, in the order of the loss's output; see `_weights`."""
        order = [index for group in self.trainer.loss_groups(rows) for index in group]
        if not self._by_token:
            return order
        return [
            index for role in self.trained_roles for index in order for _ in range(len(logps["policy", role][index]))
        ]

    @property
    def _by_token(self) -> bool:
        return any(need.kind == "token_logps" for need in self.trainer.needs)

    def _loss(self, tensors: Tensors, weights: torch.Tensor) -> LossOutput:
        before = self._state_versions()
        output = LossOutput.of(self.trainer.loss(**tensors))
        if self._state_versions() != before:
            raise ValueError(
                f"{type(self.trainer).__name__}.loss changes self.loss_state, and it is called for evaluations and "
                "parts of steps too: read the state in `loss`, and change it in `remember`, once a step."
            )
        if torch.is_grad_enabled() and len(weights) and not output.losses.requires_grad:
            raise ValueError(
                f"{type(self.trainer).__name__}.loss returned losses without a gradient: it must be made of the "
                "policy's log-probabilities, not detached."
            )
        if output.losses.shape != weights.shape:
            raise ValueError(
                f"{type(self.trainer).__name__}.loss returned losses of shape {tuple(output.losses.shape)}; one value "
                f"for each {'token' if self._by_token else 'example'} is needed, here {tuple(weights.shape)}. Losses "
                "never reduce: the loop does."
            )
        return output

    def _state_versions(self) -> dict[str, tuple[int, int]]:
        """What tells whether the state of the loss was changed or replaced."""
        return {name: (id(value), getattr(value, "_version", 0)) for name, value in self.trainer.loss_state.items()}

    def _result(self, rows: Sequence[Row], logps: Logps) -> StepResult:
        tensors, weights = self._naming.tensors(rows, logps), self._weights(rows, logps)
        if self.trainer.couples_examples:
            tensors, weights, _ = self._of_all_processes(rows, tensors, logps)
        return StepResult(rows, tensors, self._loss(tensors, weights), weights)

    def _apart(self, rows: Sequence[Row], logps: Logps) -> StepResult:
        """Each micro-batch forward and backward by itself; the loss on the whole step is then there for the metrics."""
        count = distributed.total(self._count(rows))
        shared = self._with_all_processes(logps)
        trained: Logps = {
            (kind, role): [self._empty()] * len(rows) for kind in self._kinds() for role in self.trained_roles
        }
        for pack in self._packs(rows, self.trained_roles):
            if not pack[0]:
                self._accompany()
                continue
            with self.clock.part("forward"):
                group, own = self._forward(*pack)
                some = [rows[index] for index in group]
                known = {
                    key: [values[index] for index in group] if key[1] in self.trained_roles else values
                    for key, values in shared.items()
                }
                weights = self._weights(some, own)
                output = self._loss(self._naming.tensors(some, known | own), weights)
            refuse_non_finite(self.trainer, output.losses, some)
            with self.clock.part("backward"):
                ((output.losses * weights).sum() / count).backward()
            for key, values in own.items():
                for index, value in zip(group, values, strict=True):
                    trained[key][index] = value.detach()
        with torch.no_grad():
            result = self._result(rows, shared | trained)
            if not self.trainer.couples_examples and len(rows) > 1:
                known = shared | trained
                refuse_undeclared_coupling(self.trainer, self._naming, rows, known, self._owners(rows, known))
        return result

    def _count(self, rows: Sequence[Row]) -> int:
        """What the sum of losses is divided by, this process's share: scored tokens for a token loss, else examples."""
        if not self._by_token:
            return len(rows)
        return sum(_scored_tokens(row, role) for row in rows for role in self.trained_roles)

    # Losses that couple examples -----------------------------------------------------------------------------------

    def _coupled(self, rows: Sequence[Row], logps: Logps) -> StepResult:
        with self.clock.part("forward"):
            logps = logps | self._policy(rows, self.trained_roles)
        logps = logps | self._with_all_processes(logps)
        own = self._naming.tensors(rows, logps)
        slopes_of = [
            need
            for need in self.trainer.needs
            if need.model == "policy" and need.kind != "alignments" and need.role not in self.step_roles
        ]
        for need in slopes_of:
            own[need.parameter] = own[need.parameter].detach().requires_grad_()
        tensors, weights, count = self._of_all_processes(rows, own, logps)
        output = self._loss(tensors, weights)
        refuse_non_finite(self.trainer, output.losses, rows)
        leaves = [own[need.parameter] for need in slopes_of]
        slopes = torch.autograd.grad((output.losses * weights).sum() / count, leaves)
        by_name = {need.parameter: slope for need, slope in zip(slopes_of, slopes, strict=True)}
        for pack in self._packs(rows, self.trained_roles):
            if pack[0]:
                self._backward_with(by_name, rows, logps, pack, slopes_of)
            else:
                self._accompany()
        detached = {name: tensor.detach() for name, tensor in tensors.items()}
        return StepResult(rows, detached, output.to(output.losses.device), weights)

    def _backward_with(
        self, slopes: Tensors, rows: Sequence[Row], logps: Logps, pack: tuple[list[Place], list[TreeRow]], needs: list
    ) -> None:
        """Backward of one micro-batch, given the slope of the step's loss in each value that it names."""
        with self.clock.part("forward"):
            group, own = self._forward(*pack)
        trained = [key for key in logps if key[1] in self.trained_roles]
        known = {key: [logps[key][index] for index in group] for key in trained}
        some = [rows[index] for index in group]
        surrogate = torch.zeros((), device=self.policy.device)
        if self.shards is not None:  # all processes go backward, also where the loss names none of these rows
            surrogate = 0.0 * sum(value.sum() for values in own.values() for value in values)
        for need in needs:
            role, indices = self.trainer.select(need.role, rows)
            by_token = need.kind.startswith("token_")
            sizes = [len(logps["policy", role][index]) if by_token else 1 for index in indices]
            slope_of = dict(zip(indices, slopes[need.parameter].split(sizes), strict=True))
            for place, index in enumerate(group):
                if index in slope_of:
                    value = self._naming.value(need, role, some, known | own, place)
                    surrogate = surrogate + (value * slope_of[index]).sum()
        if surrogate.requires_grad:  # not where the loss names none of these rows
            with self.clock.part("backward"):
                surrogate.backward()

    def everywhere(self, result: StepResult) -> Tensors:
        """The tensors of a step on all processes."""
        return result.tensors if self.trainer.couples_examples else self._joined(result.tensors)

    @property
    def step_roles(self) -> set[str]:
        """Names in the loss whose role is not trained on; such a tensor holds the whole step's values."""
        return {
            need.role for need in self.trainer.needs if self.trainer.select(need.role, [])[0] not in self.trained_roles
        }

    def _of_all_processes(
        self, rows: Sequence[Row], tensors: Tensors, logps: Logps
    ) -> tuple[Tensors, torch.Tensor, int]:
        """Tensors and weights of the step on all processes, in the order that the loss expects, and how many losses."""
        joined = self._joined(tensors)
        sizes = [
            sum(len(logps["policy", role][index]) for index in group for role in self.trained_roles)
            if self._by_token
            else len(group)
            for group in self.trainer.loss_groups(rows)
        ]
        groups = self._weights(rows, logps).split(sizes)
        all_weights = torch.cat([torch.cat(distributed.gather(group)) for group in groups])
        return joined, all_weights, len(all_weights)

    def _joined(self, tensors: Tensors) -> Tensors:
        return {
            need.parameter: tensors[need.parameter]
            if need.role in self.step_roles
            else torch.cat(distributed.gather(tensors[need.parameter]))
            for need in self.trainer.needs
        }


def _scored_tokens(row: Row, role: str) -> int:
    """Scored tokens of a response; a first token with nothing before it has no probability and does not count."""
    scored = row.responses[role].scored
    return int(scored.sum()) - int(len(row.prompt) == 0 and len(scored) > 0 and scored[0])
