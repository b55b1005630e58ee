"""What all trainers share. A family of them says which rows its names mean; a leaf names its loss."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dataloaders.base import DataLoader
from dataloaders.batches import Pair, Row
from models.reference import Reference
from models.value_head import ValueHead
from trainers import distributed
from trainers.checkpointing import Checkpointing
from trainers.finite import NonFiniteError, describe
from trainers.loop import Evaluation, Loop
from trainers.metrics import Averages, Clock, MetricsLog, peak_memory_gb
from trainers.optimization import clip_gradients
from trainers.outputs import LossOutput, StepResult, Tensors
from trainers.requirements import Requirement, refuse_no_method, requirements
from trainers.resume import Resume
from trainers.step import StepComputer


class BasicTrainer:
    """Accumulates, reduces over processes, clips, steps, evaluates on a fixed set and logs.

    A subclass defines `loss`, whose parameter names say what it needs (see `trainers.requirements`), and returns one
    value per example (or, when it takes `token_logps`, per token): either `losses`, or `losses, chosen_rewards,
    rejected_rewards`. Losses are multiplied by the rows' weights and divided by the number of examples (tokens) of the
    whole optimizer step, so that neither micro-batches nor processes change a result.

    Args:
        config: the composed config; a loss reads its hyperparameters from `self.config.loss`.
        policy: the model to train.
        reference: the frozen one; None for a loss that names none.
        train_loader: rows of each optimizer step; None when only evaluating.
        eval_rows: the fixed evaluation set.
        folder: the run's folder, for checkpoints; None writes nothing.
        metrics_log: where metrics go; None (on all processes but one) writes none.
    """

    roles: ClassVar[tuple[str, ...]]
    """The responses of a row that are trained on; the DataLoader must provide them."""

    reads: ClassVar[tuple[str, ...]] = ()
    """What the family needs rows to say beside their responses (see `DataLoader.gives`)."""

    may_be_zero: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that are above 0 in other losses, and in this one may be 0: a `beta` that is a term's weight."""

    couples_examples: bool = False
    """True when the loss of an example depends on others of its step (a batch mean, a sort, whitening)."""

    def __init__(
        self,
        config: Any,
        tokenizer: PreTrainedTokenizerBase,
        policy: PreTrainedModel,
        reference: Reference | None = None,
        train_loader: DataLoader | None = None,
        eval_rows: Sequence[Row] = (),
        folder: Path | None = None,
        metrics_log: MetricsLog | None = None,
    ):
        self.config = config
        self.couples_examples = self.couples(config.loss)
        self.tokenizer = tokenizer
        self.policy = policy
        self.train_loader = train_loader
        self.eval_rows = list(eval_rows)
        self.folder = folder
        self.metrics_log = metrics_log
        self.needs = self.requirements(config.loss)
        self.loss_state: Tensors = {}  # what a loss remembers from step to step; see `remember`
        self.step_idx = 0
        self.examples = 0
        self.evaluations: Sequence[Evaluation] = ()  # what else is looked at while it is trained; see `Loop`
        self.check_stop: Callable[[], None] = lambda: None  # all call it where a long evaluation can end; see `Loop`
        self.checkpoints = Checkpointing(folder if distributed.rank() == 0 else None, config)
        self.clock = Clock()
        if reference is None and any(need.model == "reference" for need in self.needs):
            raise ValueError(
                f"{type(self).__name__}.loss names reference log-probabilities, but loss.use_reference_model is false: "
                "set it to true."
            )
        if self.couples_examples and len(self.roles) > 1 and any(need.kind == "token_logps" for need in self.needs):
            raise ValueError(
                f"{type(self).__name__} couples examples of several roles, so its loss takes ..._logps, not "
                "..._token_logps."
            )
        self.value_head: nn.Module | None = None
        if any(need.kind == "token_values" for need in self.needs):
            size = policy.config.get_text_config().hidden_size
            self.value_head = self.make_value_head(size).to(policy.device)
        self.computer = StepComputer(
            self,
            policy,
            reference,
            tokens_per_microbatch=config.model.tokens_per_microbatch,
            dtype=getattr(torch, config.model.policy_dtype),
            clock=self.clock,
            clamp=(config.log_epsilon_P, config.log_epsilon_R) if config.humanline else None,
        )
        self._reference_follows = config.humanline or config.loss.get("sync_reference", False)
        self.parameters = self.computer.parameters

    @classmethod
    def requirements(cls, loss: Any) -> list[Requirement]:
        """The tensors that the loss takes, whose section of the config this is.

        Raises:
            ValueError: for a loss that is none, or names what is no tensor.
        """
        refuse_no_method(cls, BasicTrainer.loss)
        return requirements(cls.loss)

    @classmethod
    def couples(cls, loss: Any) -> bool:
        """Whether the loss, whose section of the config this is, couples the examples of a step."""
        return cls.couples_examples

    def loss(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The loss; each leaf defines it."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def remember(self, **tensors: torch.Tensor) -> None:
        """After each optimizer step: what a loss with a state (a running mean, say) keeps in `self.loss_state`.

        Args:
            tensors: what `loss` was given, of the whole step on all processes, detached.

        `loss` reads the state and never changes it, since it is also evaluated. The state is a dict of tensors, part of
        every checkpoint.
        """

    def make_value_head(self, hidden_size: int) -> nn.Module:
        """What predicts `..._token_values` from hidden states: (N, hidden_size) to (N,)."""
        return ValueHead(hidden_size, self.config.seed)

    # What a family says ------------------------------------------------------------------------------------------

    @classmethod
    def select(cls, name: str, rows: Sequence[Row]) -> tuple[str, list[int]]:
        """What a role in the loss's parameter names means: the role of the rows, and which rows have it."""
        return name, list(range(len(rows)))

    def loss_groups(self, rows: Sequence[Row]) -> list[list[int]]:
        """The rows in the order of the losses that `loss` returns, in as many groups as it concatenates."""
        return [list(range(len(rows)))]

    def reward_counts(self, groups: Sequence[Sequence[Any]]) -> tuple[int, int] | None:
        """How many rewards of chosen and rejected responses a loss returns for rows in groups; None: any number."""
        return None

    def reward_metrics(self, output: LossOutput) -> Tensors:
        """Values whose means are logged, under HALOs' names: `rewards/x` becomes `rewards_{mode}/x`."""
        return {"rewards/chosen": output.chosen_rewards, "rewards/rejected": output.rejected_rewards}

    def pair_metrics(self, pairs: Sequence[Sequence[Pair | None]], output: LossOutput) -> Tensors:
        """More of them, for which one needs to know the pair that each loss's row comes from (see `loss_groups`)."""
        return {}

    # Training ------------------------------------------------------------------------------------------------------

    def train(self, resume: Resume | None = None) -> dict[str, float]:
        """Trains to the end of the loader, from the beginning or from a checkpoint (see `trainers.loop`).

        Returns:
            The last evaluation's metrics; empty without an evaluation set.
        """
        return self.prepare(resume).run()

    def prepare(self, resume: Resume | None = None) -> Loop:
        """The training, ready to run: what can be refused of it is refused before anything is written."""
        return Loop(self, resume)

    def step(self, optimizer: torch.optim.Optimizer, rows: Sequence[Row], averages: Averages) -> float:
        """One optimizer step; returns the gradient's norm before clipping."""
        where = f"at optimizer step {self.step_idx + 1} (after {self.examples} examples)"
        optimizer.zero_grad(set_to_none=True)
        self.policy.train()
        try:
            result = self.computer.gradients(rows)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"the loss is not finite {where}; nothing of this step reached the optimizer. Examples: {error}. "
                f"{self._suspects('Lower lr, or look')} at these examples with mode=inspect."
            ) from None
        with self.clock.part("optimizer"):
            norm = self._clip()
            if not math.isfinite(norm):
                examples = "; ".join(describe(row) for row in rows[:5])
                raise NonFiniteError(
                    f"the gradient is not finite {where}; nothing of this step reached the optimizer. "
                    "Among its examples: "
                    f"{examples}. {self._suspects('Lower lr, or look')} at these examples with mode=inspect; with "
                    "model.policy_dtype=bfloat16, float32 may be enough."
                )
            if self._reference_follows:  # one step behind: the weights whose gradient this is
                self.computer.reference.follow(self.policy)
            optimizer.step()
        if type(self).remember is not BasicTrainer.remember:
            self.remember(**self.computer.everywhere(result))
            wrong = [name for name, value in self.loss_state.items() if not isinstance(value, torch.Tensor)]
            if wrong:
                raise ValueError(
                    f"{type(self).__name__}.remember keeps loss_state[{wrong[0]!r}], which is no tensor and could not "
                    "be saved: wrap it in torch.tensor(...)."
                )
        self.policy.eval()
        self._collect(result, averages)
        self.step_idx += 1
        self.examples += int(distributed.total(len(rows)))
        return norm

    def _suspects(self, later: str) -> str:
        """The beginning of advice on values that are not finite, to be followed by where to look: `later`, but before
        the first step lr cannot be the reason."""
        if self.step_idx:
            return later
        kinds = self.config.loss.items()
        numbers = [f"loss.{key}={value}" for key, value in kinds if type(value) in (int, float)]
        return f"Before the first step it cannot be lr: look at {', '.join(numbers) or 'what the loss computes'} and"

    def _clip(self) -> float:
        """Clips the gradients of the policy and of a value head, each by itself; returns the policy's norm before."""
        policy = self.parameters
        if self.value_head is not None:
            own = [*self.value_head.parameters()]
            clip_gradients(own, self.config.model.v_head_max_grad_norm)
            policy = policy[: -len(own)]
        shards = self.computer.shards
        return clip_gradients(policy, self.config.model.max_grad_norm, None if shards is None else shards.total)

    def state_of_loss(self) -> Tensors:
        """What a checkpoint keeps beside the policy: what the loss remembers, and the weights of a value head."""
        head = {} if self.value_head is None else self.value_head.state_dict(prefix="value_head.")
        return self.loss_state | head

    def load_state_of_loss(self, state: Tensors) -> None:
        """Takes back what `state_of_loss` gave."""
        head = {name: value for name, value in state.items() if name.startswith("value_head.")}
        if self.value_head is not None and head:
            self.value_head.load_state_dict({name.removeprefix("value_head."): value for name, value in head.items()})
        self.loss_state = {name: value.to(self.policy.device) for name, value in state.items() if name not in head}

    def own(self, rows: Sequence[Row]) -> list[Row]:
        """This process's share of rows that all processes have, in their order; every one has about as many tokens.

        Rows of one prompt stay together, which is then computed once, unless they are more than a process's share.
        """
        roles, count = {role for _, role in self.computer.roles}, distributed.processes()
        if count == 1:
            return list(rows)
        sizes = [sum(len(row.responses[role].ids) for role in roles) for row in rows]
        together: dict[bytes, list[int]] = {}
        for index, row in enumerate(rows):
            together.setdefault(row.prompt.tobytes(), []).append(index)

        def cost(unit: list[int]) -> int:
            return len(rows[unit[0]].prompt) + sum(sizes[index] for index in unit)

        most = sum(map(cost, together.values())) / count
        units = [one for unit in together.values() for one in ([unit] if cost(unit) <= most else [[i] for i in unit])]
        mine = distributed.shares([cost(unit) for unit in units], count)[distributed.rank()]
        return [rows[index] for index in sorted(index for unit in mine for index in units[unit])]

    def tokens(self, rows: Sequence[Row]) -> int:
        """Tokens of the sequences that are trained on, each prompt counted with each of its responses."""
        return sum(
            len(row.prompt) + len(row.responses[role].ids) for row in rows for role in self.computer.trained_roles
        )

    # Evaluation and metrics ----------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Metrics on the fixed evaluation set, named `.../eval` or `..._eval/...`; empty when there is none."""
        if not self.eval_rows:
            return {}
        own = self.own(self.eval_rows)
        averages = Averages()
        result = self.computer.evaluate(own)
        self._collect(result, averages)
        return _named_for("eval", averages.means())

    def evaluate_and_log(self) -> dict[str, float]:
        """Evaluates, and writes the metrics to where metrics go."""
        start = time.perf_counter()
        metrics = self.evaluate()
        if metrics and self.metrics_log is not None:
            record = metrics | self.counters() | {"eval_seconds": time.perf_counter() - start}
            self.metrics_log.write(record, self.examples, "eval")
        return metrics

    def _collect(self, result: StepResult, averages: Averages) -> None:
        """Adds a step's values to averages: each process its own, the first one what all of them have."""
        first = distributed.rank() == 0
        if first or not self.couples_examples:  # of a loss that couples examples, everybody has all values
            averages.add("loss", result.output.losses, result.weights)
        for need in self.needs:
            shared = self.couples_examples or need.role in self.computer.step_roles
            name = {"logps": "logps", "token_logps": "logps", "token_values": "values"}.get(need.kind)
            if need.model == "policy" and name is not None and (first or not shared):
                averages.add(f"{name}/{need.role}", result.tensors[need.parameter])
        if result.output.chosen_rewards is not None:
            pairs = [[result.rows[index].pair for index in group] for group in self.loss_groups(result.rows)]
            averages.add_together(self._rewards_of_all, (pairs, result.output.to("cpu")))

    def _rewards_of_all(self, parts: Sequence[tuple[list[list[Pair | None]], LossOutput]]) -> Tensors:
        """Reward metrics of a step from what each process knows of it."""
        groups = zip(*(pairs for pairs, _ in parts), strict=True)
        pairs = [list(itertools.chain(*group)) for group in groups]
        outputs = [output for _, output in parts]
        output = outputs[0] if self.couples_examples else LossOutput.join(outputs)
        output.refuse_reward_counts(type(self).__name__, self.reward_counts(pairs))
        return self.reward_metrics(output) | self.pair_metrics(pairs, output)

    def log(self, averages: Averages, extra: dict[str, float], split: str) -> dict[str, float]:
        """Writes a record; returns its averages, by their logged names. All processes call it."""
        metrics = _named_for(split, averages.means())
        if self.metrics_log is not None:
            self.metrics_log.write(metrics | extra | self.counters(), self.examples, split)
        return metrics

    def counters(self) -> dict[str, float]:
        return {"counters/examples": self.examples, "counters/updates": self.step_idx}

    def speed(self, examples: int, tokens: int, seconds: float) -> dict[str, float]:
        """What took how long since the last call, in which so many examples and tokens were trained on."""
        parts = {f"seconds/{name}": value for name, value in self.clock.seconds.items()}
        self.clock.seconds.clear()
        return {
            "examples_per_second": examples / seconds,
            "tokens_per_second": tokens / seconds,
            "seconds/all": seconds,
            **parts,
            **self.computer.token_shares(),
            "peak_memory_gb": peak_memory_gb(self.policy.device),
        }


def _named_for(split: str, metrics: dict[str, float]) -> dict[str, float]:
    """HALOs' names: loss/train, rewards_train/chosen, logps_eval/rejected."""
    named = {}
    for name, value in metrics.items():
        group, _, rest = name.partition("/")
        named[f"{group}_{split}/{rest}" if rest else f"{group}/{split}"] = value
    return named
