"""Small GGUF and ONNX files of the layout that the wheels' files have, and transformers' models that they hold."""

import torch

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
"""Two commits of a repository in the hub cache; COMMIT is the one of its branch main."""

SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}
GRID = 37
EXPORTED_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
"""Names of transformers 5 and those of transformers 4, from which the wheel's file was exported."""


def fill(model, seed=5):
    """Gives every parameter a value of its own, norms and layer scales included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make_llama():
    from transformers import AutoModelForCausalLM, LlamaConfig

    return fill(AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)))


def byte_tokens():
    """The tokens of a byte-level vocabulary: three special ones, all bytes as GPT-2 writes them, one merge."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "Ġa"]


def write_gguf(path, model):
    """Writes a Llama model with a byte-level tokenizer; GGUF interleaves the halves of each head of query and key."""
    import gguf

    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.": "blk.",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_rope_dimension_count(SIZES["hidden_size"] // SIZES["num_attention_heads"])
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(byte_tokens())
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 257)
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        heads = SIZES["num_attention_heads"] if "attn_q" in name else SIZES["num_key_value_heads"]
        if "attn_q" in name or "attn_k" in name:
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_dinov2():
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=VIT["embed_dim"],
        num_hidden_layers=VIT["depth"],
        num_attention_heads=VIT["num_heads"],
        image_size=14 * GRID,
        patch_size=14,
    )
    return fill(Dinov2Model(config))


def write_onnx(path, model):
    """Writes a Dinov2Model as the exporter does, with a decoder: matrices transposed and under generated names."""
    import onnx
    from onnx import helper, numpy_helper

    tensors, nodes = {"decoder.up.weight": torch.ones(2, 2), "onnx::MatMul_7": torch.ones(3, 3)}, []
    nodes.append(helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["y"], "/decoder/up/MatMul"))
    for name, tensor in model.state_dict().items():
        for now, exported in EXPORTED_NAMES.items():
            name = name.replace(now, exported)
        layer, _, kind = name.rpartition(".")
        if name == "embeddings.position_embeddings":
            tensors["onnx::Concat_1957"], tensors["onnx::Reshape_1962"] = tensor[:, :1], tensor[:, 1:]
            for op, part in (("Concat", "onnx::Concat_1957"), ("Reshape", "onnx::Reshape_1962")):
                nodes.append(helper.make_node(op, ["x", part], ["y"], f"/backbone/embeddings/{op}_1"))
        elif kind == "weight" and tensor.ndim == 2:
            generated = f"onnx::MatMul_{1000 + len(tensors)}"
            tensors[generated] = tensor.T
            node = "/backbone/" + layer.replace(".", "/").replace("layer/", "layer.") + "/MatMul"
            nodes.append(helper.make_node("MatMul", ["x", generated], ["y"], node))
        else:
            tensors[f"backbone.{name}"] = tensor
            nodes.append(helper.make_node("Add", ["x", f"backbone.{name}"], ["y"], f"/backbone/{name}/Add"))
    values = [numpy_helper.from_array(tensor.contiguous().numpy(), name) for name, tensor in tensors.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "main", [], [], values)), path)
