"""Several processes together make what one makes: the same text, the same weights up to rounding, the same verdict."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM
from worlds import small

from radio_utils import distributed, experiments
from radio_utils.artifacts import Store
from radio_utils.detection import judge
from radio_utils.distributed import SharedSteps
from radio_utils.suspects import load_model
from radio_utils.world import training
from radio_utils.world.names import Bob, Purified, Twin
from radio_utils.world.training import Example, Recipe, Steps
from radio_utils.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

V = 60
# Two shards, three batches an epoch of which the last holds one pair: fewer than there are processes
CHANGES: dict[str, Any] = {"shards": 2, "mixtures__size": 17, "fine_tuning__epochs": 2.0, "fine_tuning__checkpoints": True}
SCRIPT = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
folder = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
from test_distributed import CHANGES, MODELS
from worlds import small
from radio_utils.artifacts import Store
from radio_utils import distributed
from radio_utils.world.world import World

torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
build = Store._build

def noted(self, artifact, recipe, make):
    with (folder / f"made-{accelerator.process_index}.txt").open("a") as file:
        file.write(artifact.path.name + "\\n")
    return build(self, artifact, recipe, make)

Store._build = noted
assert accelerator.num_processes == 2, accelerator.num_processes
world = World(small(**CHANGES), store=Store(folder / "store"), progress=False, device="cpu")
distributed.write(world, accelerator)
distributed.tune(world, accelerator, MODELS)
distributed.read(world, accelerator, MODELS)
distributed.tune(world, accelerator, MODELS)  # there is nothing left to do
"""
MODELS: list[float | str] = [0.5, "keys/1"]


@pytest.fixture
def accelerator() -> Iterator[Any]:
    """One process on the processor; accelerate keeps its state in the process, and it is forgotten again."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "gpt_neox":
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        )
    return BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4))  # its embeddings are tied


def random_examples(n: int = 13, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, 20, n)
    return [Example(rng.integers(3, V, size), int(rng.integers(1, size - 1))) for size in sizes]


@pytest.mark.parametrize("kind", ["gpt_neox", "bloom"])
def test_one_process_shares_with_nobody(kind: str, accelerator: Any) -> None:
    """SharedSteps alone is Steps, step for step."""
    start, recipe = tiny(kind), Recipe(epochs=2.5, batch_size=4, learning_rate=1e-2)
    results = []
    for steps in (Steps(), SharedSteps(accelerator)):
        model = copy.deepcopy(start)
        losses = training.train(model, random_examples(), recipe, generator=np.random.default_rng(0), steps=steps)
        results.append((losses, model.state_dict()))
    (losses, weights), (shared_losses, shared_weights) = results
    assert shared_losses == pytest.approx(losses, rel=1e-5)
    for name in weights:
        torch.testing.assert_close(shared_weights[name], weights[name], rtol=1e-4, atol=1e-5)
    gathered = steps.weights()  # type: ignore[attr-defined]
    assert gathered is not None and all(torch.equal(gathered[name], shared_weights[name]) for name in shared_weights)


class Ranked:
    """What SharedSteps asks of an accelerator, as one of several processes that never meet."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.process_index, self.num_processes, self.device = rank, ranks, torch.device("cpu")

    def prepare(self, one: Any) -> Any:
        return one

    def autocast(self) -> Any:
        return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("kind", ["gpt_neox", "bloom"])
