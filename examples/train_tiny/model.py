"""The DeepSeek-V2 architecture for training: small, plain PyTorch, tensor names as in the released checkpoints.

Formulas: DeepSeek-V2 technical report, section 2 and appendix; rotary dimensions lie interleaved, as released.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from start import initialise

CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "torch_dtype": "bfloat16",
    "hidden_size": 128,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1536,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 2.0,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "max_position_embeddings": 4096,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 1024,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "aux_loss_alpha": 0.003,
    "seq_aux": True,
    "pretraining_tp": 1,
    "ep_size": 1,
    "use_cache": True,
    "bos_token_id": 1534,
    "eos_token_id": 1535,
}


def yarn_frequencies(config):
    """Inverse frequencies [rope/2] and the factor of the softmax scale."""
    dim, theta, scaling = config["qk_rope_head_dim"], config["rope_theta"], config["rope_scaling"]
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    plain = theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)

    def turns(rotations):
        return dim * math.log(original / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low = max(math.floor(turns(scaling["beta_fast"])), 0)
    high = min(math.ceil(turns(scaling["beta_slow"])), dim - 1)
    ramp = ((torch.arange(dim // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
    mscale = 0.1 * scaling["mscale_all_dim"] * math.log(factor) + 1
    return plain * (1 - ramp) + plain / factor * ramp, mscale**2


def rotate(x, cos, sin):
    """Turns the interleaved pairs of the last dimension."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.nope, self.rope, self.value = (
            c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"])
        self.latent = c["kv_lora_rank"]
        self.q_a_proj = linear(c["hidden_size"], c["q_lora_rank"])
        self.q_a_layernorm = Norm(c["q_lora_rank"])
        self.q_b_proj = linear(c["q_lora_rank"], self.heads * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = linear(c["hidden_size"], self.latent + self.rope)
        self.kv_a_layernorm = Norm(self.latent)
        self.kv_b_proj = linear(self.latent, self.heads * (self.nope + self.value))
        self.o_proj = linear(self.heads * self.value, c["hidden_size"])
        self.scale = (self.nope + self.rope) ** -0.5 * yarn_frequencies(c)[1]

    def forward(self, x, shapes, cos, sin):
        """x: [tokens, hidden]; `shapes`: (rows, length) of each group of rows that lie in it one after another."""
        tokens = len(x)
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(tokens, self.heads, -1)
        q_nope, q_rope = q.split((self.nope, self.rope), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.latent, self.rope), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(tokens, self.heads, -1)
        k_nope, v = kv.split((self.nope, self.value), -1)
        k_rope = rotate(k_rope[:, None], cos, sin).expand(-1, self.heads, -1)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin)), -1)
        k = torch.cat((k_nope, k_rope), -1)
        # The fast kernel wants values as wide as keys.
        v = F.pad(v, (0, self.rope + self.nope - self.value))
        sizes = [rows * length for rows, length in shapes]
        groups = zip(shapes, q.split(sizes), k.split(sizes), v.split(sizes))
        out = torch.cat([self.attend(shape, *group) for shape, *group in groups])
        return self.o_proj(out[..., : self.value].reshape(tokens, -1))

    def attend(self, shape, *qkv):
        q, k, v = (x.view(*shape, self.heads, -1).transpose(1, 2) for x in qkv)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return out.transpose(1, 2).flatten(0, 1)


class Mlp(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.gate_proj, self.up_proj = linear(hidden, width), linear(hidden, width)
        self.down_proj = linear(width, hidden)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c["n_routed_experts"], c["hidden_size"]))


class Moe(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.top, self.factor = c["num_experts_per_tok"], c["routed_scaling_factor"]
        self.gate = Gate(c)
        self.experts = nn.ModuleList(
            Mlp(c["hidden_size"], c["moe_intermediate_size"]) for _ in range(c["n_routed_experts"]))
        self.shared_experts = Mlp(c["hidden_size"], c["moe_intermediate_size"] * c["n_shared_experts"])

    def forward(self, x):
        """The output, and the balance loss: experts x sum over experts of (share of routes x mean probability)."""
        probabilities = F.linear(x, self.gate.weight).softmax(-1)
        weights, chosen = probabilities.topk(self.top, -1)
        order = chosen.flatten().argsort()
        counts = chosen.flatten().bincount(minlength=len(self.experts))
        tokens = order // self.top
        parts = x[tokens].split(counts.tolist())
        routed = torch.cat([expert(part) for expert, part in zip(self.experts, parts)])
        routed = routed * (weights.flatten()[order] * self.factor)[:, None]
        out = self.shared_experts(x).index_add(0, tokens, routed)
        balance = len(self.experts) * (counts / counts.sum() * probabilities.mean(0)).sum()
        return out, balance, counts


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        self.input_layernorm = Norm(c["hidden_size"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c["hidden_size"])
        dense = index < c["first_k_dense_replace"]
        self.mlp = Mlp(c["hidden_size"], c["intermediate_size"]) if dense else Moe(c)


class Trunk(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, index) for index in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"])


class DeepseekV2(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.model = Trunk(c)
        self.lm_head = linear(c["hidden_size"], c["vocab_size"])
        self.frequencies = yarn_frequencies(c)[0]
        initialise(self)

    def forward(self, tokens, shapes, wanted):
        """Logits [wanted positions, vocabulary], the mean balance loss, and routes per layer and expert.

        `tokens`: groups of rows, flat; `shapes`: the (rows, length) of each; `wanted`: which positions.
        """
        positions = torch.cat([torch.arange(length).repeat(rows) for rows, length in shapes])
        angles = positions[:, None, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        x, balance, routes = self.model.embed_tokens(tokens), [], []
        for layer in self.model.layers:
            x = x + layer.self_attn(layer.input_layernorm(x), shapes, cos, sin)
            out = layer.mlp(layer.post_attention_layernorm(x))
            if isinstance(out, tuple):
                out, loss, counts = out
                balance.append(loss)
                routes.append(counts)
            x = x + out
        return self.lm_head(self.model.norm(x)[wanted]), torch.stack(balance).mean(), torch.stack(routes)
