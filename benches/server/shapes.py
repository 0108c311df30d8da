"""Random weights of Llama-3.2-1B's shapes in 4 bits, for the server's load: `shapes.py FOLDER` writes `FOLDER/mlx`, a checkpoint, and
`FOLDER/llama.gguf` (Q4_0) for llama.cpp. Both have the same vocabulary, of bytes and numbers. Needs mlx, gguf, numpy and tokenizers.
"""

import json
import sys
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HIDDEN, HEADS, KV_HEADS, LAYERS, INNER, VOCAB, CONTEXT = 2048, 32, 8, 16, 8192, 128256, 8192
HEAD = HIDDEN // HEADS
THETA, EPSILON = 500000.0, 1e-5
LINEAR = {  # name here, name in a GGUF, outputs, inputs
    "self_attn.q_proj": ("attn_q", HIDDEN, HIDDEN),
    "self_attn.k_proj": ("attn_k", KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": ("attn_v", KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": ("attn_output", HIDDEN, HIDDEN),
    "mlp.gate_proj": ("ffn_gate", INNER, HIDDEN),
    "mlp.up_proj": ("ffn_up", INNER, HIDDEN),
    "mlp.down_proj": ("ffn_down", HIDDEN, INNER),
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = BYTES + [f"<{i}>" for i in range(VOCAB - len(BYTES))]


def checkpoint(folder):
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}

    def linear(name, outputs, inputs):
        weights[f"{name}.weight"] = mx.random.randint(0, 2**31 - 1, (outputs, inputs // 8)).astype(mx.uint32)
        weights[f"{name}.scales"] = (mx.random.uniform(0.5, 1.5, (outputs, inputs // 64)) * 0.005).astype(mx.bfloat16)
        weights[f"{name}.biases"] = (mx.random.uniform(-1.2, -0.8, (outputs, inputs // 64)) * 0.04).astype(mx.bfloat16)

    linear("model.embed_tokens", VOCAB, HIDDEN)
    norms = [f"model.layers.{i}.{norm}" for i in range(LAYERS) for norm in NORMS]
    for norm in ["model.norm", *norms]:
        weights[f"{norm}.weight"] = mx.ones((HIDDEN,), dtype=mx.bfloat16)
    for i in range(LAYERS):
        for name, (_, outputs, inputs) in LINEAR.items():
            linear(f"model.layers.{i}.{name}", outputs, inputs)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_hidden_layers": LAYERS,
        "rms_norm_eps": EPSILON, "rope_theta": THETA, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "quantization": {"group_size": 64, "bits": 4},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")


def peer(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCAB)
    writer.add_token_merges(["a a"])  # which it must have
    random = np.random.default_rng(0)

    def linear(name, outputs, inputs):
        blocks = np.empty((outputs * inputs // 32, 18), np.uint8)
        blocks[:, :2] = np.full((len(blocks), 1), 0.005, np.float16).view(np.uint8)
        blocks[:, 2:] = random.integers(0, 256, (len(blocks), 16), np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(outputs, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    linear("token_embd", VOCAB, HIDDEN)
    norms = [f"blk.{i}.{norm}" for i in range(LAYERS) for norm in NORMS.values()]
    for norm in ["output_norm", *norms]:
        writer.add_tensor(f"{norm}.weight", np.ones(HIDDEN, np.float32))
    for i in range(LAYERS):
        for name, outputs, inputs in LINEAR.values():
            linear(f"blk.{i}.{name}", outputs, inputs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


folder = Path(sys.argv[1])
checkpoint(folder / "mlx")
peer(folder / "llama.gguf")
