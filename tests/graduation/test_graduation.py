"""The graduation: pieces checked and named, losses equal to the package's, an adapter that opens elsewhere."""

from types import SimpleNamespace

import pytest
import torch
from tiny import pairs, tiny_model, tiny_tokenizer

from qlora_lab.checks import EXERCISES, check, function_name, kept
from qlora_lab.graduation import PIECES, WrongPiece, gather
from qlora_lab.graduation.fine_tune import PiecesLinear, Recipe, answering, build, fine_tune
from qlora_lab.graduation.proof import TOLERANCE, Graduation, save
from qlora_lab.models import load_adapter
from qlora_lab.qlora import QLoRALinear, quantize_model
from qlora_lab.training.loop import finetune

RECIPE = Recipe(steps=6, batch_size=3, accumulation=2, rank=4, alpha=8)
GRADED = [exercise for exercise in PIECES if EXERCISES[exercise].misconceptions]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv(kept.PLACE, str(tmp_path / "pieces"))
    return tmp_path / "pieces"


def test_without_anything_written_all_are_finished(mine):
    found, own = gather()
    assert not any(own.values()) and set(vars(found)) == {function_name(exercise) for exercise in PIECES}


@pytest.mark.parametrize("exercise", GRADED)
def test_a_wrong_piece_is_refused_by_its_name(mine, exercise):
    wrong = EXERCISES[exercise].with_misconception(EXERCISES[exercise].misconceptions[0])
    with pytest.raises(WrongPiece, match=f"the piece {exercise} is refused") as error:
        gather({exercise: wrong})
    assert EXERCISES[exercise].misconceptions[0].meaning[:20] in str(error.value)


def test_a_kept_piece_that_was_spoiled_is_refused(mine):
    mine.mkdir()
    (mine / "pack_nibbles.py").write_text("def pack_nibbles(codes):\n    return codes\n")
    with pytest.raises(WrongPiece, match="the piece pack-nibbles is refused"):
        gather()
    (mine / "pack_nibbles.py").write_text("def pack_nibbles(codes:\n")
    with pytest.raises(WrongPiece, match=r"pack-nibbles: .*SyntaxError"):
        gather()


def test_the_finished_version_in_the_place_of_an_answer_is_refused(mine, capsys):
    """`check` gives it back for a wrong answer; it does not pass for the reader's."""
    stand_in = check("pack-nibbles", lambda codes: codes)
    with pytest.raises(WrongPiece, match="pack-nibbles"):
        gather({"pack-nibbles": stand_in})


def test_what_is_no_piece(mine):
    with pytest.raises(ValueError, match="'decode' is no piece of the graduation"):
        gather({"decode": print})


@pytest.fixture(scope="module")
def trained():
    """The tiny model by the finished pieces, and by the package from the same A."""
    tokenizer, examples, by_pieces = tiny_tokenizer(), pairs(24), gather()[0]
    model = tiny_model()
    layers = build(model, by_pieces, RECIPE)
    theirs = quantize_model(tiny_model(), rank=RECIPE.rank, alpha=RECIPE.alpha)
    with torch.no_grad():
        for path, layer in layers.items():
            theirs.get_submodule(path).lora_A.copy_(layer.a)
    losses = fine_tune(model, layers, tokenizer, examples, by_pieces, RECIPE)
    result = finetune(theirs, tokenizer, examples, **RECIPE.settings)
    return SimpleNamespace(model=model, layers=layers, theirs=theirs, losses=losses, records=result.records)


def test_the_losses_are_the_packages(trained):
    expected = [record.loss for record in trained.records]
    assert len(trained.losses) == RECIPE.steps and trained.losses[-1] < trained.losses[0]
    torch.testing.assert_close(trained.losses, expected, rtol=TOLERANCE / 4, atol=0)


def test_every_target_is_in_four_bits_and_only_adapters_are_trained(trained):
    named = [path for path, layer in trained.theirs.named_modules() if isinstance(layer, QLoRALinear)]
    assert list(trained.layers) == named
    for path, layer in trained.layers.items():
        assert isinstance(trained.model.get_submodule(path), PiecesLinear)
        assert layer.packed.dtype == torch.uint8 and layer.scale_codes.dtype == torch.uint8
        decoded, other = layer.decode(), trained.theirs.get_submodule(path).base_weight()
        off = (decoded - other).abs() > 1e-5 * other.abs().max()
        assert off.float().mean() < 0.02  # scales whose 8-bit code the package, as bitsandbytes, looks up in bins
        torch.testing.assert_close(decoded, other, atol=0.02, rtol=0)
    assert {name.rpartition(".")[2] for name, p in trained.model.named_parameters() if p.requires_grad} == {"a", "b"}


def test_while_it_answers_weights_stay_decoded(trained):
    layer = next(iter(trained.layers.values()))
    with answering(trained.layers):
        assert layer.decode() is layer.decode()
    assert layer.decoded is None and layer.decode() is not layer.decode()


def test_the_adapter_opens_in_the_package(trained, tmp_path):
    folder = save(trained.layers, RECIPE, tmp_path / "adapter")
    other = load_adapter(quantize_model(tiny_model(), rank=RECIPE.rank, alpha=RECIPE.alpha), folder)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(other(ids).logits, trained.model(ids).logits, atol=0.02, rtol=0.02)


def test_merged_it_says_the_same(trained):
    ids = torch.arange(3, 40)[None]
    model = tiny_model()
    for path, layer in trained.layers.items():
        gather()[0].replace_module(model, path, layer.merged())
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, trained.model(ids).logits, atol=1e-3, rtol=1e-3)


def test_what_is_told():
    own = dict.fromkeys(PIECES, True)
    good = Graduation(own, [2.0, 1.0], [2.001, 1.0], 8, 0, 5, 8, 8, None)
    assert good.passed and "yes, by pieces of your own alone" in str(good)
    assert "1 pieces are still" in str(Graduation(own | {"train": False}, [2.0], [2.0], 8, 0, 5, None, 8, None))
    for other in ({"losses": [2.0, 1.1]}, {"same_in_peft": 7}, {"same_merged": 0}):
        bad = Graduation(**{**vars(good), **other})
        assert not bad.passed and str(bad).endswith("no")
    assert "✓ yours" in good._repr_mimebundle_()["text/html"]
