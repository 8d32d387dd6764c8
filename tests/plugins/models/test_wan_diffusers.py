"""The Wan adapter against the model that diffusers builds: the naming and the shapes are its state dict's."""

from __future__ import annotations

import warnings

import pytest
import torch

from converter_core.api.contexts import SourceTensors
from converter_core.api.tensors import spec_of
from converter_core.api.values import TensorSpec
from converter_core.errors import Refused
from converter_plugins.models.wan_dit import VARIANTS, Structure, WanDit

wan = WanDit()

CASES = {
    "t2v": ({}, Structure(dim=48, ffn_dim=80, num_layers=3, in_dim=16, text_dim=56, freq_dim=32)),
    "i2v": (
        {"image_dim": 40, "added_kv_proj_dim": 48, "in_channels": 36},
        Structure(dim=48, ffn_dim=80, num_layers=3, in_dim=36, text_dim=56, freq_dim=32, image_dim=40, image=True),
    ),
    "flf2v": (
        {"image_dim": 40, "added_kv_proj_dim": 48, "in_channels": 36, "pos_embed_seq_len": 22},
        Structure(
            dim=48,
            ffn_dim=80,
            num_layers=3,
            in_dim=36,
            text_dim=56,
            freq_dim=32,
            image_dim=40,
            image_tokens=22,
            image=True,
            flf=True,
        ),
    ),
}


@pytest.fixture(scope="module")
def models():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers and what it imports warn of is not ours
        diffusers = pytest.importorskip("diffusers")
        with torch.device("meta"):
            return {
                case: diffusers.WanTransformer3DModel(
                    num_attention_heads=2,
                    attention_head_dim=24,
                    text_dim=56,
                    freq_dim=32,
                    ffn_dim=80,
                    num_layers=3,
                    **options,
                )
                for case, (options, _) in CASES.items()
            }


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_those_of_the_state_dict(models, case):
    theirs = {key: spec_of(tensor) for key, tensor in models[case].state_dict().items()}
    inventory = CASES[case][1].inventory("F32")
    assert {wan.rename(name, "diffusers"): spec for name, spec in inventory.items()} == theirs
    assert len(theirs) == len(inventory)
    back = {weight.sources["weight"].key: weight.name for weight in wan.weights(theirs)}
    assert {back[key]: spec for key, spec in theirs.items()} == inventory
    assert {key: wan.rename(name, "diffusers") for key, name in back.items()} == {key: key for key in theirs}


@pytest.mark.parametrize("case", CASES)
def test_naming_is_that_of_diffusers_own_conversion(models, case):
    # which q is which: the shapes above cannot tell
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    # their single-file loader forgets the position embedding; the state dict above has it
    names = [name for name in CASES[case][1].inventory() if name != "img_emb.emb_pos"]
    theirs = convert_wan_transformer_to_diffusers({name: name for name in names})
    assert {wan.rename(name, "diffusers"): name for name in names} == theirs


@pytest.mark.parametrize("case", CASES)
def test_accepted_as_they_are(models, case):
    theirs = {key: spec_of(tensor) for key, tensor in models[case].state_dict().items()}
    assert wan.recognise(theirs) == "unknown"
    assert list(wan.problems(theirs)) == []
    assert not [weight.name for weight in wan.weights(theirs) if weight.kind == "extra"]
    (problem,) = wan.problems(theirs | {"scale_shift_table": TensorSpec("F32", (1, 2, 47))})
    assert problem == "scale_shift_table has the shape [1, 2, 47], expected [1, 2, 48]"


@pytest.mark.parametrize("case", CASES)
def test_config_agrees_with_the_tensors(models, case):
    config = wan.config(SourceTensors({}, config=dict(models[case].config)), "original")
    facts = wan.describe({key: spec_of(tensor) for key, tensor in models[case].state_dict().items()})
    assert config["model_type"] == case
    assert config["num_heads"] == 2
    assert config["text_len"] == 512
    for key in ("dim", "ffn_dim", "num_layers", "in_dim", "out_dim", "freq_dim"):
        assert config[key] == facts[key]


@pytest.mark.parametrize("case", CASES)
def test_config_of_diffusers_is_made_of_the_tensors(models, case):
    structure = CASES[case][1]
    made = wan.config(SourceTensors(structure.inventory(), config={"num_heads": 2}), "diffusers")
    theirs = {key: value for key, value in models[case].config.items() if key[0] != "_"}
    assert {key: value for key, value in made.items() if key[0] != "_"} == {**theirs, "patch_size": [1, 2, 2]}
    assert made["_class_name"] == "WanTransformer3DModel"


@pytest.mark.parametrize(("variant", "layers"), [("VACE-1.3B", range(0, 30, 2)), ("VACE-14B", range(0, 40, 5))])
def test_config_of_vace(variant, layers):
    made = wan.config(SourceTensors(VARIANTS[variant].inventory()), "diffusers")
    assert made["_class_name"] == "WanVACETransformer3DModel"
    assert made["vace_layers"] == list(layers)
    assert made["vace_in_channels"] == 96


def test_a_config_that_lies_about_the_heads():
    tensors = VARIANTS["T2V-1.3B"].inventory()
    for lie in (7, "many", 0, None):
        made = wan.config(SourceTensors(tensors, config={"num_heads": lie, "dim": 1, "eps": "small"}), "diffusers")
        assert (made["num_attention_heads"], made["attention_head_dim"], made["eps"]) == (12, 128, 1e-6)


@pytest.mark.parametrize("variant", ["Animate-14B", "S2V-14B"])
def test_models_whose_diffusers_names_are_not_known(variant):
    with pytest.raises(Refused, match="diffusers names of Wan Animate and S2V are not known here"):
        wan.config(SourceTensors(VARIANTS[variant].inventory()), "diffusers")
