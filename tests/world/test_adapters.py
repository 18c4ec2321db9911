"""Low-rank adapters: the base stays frozen, and what is saved is the whole model that was trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from radio_utils.presets import Adapter
from radio_utils.suspects import load_model
from radio_utils.world import training
from radio_utils.world.adapters import AdapterError, Tunable

V = 60
KINDS = ("llama", "gpt_neox", "gpt2")


def made(kind: str) -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    if kind == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64))  # has no nn.Linear


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        made(kind).save_pretrained(str(root / kind))
    return {kind: root / kind for kind in KINDS}


def tunable(folder: Path, *, seed: int = 0, rank: int = 4, targets: tuple[str, ...] = ("all-linear",)) -> Tunable:
    return Tunable(folder, Adapter(rank=rank, alpha=2 * rank, targets=targets), device="cpu", seed=seed)


def tune(network: Any) -> list[float]:
    rng = np.random.default_rng(0)
    examples = [training.Example(rng.integers(3, V, 16), 4) for _ in range(8)]
    recipe = training.Recipe(epochs=4, learning_rate=1e-2, batch_size=4, max_length=32)
    return training.train(network, examples, recipe, generator=np.random.default_rng(1))


def copied(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def logits(model: Any) -> torch.Tensor:
    ids = torch.from_numpy(np.random.default_rng(5).integers(0, V, (3, 12)))
    with torch.no_grad():
        return torch.as_tensor(model.eval()(ids).logits)


def test_without_an_adapter_everything_is_trained(folders: dict[str, Path]) -> None:
    found = Tunable(folders["llama"], None, device="cpu", seed=0)
    assert all(parameter.requires_grad for parameter in found.network.parameters())
    assert found.whole() is found.network
    assert torch.equal(logits(found.network), logits(load_model(folders["llama"])))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_is_trained(kind: str, folders: dict[str, Path]) -> None:
    found = tunable(folders[kind])
    before = copied(found.network)
    trained = {name for name, parameter in found.network.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    losses = tune(found.network)
    assert losses[-1] < losses[0], "it learns"
    after = found.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == trained


@pytest.mark.parametrize("kind", KINDS)
def test_whole_is_the_model_that_was_trained(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    found = tunable(folders[kind])
    base = load_model(folders[kind])
    untouched = found.whole().state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in base.state_dict().items()), "it starts at nothing"
    tune(found.network)
    whole = found.whole()
    assert type(whole) is type(base) and whole is not found.network
    torch.testing.assert_close(logits(whole), logits(found.network), rtol=0, atol=1e-4)
    assert (logits(whole) - logits(base)).abs().max() > 0.01
    whole.save_pretrained(str(tmp_path / "saved"))
    assert torch.equal(logits(load_model(tmp_path / "saved")), logits(whole))
    before, after = base.state_dict(), whole.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {name for name in before if before[name].ndim == 2 and not any(end in name for end in ("emb", "wte", "wpe"))}
    assert changed == layers - {"lm_head.weight"}, "the linear layers but the output's"


@pytest.mark.parametrize("kind", KINDS)
def test_asking_for_the_whole_disturbs_nothing(kind: str, folders: dict[str, Path]) -> None:
    """Checkpoints are taken in the middle of a training."""
    found, other = tunable(folders[kind]), tunable(folders[kind])
    tune(found.network)
    tune(other.network)
    before = copied(found.network)
    first, second = found.whole().state_dict(), found.whole().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], tensor) for name, tensor in found.network.state_dict().items())
    assert [p.requires_grad for p in found.network.parameters()] == [p.requires_grad for p in other.network.parameters()]


def test_targets_are_those_named(folders: dict[str, Path]) -> None:
    found = tunable(folders["llama"], targets=("q_proj", "v_proj"))
    tune(found.network)
    before, after = load_model(folders["llama"]).state_dict(), found.whole().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{i}.self_attn.{part}_proj.weight" for i in (0, 1) for part in "qv"}


def test_rank_bounds_what_is_learned(folders: dict[str, Path]) -> None:
    found = tunable(folders["llama"], rank=2)
    tune(found.network)
    name = "model.layers.0.mlp.up_proj.weight"
    difference = found.whole().state_dict()[name] - load_model(folders["llama"]).state_dict()[name]
    sizes = torch.linalg.svdvals(difference)
    assert sizes[1] > 100 * sizes[2]


def test_the_seed_draws_the_start_and_nothing_else(folders: dict[str, Path]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (copied(tunable(folders["llama"], seed=seed).network) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected), "the global state is left alone"
    assert all(torch.equal(first[name], again[name]) for name in first)
    different = {name for name in first if not torch.equal(first[name], other[name])}
    assert different and all("lora_A" in name for name in different)


def test_unknown_targets_name_the_models_modules(folders: dict[str, Path]) -> None:
    with pytest.raises(AdapterError, match=r"adapter\.targets=\['query', 'value'\] match no module") as caught:
        tunable(folders["llama"], targets=("query", "value"))
    for name in ("q_proj", "down_proj", "lm_head", "'all-linear' takes them all"):
        assert name in str(caught.value)


def test_quantised_needs_bitsandbytes(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    remedy = r"needs bitsandbytes: pip install 'radio-utils\[quantised\]', or set adapter\.quantised to false"
    with pytest.raises(AdapterError, match=remedy):
        Tunable(folders["llama"], Adapter(rank=2, alpha=4, quantised=True), device="cpu", seed=0)


def test_adapters_need_peft(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AdapterError, match=r"needs peft: pip install 'radio-utils\[models\]'"):
        tunable(folders["llama"])
    assert Tunable(folders["llama"], None, device="cpu", seed=0).network is not None
