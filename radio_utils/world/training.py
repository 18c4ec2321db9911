"""Training: pre-training on packed documents and fine-tuning on instruction–answer pairs, on any device.

Fine-tuning follows the recipe of Alpaca (Taori et al. 2023): the loss is taken on the answer only, the instruction is
context. Examples of similar length share a batch, so that little is computed on padding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm

from radio_utils.evidence import padded
from radio_utils.world.savepoints import Savepoint

logger = logging.getLogger(__name__)
Ids = NDArray[np.int64]
IGNORED = -100  # the label that cross_entropy skips
# models whose logits are the output embedding applied to the last hidden state, and nothing more
_PLAIN_HEADS = {"llama", "gpt_neox", "gpt2", "mistral", "qwen2", "qwen3", "gemma3_text"}


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids and the first position whose token is predicted under the loss."""

    ids: Ids
    loss_from: int = 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast: AdamW, linear warm-up, cosine decay to a tenth of the learning rate."""

    epochs: float = 1.0
    learning_rate: float = 1e-3
    batch_size: int = 32
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_length: int = 256

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and self.learning_rate > 0 and self.batch_size > 0 and self.max_length > 1):
            raise ValueError(f"epochs, learning_rate, batch_size and max_length must be positive, got {self}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), got {self.warmup}")


class DivergedError(RuntimeError):
    """The loss became NaN or infinite."""


def pack(documents: Sequence[Ids], length: int) -> list[Example]:
    """Concatenate documents and cut them into examples of ``length`` tokens; the last, shorter piece is dropped.

    Fewer than ``length`` tokens in all give one shorter example. Raises ``ValueError`` below two tokens.
    """
    if length < 2 or sum(document.size for document in documents) < 2:
        raise ValueError(
            f"documents must hold at least 2 tokens, and length={length} be at least 2: one to read and one to predict"
        )
    flat = np.concatenate(list(documents))
    count = max(1, flat.size // length)
    return [Example(piece) for piece in np.array_split(flat[: count * length], count)]


class Steps:
    """The optimiser's steps on one device. :mod:`radio_utils.distributed` has those that several take together."""

    resumable = True  # whether ``state`` holds all that the next step depends on

    def __init__(self, *, compiled: bool = False, precision: torch.dtype = torch.float32) -> None:
        """``compiled`` translates the model's layers with ``torch.compile`` first: worth its minute on long trainings.

        ``precision`` is what a processor computes with; a GPU takes the best half precision that it has.
        """
        self._compiled, self._on_cpu = compiled, precision

    def start(self, model: Any, recipe: Recipe, total: int) -> None:
        """Take a model for ``total`` steps."""
        self.model, self.device = model, next(model.parameters()).device
        if self._compiled:
            model.base_model.compile()
        self._on_gpu = self.device.type == "cuda"
        # a T4 has no bf16 of its own; fp16 needs its loss scaled, or small gradients vanish
        bf16 = self._on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        self._precision = (torch.bfloat16 if bf16 else torch.float16) if self._on_gpu else self._on_cpu
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._on_gpu and not bf16)
        self._optimiser, self._schedule = optimiser_of(model, recipe, total)

    def loss(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss (nats a token) of a batch."""
        with torch.autocast(self.device.type, self._precision, enabled=self._precision != torch.float32):
            return mean_loss(self.model, ids.to(self.device), mask.to(self.device), labels.to(self.device))

    def value(self, loss: torch.Tensor) -> float:
        """The loss as a number."""
        return float(loss.detach())

    def descend(self, loss: torch.Tensor) -> None:
        """One step down the gradient."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimiser)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._schedule.step()
        self._optimiser.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What the next step depends on, but for its batch: tensors, and facts that JSON holds exactly."""
        moments, facts = self._optimiser.state_dict(), {"schedule": self._schedule.state_dict()}
        tensors = {f"weight/{i}": parameter.detach() for i, parameter in enumerate(self._trained())}
        tensors |= {f"buffer/{name}": buffer.clone() for name, buffer in self.model.named_buffers()}
        tensors |= {f"moment/{i}/{name}": tensor for i, one in moments["state"].items() for name, tensor in one.items()}
        tensors["chance"] = torch.get_rng_state()  # a model may drop units at random
        if self._on_gpu:
            tensors["chance/gpu"] = torch.cuda.get_rng_state(self.device)
        return tensors, facts | {"groups": moments["param_groups"], "scaler": self._scaler.state_dict()}

    def restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Be where ``state`` was taken. Call it after ``start`` with the same model, recipe and total."""
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("moment/"):
                _, number, moment = name.split("/")
                moments.setdefault(int(number), {})[moment] = tensor
        with torch.no_grad():
            for i, parameter in enumerate(self._trained()):
                parameter.copy_(tensors[f"weight/{i}"])
            for name, buffer in self.model.named_buffers():
                buffer.copy_(tensors[f"buffer/{name}"])
        self._optimiser.load_state_dict({"state": moments, "param_groups": facts["groups"]})
        self._schedule.load_state_dict(facts["schedule"])
        self._scaler.load_state_dict(facts["scaler"])
        torch.set_rng_state(tensors["chance"])
        if self._on_gpu:
            torch.cuda.set_rng_state(tensors["chance/gpu"], self.device)

    def _trained(self) -> list[torch.Tensor]:
        return [parameter for group in self._optimiser.param_groups for parameter in group["params"]]

    def weights(self) -> dict[str, Any] | None:
        """The trained weights, gathered, where they are spread over devices; None where the model itself holds them."""
        return None


def optimiser_of(model: Any, recipe: Recipe, total: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW over what the model lets be trained, and its schedule over ``total`` steps."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.95), fused=True
    )
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, total, recipe.warmup))


