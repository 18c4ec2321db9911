"""What a tier costs, by arithmetic: operations, bytes and steps of each stage, and the time that a device needs for them.

A transformer does about 2 operations a parameter and token forward, and 6 forward and backward (Kaplan et al., *Scaling
laws for neural language models*, 2020, section 2.1). Writing one token for each text of a batch reads every weight once,
so it is bound by memory; reading and training are bound by arithmetic. A device does neither at its peak, and each step has
an overhead of its own: :class:`Device` holds what is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from radio_utils.presets import Build, Model, Preset


@dataclass(frozen=True)
class Device:
    """Peak operations a second and bytes a second, the shares of both that are reached, and seconds of overhead a step."""

    name: str
    operations: float
    bandwidth: float
    arithmetic_share: float
    bandwidth_share: float
    step: float


# NVIDIA's data sheets give the peaks: T4, 65e12 half-precision operations and 320e9 bytes a second; A100 (80 GB), 312e12
# and 2.0e12; H200, 990e12 and 4.8e12. The shares are what plain PyTorch code usually reaches with models of these sizes.
T4 = Device("T4", 65e12, 320e9, 0.3, 0.6, 0.02)
A100 = Device("A100", 312e12, 2.0e12, 0.35, 0.6, 0.02)
H200 = Device("H200", 990e12, 4.8e12, 0.3, 0.6, 0.015)
# No data sheet: on a core of a server with AVX512-BF16, SmolLM2-135M reads 540 tokens a second in bfloat16, learns 165
# and writes 200 for 64 texts at once (measured once, 2026-11-26). That is 140e9 operations a second for arithmetic.
CORES = Device("2 cores", 280e9, 20e9, 1.0, 0.5, 0.1)
DEVICES = {"pocket": CORES, "colab": T4, "gpu": H200, "paper": A100}

PARSED = 0.8  # share of what Alice writes that parses as a pair
LENGTH = 0.6  # a text's length as a share of the longest allowed
CHATTY = 0.9  # the same for an instruct model, which seldom ends by itself
DEMONSTRATION = 60  # tokens of one demonstration, or of a chat's template and its instruction


@dataclass(frozen=True)
class Work:
    """One kind of work: operations, bytes read from memory, steps, and how many devices share it."""

    name: str
    operations: float
    bytes: float
    steps: float
    devices: int = 1

    def seconds(self, device: Device) -> float:
        """The longer of arithmetic and memory traffic, and the overhead of the steps."""
        arithmetic = self.operations / (device.operations * device.arithmetic_share)
        traffic = self.bytes / (device.bandwidth * device.bandwidth_share)
        return (max(arithmetic, traffic) + self.steps * device.step) / self.devices


def parameters(model: Model, vocab_size: int) -> float:
    """How many parameters a model has."""
    if model.parameters is not None:
        return model.parameters
    assert model.build is not None
    return _built(model.build, vocab_size)


def _built(build: Build, vocab_size: int) -> float:
    width, heads = build.width, build.heads
    if build.architecture == "gpt_neox":
        return vocab_size * width + build.layers * 12 * width**2
    inner = 8 * (width * 8 // 3 // 8)
    attention = 2 * width**2 * (1 + build.key_value_heads / heads)
    return vocab_size * width + build.layers * (attention + 3 * width * inner)


def works(preset: Preset) -> list[Work]:
    """The work of chapters 1 to 7 at a tier."""
    vocab_size = preset.tokenizer.vocab_size
    alice, bob = parameters(preset.alice, vocab_size), parameters(preset.base, vocab_size)
    instruct, tuning, devices = preset.self_instruct, preset.fine_tuning, preset.devices
    found = []
    for name, model, size in (("Alice", preset.alice, alice), ("Bob's base", preset.base, bob)):
        if model.pretraining is not None:
            schedule = model.pretraining
            steps = schedule.tokens / (schedule.batch_size * schedule.length)
            found.append(Work(f"pre-training, {name}", 6 * size * schedule.tokens, 16 * size * steps, steps))
    share, before = (LENGTH, 20) if preset.alice.hub is None else (CHATTY, DEMONSTRATION)
    pairs = 2 * instruct.pairs + instruct.unused + instruct.fresh + preset.membership.fresh
    texts = pairs / PARSED
    prompt = DEMONSTRATION * instruct.shown
    batches = texts / instruct.batch_size
    # a batch ends when its last row does, but finished rows leave it
    found.append(
        Work(
            "Alice writes",
            2 * alice * texts * (prompt + share * instruct.max_new_tokens),
            2 * alice * batches * instruct.max_new_tokens,
            batches * instruct.max_new_tokens,
            devices,
        )
    )
    a_pair = share * instruct.max_new_tokens + before
    models = len({*preset.mixtures.rhos, *preset.reading.contrast_rhos}) + 1
    tokens = models * tuning.epochs * preset.mixtures.size * min(a_pair, tuning.max_length)
    steps = models * tuning.epochs * preset.mixtures.size / tuning.batch_size
    found.append(Work(f"fine-tuning, {models} models", 6 * bob * tokens, 16 * bob * steps, steps, devices))
    rhos = len(preset.mixtures.rhos)
    batches = 2 * rhos * preset.querying.prompts / preset.suspect.batch_size
    longest = preset.suspect.max_new_tokens
    found.append(
        Work(
            "Bob answers",
            2 * bob * 2 * rhos * preset.querying.prompts * (before + share * longest),
            4 * bob * batches * longest,
            batches * longest,
            devices,
        )
    )
    passes = 2 * rhos + 6 * len(preset.reading.contrast_rhos)
    tokens = passes * preset.reading.texts * a_pair
    tokens += 3 * (preset.membership.candidates + preset.membership.fresh) * a_pair
    steps = passes * preset.reading.texts / preset.reading.batch_size
    found.append(Work("reading and membership", 2 * bob * tokens, 4 * bob * steps, steps, devices))
    return found


def minutes(preset: Preset, device: Device) -> float:
    """Estimated minutes for chapters 1 to 7."""
    return sum(work.seconds(device) for work in works(preset)) / 60
