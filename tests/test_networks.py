"""Networks of transformers, torchvision and timm through the whole library: learn, save, load, accelerate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import nmlearn as nm
from accelerated import packed, sparse_is_fast  # noqa: F401  (a fixture)
from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.lab.models import external
from nmlearn.native import library as native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not native.isa(), reason="the CPU kernels are not built"),
    pytest.mark.filterwarnings("ignore"),  # those of other libraries' own code
]
STEPS = 8

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = LAYERS | SPECIAL | {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
GPT2 = SPECIAL | {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
BOTH = SPECIAL | {"d_model": 32, "decoder_start_token_id": 1}
BOTH |= {f"{part}_{key}": size for part in ("encoder", "decoder") for key, size in (("layers", 1), ("ffn_dim", 64))}
BOTH |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
IMAGE = LAYERS | {"image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1]}
SOUND = {"conv_dim": [16, 16], "conv_stride": [4, 4], "conv_kernel": [8, 4], "num_feat_extract_layers": 2}
SOUND |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0}
# The type of a network of transformers -> what it is called with, and its sizes where the defaults are large.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("input_ids", TEXT),
    "roberta": ("input_ids", TEXT),
    "distilbert": ("input_ids", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "vocab_size": 64}),
    "gpt2": ("input_ids", GPT2),
    "llama": ("input_ids", TEXT),
    "mistral": ("input_ids", TEXT),
    "mixtral": ("input_ids", TEXT | {"num_local_experts": 4}),
    "gpt_oss": ("input_ids", TEXT | {"num_local_experts": 4}),
    "jetmoe": ("input_ids", TEXT | {"num_local_experts": 4, "kv_channels": 16}),
    "mamba": ("input_ids", SPECIAL | {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}),
    "t5": ("input_ids decoder_input_ids", SPECIAL | {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2}),
    "bart": ("input_ids decoder_input_ids", BOTH),
    "whisper": (
        "input_features decoder_input_ids",
        BOTH | {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 16},
    ),
    "wav2vec2": ("input_values", LAYERS | SOUND),
    "vit": ("pixel_values", IMAGE),
    "deit": ("pixel_values", IMAGE),
    "swin": (
        "pixel_values",
        {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    ),
    "segformer": (
        "pixel_values",
        STAGES | {"num_encoder_blocks": 2, "num_attention_heads": [1, 2], "sr_ratios": [2, 1], "mlp_ratios": [2, 2]},
    ),
    "convnext": ("pixel_values", STAGES | {"num_stages": 2}),
    "resnet": ("pixel_values", STAGES | {"embedding_size": 16, "layer_type": "basic"}),
    "mobilenet_v1": ("pixel_values", {"depth_multiplier": 0.25}),
    "mobilenet_v2": ("pixel_values", {"depth_multiplier": 0.25}),
    "efficientnet": ("pixel_values", {"width_coefficient": 0.5, "depth_coefficient": 0.3, "hidden_dim": 640}),
    "clip": ("input_ids pixel_values", {"text_config": TEXT, "vision_config": IMAGE}),
    "bit": ("pixel_values", STAGES | {"embedding_size": 32, "num_groups": 8}),
    "vit_mae": ("pixel_values", IMAGE),
}
TORCHVISION = (
    *("resnet18", "resnext50_32x4d", "regnet_y_400mf", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5"),
    *("shufflenet_v2_x0_5", "squeezenet1_1", "efficientnet_b0", "densenet121", "swin_t", "swin_v2_t"),
    *("convnext_tiny", "googlenet", "inception_v3"),
)
TIMM = (
    *("test_vit", "test_resnet", "test_convnext", "test_efficientnet", "test_byobnet", "test_nfnet", "test_mambaout"),
    *("dla34", "mobilevit_xxs", "ghostnet_050", "edgenext_xx_small", "repvgg_a0", "poolformer_s12", "regnetx_002"),
    "hgnetv2_b0",
)
OPTIONS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False, "aux_logits": False}}
REFUSED = {
    "transformers:bit": "the plan has no sparse weight",  # all its convolutions standardize their weight
    "transformers:vit_mae": "an output differs by up to",  # it draws its mask at every call, in evaluation too
}
DENSE = {  # learned and stored, and then not replaced
    "transformers:gpt2": "its layers are Conv1D",
    "transformers:efficientnet": "its convolutions have padding='same'",
}
NAMES = [
    *(f"transformers:{name}" for name in TRANSFORMERS),
    *(f"torchvision:{name}" for name in TORCHVISION),
    *(f"timm:{name}" for name in TIMM),
]


def network(library: str, name: str) -> tuple[Callable[[], nn.Module], Any]:
    """What builds a network with random weights, and an input for it."""
    try:
        package = external.imported(library)
    except ConfigError as error:
        pytest.skip(f"needs the optional package {library}: {error.wrong}")
    if library == "torchvision":
        build = package.models.get_model
        return lambda: build(name, num_classes=16, **OPTIONS.get(name, {})), torch.randn(2, 3, 96, 96)
    if library == "timm":
        size = 160 if name.startswith("test_") else 64
        return lambda: package.create_model(name, num_classes=16), torch.randn(2, 3, size, size)
    called, sizes = TRANSFORMERS[name]
    inputs = {
        "input_ids": torch.randint(3, 64, (2, 8)),
        "decoder_input_ids": torch.randint(3, 64, (2, 4)),
        "input_features": torch.randn(2, 16, 40),
        "input_values": torch.randn(2, 800),
        "pixel_values": torch.randn(2, 3, 32, 32),
    }
    config = package.AutoConfig.for_model(name, **copy.deepcopy(sizes))
    return lambda: package.AutoModel.from_config(copy.deepcopy(config)), {key: inputs[key] for key in called.split()}


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All numbers that a network returns."""
    leaves = tree_leaves(model(**inputs) if isinstance(inputs, dict) else model(inputs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def learned(model: nn.Module, inputs: Any) -> nm.Sparsifier:
    """A network after a few steps towards no goal, finalized."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    sparsifier = nm.Sparsifier(model.train(), nm.LBC("2:4", end=0.5)).attach(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(output.square().mean() for output in outputs(model, inputs) if output.requires_grad).backward()
        optimizer.step()
    sparsifier.finalize()
    model.eval()
    return sparsifier


@torch.no_grad()
def same(model: nn.Module, expected: list[Tensor], inputs: Any, tolerance: float) -> None:
    for a, b in zip(outputs(model, inputs), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_a_network(name: str, tmp_path: Path) -> None:
    build, inputs = network(*name.split(":"))
    with pytest.raises(NMLearnError, match=REFUSED[name]) if name in REFUSED else nullcontext():
        model = build()
        plan = learned(model, inputs).plan
        with torch.no_grad():
            expected = outputs(model, inputs)
        nm.save(model, tmp_path / "m.safetensors", expect=plan)
        again = build().eval()
        nm.load(tmp_path / "m.safetensors", again)
        if name not in REFUSED:
            same(again, expected, inputs, 0)
        print(nm.accelerate(again, inputs, cache=None))
        assert bool(packed(again)) == (name not in DENSE)
        same(again, expected, inputs, 1e-5)