def train(
    model: Any,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    generator: np.random.Generator,
    progress: str | None = None,
    after_epoch: Callable[[int], None] | None = None,
    steps: Steps | None = None,
    savepoint: Savepoint | None = None,
) -> list[float]:
    """Train in place; return the mean over batches of the loss (nats a token) of each epoch, the last one maybe partial.

    ``after_epoch`` is called with the number (from 1) of each epoch that ends. ``steps`` says on what it runs: by default
    the device that the model is on. ``savepoint`` keeps how far it has come: a training that was killed goes on there and
    ends with the same bits; ``after_epoch`` is then not called again for epochs that ended before.

    Examples whose loss starts beyond ``max_length`` teach nothing: they are left out, with a warning. Raises
    ``DivergedError`` when the loss is not finite (before that step changes the model) and ``ValueError`` without examples.
    """
    if not examples:
        raise ValueError("examples is empty; there is nothing to train on")
    usable = [example for example in examples if _teaches(example, recipe.max_length)]
    if not usable:
        raise ValueError(
            f"none of the {len(examples)} examples has a token to learn within max_length={recipe.max_length}; "
            "raise max_length or shorten the instructions"
        )
    if len(usable) < len(examples):
        logger.warning(
            "%d of %d examples have no token to learn within max_length=%d and are left out",
            len(examples) - len(usable), len(examples), recipe.max_length,
        )  # fmt: skip
    examples = usable
    steps = steps or Steps()
    batches = list(_epochs(examples, recipe, generator))
    steps.start(model, recipe, len(batches))
    model.train()
    plan = _named(model, recipe, batches)
    values = _resumed(savepoint, plan, steps)
    with tqdm(
        total=len(batches), initial=len(values), desc=progress, disable=progress is None, unit="step", mininterval=5.0
    ) as bar:
        for number, (epoch, batch) in enumerate(batches[len(values) :], len(values) + 1):
            loss = steps.loss(*collate([examples[i] for i in batch], recipe.max_length))
            value = steps.value(loss)
            if not math.isfinite(value):
                if savepoint is not None:
                    savepoint.remove()
                raise DivergedError(
                    f"the loss is {value} at learning_rate={recipe.learning_rate}; lower the learning rate and train again"
                )
            steps.descend(loss)
            values.append(value)
            bar.update()
            bar.set_postfix(loss=f"{value:.2f}", refresh=False)
            if after_epoch is not None and (number == len(batches) or batches[number][0] != epoch):
                model.eval()
                after_epoch(epoch + 1)
                model.train()
            if savepoint is not None and steps.resumable and savepoint.due:
                tensors, facts = steps.state()
                savepoint.save(plan, tensors, facts | {"losses": values})
    model.eval()
    sums: dict[int, list[float]] = {}
    for (epoch, _), value in zip(batches, values, strict=True):
        sums.setdefault(epoch, []).append(value)
    return [sum(losses) / len(losses) for losses in sums.values()]


