"""A small Llama in PyTorch with the Hugging Face tensor names, and MLX's affine 4-bit arithmetic for its weights."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

GROUP, BITS = 64, 4
CONFIG = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=2048, hidden_size=256,
              intermediate_size=768, num_hidden_layers=7, num_attention_heads=8, num_key_value_heads=4, head_dim=32,
              hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=1024,
              tie_word_embeddings=True, attention_bias=False, mlp_bias=False, bos_token_id=0, eos_token_id=1,
              pad_token_id=5, torch_dtype="bfloat16")


class Norm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config["hidden_size"]))
        self.eps = config["rms_norm_eps"]

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).type_as(x)


def rotate(x, cos, sin):
    """RoPE in the half-split layout."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads, self.dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        width = config["hidden_size"]
        self.q_proj = nn.Linear(width, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, width, bias=False)

    def forward(self, x, cos, sin, past=None, mask=None):
        batch, length, _ = x.shape
        q, k, v = (p(x).view(batch, length, -1, self.dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past is not None:
            if past:
                k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
            past[:] = k, v
        if isinstance(mask, BlockMask):
            out = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        else:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and length > 1)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), MLP(config)
        self.input_layernorm, self.post_attention_layernorm = Norm(config), Norm(config)

    def forward(self, x, cos, sin, past=None, mask=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, past, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = Norm(config)


class Llama(nn.Module):
    """The whole model; its output layer is the embedding, tied."""

    def __init__(self, config):
        super().__init__()
        self.model = Body(config)
        rate = config["rope_theta"] ** (-torch.arange(0, config["head_dim"], 2) / config["head_dim"])
        angle = torch.outer(torch.arange(config["max_position_embeddings"]).float(), rate)
        self.rope = torch.stack((angle.cos(), angle.sin()))
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = (2 * config["num_hidden_layers"]) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                nn.init.normal_(weight, std=0.02 * scale)

    def forward(self, ids, cache=None, mask=None):
        """Logits of all positions, each seeing those before it that `mask` allows. A cache, a list for each layer, is filled by the first call; then one token a call."""
        start = cache[0][0].shape[2] if cache and cache[0] else 0
        cos, sin = self.rope[:, start:start + ids.shape[1]]
        x = self.model.embed_tokens(ids)
        for i, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, cache[i] if cache else None, mask)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


def quantize(groups):
    """MLX's affine quantization of rows of one group each: codes, scales and biases, the latter two as bfloat16."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    flip = low.abs() > high.abs()
    scale = ((high - low) / (2**BITS - 1)).clamp_min(1e-7)
    scale = torch.where(flip, scale, -scale)
    edge = torch.where(flip, low, high)
    zero = (edge / scale).round()
    scale = torch.where(zero != 0, edge / torch.where(zero != 0, zero, 1), scale)
    bias = torch.where(zero != 0, edge, 0)
    codes = ((groups - bias) / scale).round().clamp(0, 2**BITS - 1)
    return codes, scale.bfloat16(), bias.bfloat16()


def rounded(groups):
    """The values that the 4-bit file will hold for these groups."""
    codes, scale, bias = quantize(groups.bfloat16().float())
    return codes * scale.float() + bias.float()


def load(folder, device="cpu"):
    """The full-precision model of a work folder, in float32, and its config."""
    from safetensors.torch import load_file
    config = json.loads((Path(folder) / "config.json").read_text())
    model = Llama(config)
    model.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / "model.safetensors").items()})
    model.rope = model.rope.to(device)
    return model.to(device).eval(), config