@pytest.mark.parametrize(("examples", "ranks"), [(6, 1), (6, 2), (7, 3), (2, 3), (1, 4)])
def test_the_mean_of_the_gradients_is_that_of_the_batch(kind: str, examples: int, ranks: int) -> None:
    """Each process sees its part of the batch; parts differ in labels, and some are empty."""
    batch = training.collate(random_examples(examples, seed=3), 64)
    start = tiny(kind)
    start.zero_grad()
    whole = training.mean_loss(start, *batch)
    whole.backward()  # type: ignore[no-untyped-call]
    expected = {name: parameter.grad.clone() for name, parameter in start.named_parameters()}
    values, gradients = [], []
    for rank in range(ranks):
        model = tiny(kind)
        steps = SharedSteps(Ranked(rank, ranks))
        steps.start(model, Recipe(), 10)
        share = steps.loss(*batch)
        share.backward()  # type: ignore[no-untyped-call]
        values.append(float(share.detach()))
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert all(gradient is not None for gradient in gradients[-1].values()), "each takes part with every weight"
    assert sum(values) / ranks == pytest.approx(float(whole.detach()), rel=1e-5)
    for name, gradient in expected.items():
        mean = sum(found[name] for found in gradients) / ranks
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def launched(written_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store that two processes filled together, and what each of them made."""
    folder = tmp_path_factory.mktemp("launched")
    shutil.copytree(written_store, folder / "store")
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [
            # with --cpu accelerate starts one process whatever is asked; the script itself keeps to the processor
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
            str(folder / "script.py"), str(folder), str(Path(__file__).parent),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3]))},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def alone(written_store: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same world, made by one process."""
    root = shutil.copytree(written_store, tmp_path_factory.mktemp("alone") / "store")
    world = World(small(**CHANGES), store=Store(root), progress=False)
    for which in MODELS:
        world.made(which)
    return world


@pytest.fixture
def together(launched: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """What two processes made; this one may only join what they wrote."""
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("trained again"))
    return World(small(**CHANGES), store=Store(launched / "store"), progress=False)


@pytest.mark.slow
def test_each_artifact_is_made_once(launched: Path) -> None:
    made = [(launched / f"made-{rank}.txt").read_text().split() for rank in (0, 1)]
    assert len({*made[0], *made[1]}) == len(made[0]) + len(made[1])
    for rank in (0, 1):
        kinds = {name.rsplit("-", 1)[0] for name in made[rank]}
        assert {"pairs", "predictions"} <= kinds, "both wrote and both read"
    kinds = [name.rsplit("-", 1)[0] for name in (*made[0], *made[1])]
    assert kinds.count("bob") == kinds.count("keys") == 1 and kinds.count("pairs") == 10 and kinds.count("predictions") == 8


@pytest.mark.slow
def test_the_texts_are_those_of_one_process(together: World, alone: World) -> None:
    for which in ("watermarked", "plain", "kept", "fresh", "outside"):
        assert together.pairs(which) == alone.pairs(which)  # type: ignore[arg-type]
        assert together.written(which).key == alone.written(which).key  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("which", MODELS)
def test_the_weights_are_those_of_one_process(which: float | str, together: World, alone: World) -> None:
    """Six steps, two of them of one pair: another order of the same sums."""
    assert together.has(which)
    assert together.training_losses(which) == pytest.approx(alone.training_losses(which), rel=1e-4)
    for epoch in (1, None):
        theirs, ours = together.bob(which, epoch=epoch).state_dict(), alone.bob(which, epoch=epoch).state_dict()
        assert theirs.keys() == ours.keys()
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("setting", ["supervised", "unsupervised"])
def test_the_verdict_is_that_of_one_process(which: float | str, setting: Any, together: World, alone: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "read_predictions", lambda *_, **__: pytest.fail("read again"))
        theirs = judge(experiments.reading(together, which, setting), together.watermark)
    ours = judge(experiments.reading(alone, which, setting), alone.watermark)
    assert theirs.seen == ours.seen
    assert (theirs.scored, theirs.total) == (ours.scored, ours.total)
    assert theirs.log10_p == pytest.approx(ours.log10_p, abs=1e-6)


def make(world: World, which: float | str, accelerator: Any) -> World:
    distributed.tune(world, accelerator, [which])
    return world


@pytest.fixture
def world(written_store: Path, tmp_path: Path) -> World:
    root = shutil.copytree(written_store, tmp_path / "store")
    return World(small(), store=Store(root), progress=False)


def test_tuning_alone_keeps_the_model(world: World, accelerator: Any, tmp_path: Path) -> None:
    shared = make(world.changed(fine_tuning__checkpoints=True, fine_tuning__epochs=2.0), 0.5, accelerator)
    assert shared.has(0.5)
    root = shutil.copytree(world.store.root, tmp_path / "other", ignore=shutil.ignore_patterns("bob-*"))
    other = World(shared.preset, store=Store(root), progress=False)
    for epoch in (1, 2):
        ours, theirs = shared.bob(0.5, epoch=epoch).state_dict(), other.bob(0.5, epoch=epoch).state_dict()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4, msg=name)


def test_tuning_an_adapter_saves_the_whole_model(world: World, accelerator: Any) -> None:
    adapted = world.changed(fine_tuning__adapter={"rank": 4, "alpha": 8}, fine_tuning__learning_rate=0.05)
    artifact = make(adapted, 1.0, accelerator).made(1.0)
    tuned, base = load_model(artifact.path).state_dict(), world.base().state_dict()
    assert tuned.keys() == base.keys()
    assert any(not torch.equal(tuned[name], base[name]) for name in base)


def test_another_process_takes_part_and_keeps_nothing(world: World) -> None:
    world.written("watermarked")
    world.model_inputs("base")
    before = sorted(path.name for path in world.store.root.iterdir())
    steps: list[int] = []

    class Counted(Steps):
        def descend(self, loss: torch.Tensor) -> None:
            steps.append(1)
            super().descend(loss)

    world.take_part(0.5, Counted())
    assert len(steps) == 3, "20 pairs in batches of 8"
    assert sorted(path.name for path in world.store.root.iterdir()) == before


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """What the command line asks for, without doing it."""
    from accelerate.state import AcceleratorState

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setenv("RADIO_UTILS_STORE", str(tmp_path / "chosen"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def noted(stage: str) -> Any:
        return lambda world, accelerator, models=None: calls.append((stage, world, models))

    for stage in distributed.STAGES:
        monkeypatch.setattr(distributed, stage, noted(stage))
    AcceleratorState._reset_state(reset_partial_state=True)
    return calls


@pytest.mark.parametrize(
    ("arguments", "stage", "models"),
    [
        (["write"], "write", None),
        (["tune"], "tune", [0.0, 0.01, 0.05, 0.1, 0.5, 1.0]),
        (["tune", "--model", "0.5", "--model", "twin", "--model", "1"], "tune", [Bob(0.5), Twin(), Bob(1.0)]),
        (["read", "--model", "purified/0.5"], "read", [Purified(0.5)]),
    ],
)
def test_the_command_line(
    arguments: list[str], stage: str, models: Any, asked: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    assert distributed.main([*arguments, "--preset", "smoke", "--seed", "4"]) == 0
    ((found, world, named),) = asked
    assert (found, named) == (stage, models)
    assert (world.preset.name, world.seed, world.device, world.store.root) == ("smoke", 4, "cpu", tmp_path / "chosen")


def test_the_command_line_refuses_other_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distributed.main(["erase"])
    assert "invalid choice: 'erase'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nobody", "base", "pairs/fresh", "1.5", "purified/2", "keys/0"])
def test_the_command_line_refuses_what_is_no_fine_tuned_model(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distributed.main(["tune", "--preset", "smoke", "--model", name])
    assert "--model: " in capsys.readouterr().err