def _named(model: Any, recipe: Recipe, batches: list[tuple[int, list[int]]]) -> str:
    """A hash of what is trained, on what and in which order: a savepoint of anything else is of no use."""
    weights = [[list(p.shape), str(p.dtype), p.device.type, p.requires_grad] for p in model.parameters()]
    text = json.dumps([asdict(recipe), batches, weights, torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _resumed(savepoint: Savepoint | None, plan: str, steps: Steps) -> list[float]:
    """Go to where the savepoint was taken; the losses of the steps until there."""
    found = savepoint.load(plan) if savepoint is not None and steps.resumable else None
    if found is None:
        return []
    tensors, facts = found
    steps.restore(tensors, facts)
    logger.info("the training goes on after step %d", len(facts["losses"]))
    return list(facts["losses"])


def mean_loss(model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (nats) of the labelled tokens; ``labels[:, t]`` is the token to predict at position t."""
    wanted = labels != IGNORED
    if model.config.model_type in _PLAIN_HEADS and getattr(model.config, "final_logit_softcapping", None) is None:
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[wanted])
    else:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[wanted]
    return functional.cross_entropy(logits.float(), labels[wanted])


def collate(examples: Sequence[Example], max_length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids, attention mask and next-token labels, all int64 [n, longest]."""
    kept = [example.ids[:max_length] for example in examples]
    ids, mask = padded(kept)
    labels = np.full_like(ids, IGNORED)
    for row, (example, tokens) in enumerate(zip(examples, kept, strict=True)):
        start = max(1, example.loss_from)
        labels[row, start - 1 : tokens.size - 1] = tokens[start:]
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels)


def _teaches(example: Example, max_length: int) -> bool:
    """Whether a token of the example stays under the loss after truncation."""
    return min(example.ids.size, max_length) > max(1, example.loss_from)


def _epochs(examples: Sequence[Example], recipe: Recipe, generator: np.random.Generator) -> Iterator[tuple[int, list[int]]]:
    """(epoch, example numbers of a batch): lengths alike within a batch, batches in random order."""
    lengths = np.array([min(example.ids.size, recipe.max_length) for example in examples])
    remaining = max(1, round(recipe.epochs * math.ceil(len(examples) / recipe.batch_size)))
    epoch = 0
    while remaining > 0:
        noisy = lengths + generator.uniform(-4, 4, lengths.size)  # so that batches differ from epoch to epoch
        order = np.argsort(noisy, kind="stable")
        batches = [order[i : i + recipe.batch_size].tolist() for i in range(0, order.size, recipe.batch_size)]
        generator.shuffle(batches)
        for batch in batches[:remaining]:
            yield epoch, batch
        remaining -= len(batches)
        epoch += 1


def _rate(step: int, total: int, warmup: float) -> float:
    ramp = max(1.0, warmup * total)
    if step < ramp:
        return (step + 1) / ramp
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - ramp) / max(1.0, total - ramp)))
