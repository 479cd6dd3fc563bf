"""The weights of a SmolVLA, taken from lerobot's modules and joined where one product can do for several.

Letters in the shapes below: `d` width of the language model, `x` width of the action expert, `h` heads, `k` key/value
heads, `e` width of a head, `f` width of a feed-forward layer, `a` the model's action width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agent.inference.engines.arithmetic import Arithmetic, Dense, Float32, Linear


def obstacle(policy: Any) -> str | None:
    """Why the shorter way does not lead through this policy; None when it does."""
    config = policy.config
    if config.type != "smolvla":
        return f"it knows SmolVLA only, not {config.type}"
    expert = policy.model.vlm_with_expert
    own_layers = expert.num_expert_layers == expert.num_vlm_layers
    size = config.resize_imgs_with_padding
    reasons = {
        "its action expert does not attend to the language model layer by layer": "cross" not in config.attention_mode,
        "its action expert has fewer layers than its language model": not own_layers,
        "its pictures are not brought to one square size": size is None or size[0] != size[1],
        "it was made for the joints of an Aloha arm": config.adapt_to_pi_aloha,
        "it pads what it sees to a fixed length": config.prefix_length > 0,
    }
    return next((reason for reason, true in reasons.items() if true), None)


@dataclass(frozen=True)
class Heads:
    """How attention is divided: `h` queries share `k` keys and values of width `e`."""

    queries: int
    keys: int
    width: int


@dataclass(frozen=True)
class VisionLayer:
    norm_in: Tensor  # (2, v): scale and shift
    qkv: Linear  # v -> 3 v
    out: Linear  # v -> v
    norm_ff: Tensor  # (2, v)
    up: Linear  # v -> f
    down: Linear  # f -> v


@dataclass(frozen=True)
class Vision:
    patches: Tensor  # (v, 3, p, p)
    patches_bias: Tensor  # (v,)
    positions: Tensor  # (patches, v)
    layers: Sequence[VisionLayer]
    norm_out: Tensor  # (2, v)
    project: Linear  # v s s -> d
    heads: int
    epsilon: float
    shrink: int  # s: so many patches a side become one token
    size: int  # pixels a side
    attention: torch.dtype


@dataclass(frozen=True)
class Layer:
    """A layer of the language model or of the expert, whose width is `w`."""

    norm_in: Tensor  # (w,)
    qkv: Linear  # w -> (h + 2 k) e
    out: Linear  # h e -> w
    norm_ff: Tensor  # (w,)
    gate_up: Linear  # w -> 2 f
    down: Linear  # f -> w


@dataclass(frozen=True)
class CrossLayer:
    """A layer of the expert that attends to the prefix only. Its own keys and values are computed with the prefix."""

    norm_in: Tensor  # (x,)
    query: Linear  # x -> h e
    out: Linear  # h e -> x
    norm_ff: Tensor  # (x,)
    gate_up: Linear  # x -> 2 f
    down: Linear  # f -> x
    memory_key: Linear  # k e of the language model -> k e
    memory_value: Linear  # k e of the language model -> k e


@dataclass(frozen=True)
class Prefix:
    words: Tensor  # (vocabulary, d)
    around_image: tuple[Tensor, Tensor]  # (n, d) before and after each picture; empty unless trained so
    state: Linear  # state width -> d
    layers: Sequence[Layer]  # all but the last
    last_norm: Tensor  # (d,)
    last_kv: Linear  # d -> 2 k e: nothing else of the last layer is ever looked at
    heads: Heads
    epsilon: float
    attention: torch.dtype


@dataclass(frozen=True)
class Expert:
    action_in: Linear  # a -> x
    time_in: Tensor  # (x, 2 x): left half for the action, right half for the time
    time_in_bias: Tensor  # (x,)
    time_out: Linear  # x -> x
    layers: Sequence[Layer | CrossLayer]
    norm_out: Tensor  # (x,)
    action_out: Linear  # x -> a
    heads: Heads
    epsilon: float
    attention: torch.dtype


def vision(policy: Any, arithmetic: Arithmetic) -> Vision:
    """Of the vision tower and the connector behind it."""
    model = policy.model.vlm_with_expert.get_vlm_model()
    tower, connector = model.vision_model, model.connector

    def layer(source: Any) -> VisionLayer:
        attention = source.self_attn
        return VisionLayer(
            norm_in=_norm(source.layer_norm1),
            qkv=_join(arithmetic, attention.q_proj, attention.k_proj, attention.v_proj),
            out=_join(arithmetic, attention.out_proj),
            norm_ff=_norm(source.layer_norm2),
            up=_join(arithmetic, source.mlp.fc1),
            down=_join(arithmetic, source.mlp.fc2),
        )

    size = policy.config.resize_imgs_with_padding[0]
    return Vision(
        patches=_plain(tower.embeddings.patch_embedding.weight),
        patches_bias=_plain(tower.embeddings.patch_embedding.bias),
        positions=_positions(tower, size),
        layers=[layer(source) for source in tower.encoder.layers],
        norm_out=_norm(tower.post_layernorm),
        project=_join(arithmetic, connector.modality_projection.proj),
        heads=tower.config.num_attention_heads,
        epsilon=tower.config.layer_norm_eps,
        shrink=connector.scale_factor,
        size=size,
        attention=arithmetic.attention,
    )


def prefix(policy: Any, arithmetic: Arithmetic) -> Prefix:
    """Of the language model, as far as anything looks at it."""
    flow = policy.model
    text = flow.vlm_with_expert.get_vlm_model().text_model
    words = _plain(text.get_input_embeddings().weight)
    *layers, last = text.layers
    around: tuple[Tensor, Tensor] = (words[:0], words[:0])
    if flow.add_image_special_tokens:
        around = (words[flow.global_image_start_token], words[flow.image_end_token])
    return Prefix(
        words=words,
        around_image=around,
        state=Dense(_plain(flow.state_proj.weight), _plain(flow.state_proj.bias), torch.float32),
        layers=[_layer(source, arithmetic) for source in layers],
        last_norm=_plain(last.input_layernorm.weight),
        last_kv=_join(arithmetic, last.self_attn.k_proj, last.self_attn.v_proj),
        heads=_heads(policy),
        epsilon=text.config.rms_norm_eps,
        attention=arithmetic.attention,
    )


def expert(policy: Any, arithmetic: Arithmetic) -> Expert:
    """Of the action expert. What leads into and out of it stays float32, as in lerobot: it is small."""
    flow = policy.model
    model = flow.vlm_with_expert
    every = model.self_attn_every_n_layers

    def layer(index: int, source: Any) -> Layer | CrossLayer:
        if every > 0 and index % every == 0:
            return _layer(source, arithmetic)
        attention = source.self_attn
        return CrossLayer(
            norm_in=_plain(source.input_layernorm.weight),
            query=_join(arithmetic, attention.q_proj),
            out=_join(arithmetic, attention.o_proj),
            norm_ff=_plain(source.post_attention_layernorm.weight),
            gate_up=_join(arithmetic, source.mlp.gate_proj, source.mlp.up_proj),
            down=_join(arithmetic, source.mlp.down_proj),
            memory_key=_join(arithmetic, attention.k_proj),
            memory_value=_join(arithmetic, attention.v_proj),
        )

    plain = Float32()
    return Expert(
        action_in=_join(plain, flow.action_in_proj),
        time_in=_plain(flow.action_time_mlp_in.weight),
        time_in_bias=_plain(flow.action_time_mlp_in.bias),
        time_out=_join(plain, flow.action_time_mlp_out),
        layers=[layer(index, source) for index, source in enumerate(model.lm_expert.layers)],
        norm_out=_plain(model.lm_expert.norm.weight),
        action_out=_join(plain, flow.action_out_proj),
        heads=_heads(policy),
        epsilon=model.lm_expert.config.rms_norm_eps,
        attention=arithmetic.attention,
    )


def _layer(source: Any, arithmetic: Arithmetic) -> Layer:
    attention = source.self_attn
    return Layer(
        norm_in=_plain(source.input_layernorm.weight),
        qkv=_join(arithmetic, attention.q_proj, attention.k_proj, attention.v_proj),
        out=_join(arithmetic, attention.o_proj),
        norm_ff=_plain(source.post_attention_layernorm.weight),
        gate_up=_join(arithmetic, source.mlp.gate_proj, source.mlp.up_proj),
        down=_join(arithmetic, source.mlp.down_proj),
    )


def _heads(policy: Any) -> Heads:
    model = policy.model.vlm_with_expert
    return Heads(model.num_attention_heads, model.num_key_value_heads, model.config.text_config.head_dim)


def _join(arithmetic: Arithmetic, *modules: Any) -> Linear:
    """Several `nn.Linear` of the same input as one: their outputs side by side."""
    weight = torch.cat([_plain(module.weight) for module in modules]) if len(modules) > 1 else _plain(modules[0].weight)
    biases = [module.bias for module in modules]
    if all(bias is None for bias in biases):
        return arithmetic.linear(weight)
    filled = [
        torch.zeros(len(module.weight), device=module.weight.device) if bias is None else _plain(bias)
        for module, bias in zip(modules, biases, strict=True)
    ]
    return arithmetic.linear(weight, torch.cat(filled))


def _norm(module: Any) -> Tensor:
    return torch.stack([_plain(module.weight), _plain(module.bias)])


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float()


def _positions(tower: Any, size: int) -> Tensor:
    """The position embeddings of a whole picture, (patches, v), as the tower itself looks them up.

    It finds the index of a patch by comparing fractions, which float32 does not always round to 0, 1, 2, ...
    """
    found: list[Tensor] = []
    keep: Callable[..., None] = lambda _module, _inputs, output: found.append(output)  # noqa: E731
    patches = size // tower.config.patch_size
    weight = tower.embeddings.patch_embedding.weight
    hook = tower.embeddings.position_embedding.register_forward_hook(keep)
    try:
        with torch.no_grad():
            tower.embeddings(
                pixel_values=torch.zeros(1, 3, size, size, dtype=weight.dtype, device=weight.device),
                patch_attention_mask=torch.ones(1, patches, patches, dtype=torch.bool, device=weight.device),
            )
    finally:
        hook.remove()
    return _plain(found[0][0])
