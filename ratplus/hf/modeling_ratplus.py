"""RAT+ for transformers: attention whose keys and values first pass a gated recurrence (arXiv 2602.18196).

`ratplus export --format hf` writes this file beside the weights. It needs torch and transformers (5 or later) alone:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

`sparse_pattern` in config.json says which keys a query sees: `D16-W256-I4` is the last key of every 16, the 256 tokens
before the query, and the first 4 tokens; `stream-W256` has no dilated keys, `D1` is dense. `layers[D1,D64]` and
`heads[D1,D64x2]` give each layer or head its own. The query itself is always seen.

This file is for evaluation and generation wherever transformers is spoken, and is written to be read: what a pattern
hides is masked, so it saves neither time nor memory here. ratplus itself has kernels and caches that do, patterns that
select keys by the query (top-k), and training.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

_LABEL = re.compile(r"(?:D(?P<D>[1-9]\d*)|stream)(?:-W(?P<W>\d+))?(?:-I(?P<I>\d+))?")
_BY_PLACE = re.compile(r"(layers|heads|mixed)\[(.+)\]")


def patterns_of(label, layers, heads):
    """[layers][heads] of (dilation or None, window, sinks) that a label stands for; a shorter list is repeated."""

    def runs(text, most):
        found = []
        for part in text.split(","):
            name, _, count = part.strip().partition("x")
            match = _LABEL.fullmatch(name)
            if match is None or not (count or "1").isdigit():
                raise ValueError(
                    f"sparse_pattern: got {label!r}; this file knows D<dilation> or stream, then -W<window> and "
                    "-I<sinks>, and layers[...], heads[...], mixed[...] of them; for others use ratplus itself"
                )
            dilation = match["D"] and int(match["D"])
            found += [(dilation, int(match["W"] or 0), int(match["I"] or 0))] * min(int(count or 1), most)
        return [found[i % len(found)] for i in range(most)]

    placed = _BY_PLACE.fullmatch(label)
    over, text = placed.groups() if placed else ("heads", label)
    if over == "layers":
        return [[pattern] * heads for pattern in runs(text, layers)]
    rows = [runs(row, heads) for row in (text.split("|") if over == "mixed" else [text])]
    return [rows[i % len(rows)] for i in range(layers)]


class RATPlusConfig(PretrainedConfig):
    """Shape of a RAT+ model in the hub's words; words of its own are `recurrence`, `output_gate`, `sparse_pattern`, and
    `ratplus_...`: whether q, k, v and the output have biases, q and k a norm a head, gates a bias, and the recurrence
    starts anew at every so many tokens."""

    model_type = "ratplus"
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    def __init__(
        self,
        vocab_size=257,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=None,
        head_dim=32,
        intermediate_size=384,
        hidden_act="gelu",
        rms_norm_eps=1e-6,
        max_position_embeddings=4096,
        rope_theta=10000.0,
        rope_scaling=None,
        rope_parameters=None,
        recurrence=True,
        output_gate=True,
        sparse_pattern=None,
        ratplus_recurrence_chunk=None,
        ratplus_qkv_bias=False,
        ratplus_out_bias=False,
        ratplus_qk_norm=False,
        ratplus_gate_bias=None,
        initializer_range=0.02,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **kwargs,
    ):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.head_dim = num_attention_heads, head_dim
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.intermediate_size, self.hidden_act = intermediate_size, hidden_act
        self.rms_norm_eps, self.max_position_embeddings = rms_norm_eps, max_position_embeddings
        self.rope_parameters = {
            "rope_type": "default",
            "rope_theta": rope_theta,
            **(rope_parameters or rope_scaling or {}),
        }
        self.recurrence, self.output_gate = recurrence, output_gate
        self.ratplus_recurrence_chunk = ratplus_recurrence_chunk
        self.ratplus_qkv_bias, self.ratplus_out_bias = ratplus_qkv_bias, ratplus_out_bias
        self.ratplus_qk_norm, self.ratplus_gate_bias = ratplus_qk_norm, ratplus_gate_bias
        self.initializer_range = initializer_range
        self.sparse_pattern = sparse_pattern
        if hidden_act not in ("gelu", "silu"):
            raise ValueError(f"hidden_act: got {hidden_act!r}; allowed: gelu, silu (SwiGLU)")
        patterns_of(sparse_pattern or "D1", num_hidden_layers, num_attention_heads)  # a mistake is told at once
        kwargs.pop("weights_sha256", None)  # of the export: a model that is saved again may have other weights
        kwargs["tie_word_embeddings"] = tie_word_embeddings  # a named parameter of transformers 4 alone
        super().__init__(**kwargs)
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos_token_id, eos_token_id, pad_token_id


# ---- positions ------------------------------------------------------------------------------------------------------


def rope_frequencies(config, device):
    """Radians a position of each pair of channels, float32 [head_dim / 2]."""
    rope, d = config.rope_parameters, config.head_dim
    kind, base = rope.get("rope_type", "default"), rope["rope_theta"]
    frequency = 1.0 / base ** (torch.arange(0, d, 2, dtype=torch.float32, device=device) / d)
    if kind == "default":
        return frequency
    factor = rope["factor"]
    if kind == "linear":
        return frequency / factor
    original = rope["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = original * frequency / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - kept) * frequency / factor + kept * frequency
    if kind == "yarn":
        # Channels that make 32 turns within the trained context keep their angles, those that make none are slowed.
        first, last = (d * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1))
        first, last = max(math.floor(first), 0), min(math.ceil(last), d - 1)
        slowed = ((torch.arange(d // 2, device=device) - first) / max(last - first, 0.001)).clamp(0, 1)
        return frequency * (1 - slowed) + frequency / factor * slowed
    raise ValueError(f"rope_type: got {kind!r}; allowed: default, linear, llama3, yarn")


def query_scale(config):
    """YaRN's temperature, for queries and keys together; 1 without it."""
    rope = config.rope_parameters
    return (0.1 * math.log(rope["factor"]) + 1) ** 2 if rope.get("rope_type") == "yarn" else 1.0


def rotate(x_BHTd, cos, sin):
    """Turn channel i with channel i + d/2, in float32."""
    wide = x_BHTd.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x_BHTd.dtype)


def visible(pattern, positions_BS, real_BS, queries):
    """Mask [B, 1, queries, S]: which of S keys each of the last `queries` positions sees."""
    dilation, window, sinks = pattern
    t, j = positions_BS[:, -queries:, None], positions_BS[:, None, :]
    seen = (t - j <= window) | (j < sinks)
    if dilation is not None:
        seen = seen | ((j + 1) % dilation == 0)
    seen = seen & (j <= t) & real_BS[:, None, :]
    # Padding sees itself, since a row that sees nothing has no softmax. Nobody sees padding.
    own = torch.eye(real_BS.shape[1], dtype=torch.bool, device=seen.device)[-queries:]
    return (seen | (own & ~real_BS[:, -queries:, None]))[:, None]


# ---- the model ------------------------------------------------------------------------------------------------------


def scan(keep, fresh):
    """h_t = keep_t h_{t-1} + fresh_t, [B, H, T, d], in log2 T steps, each of which looks twice as far back."""
    step = 1
    while step < keep.shape[2]:
        fresh = torch.cat((fresh[:, :, :step], fresh[:, :, step:] + keep[:, :, step:] * fresh[:, :, :-step]), dim=2)
        keep = torch.cat((keep[:, :, :step], keep[:, :, step:] * keep[:, :, :-step]), dim=2)
        step *= 2
    return fresh


class RATPlusMixer(nn.Module):
    """Projections, recurrence on keys and values, RoPE, attention, output gate."""

    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        d, wide = config.hidden_size, config.num_attention_heads * config.head_dim
        narrow = config.num_key_value_heads * config.head_dim
        # Rows of in_proj: output gate, q; k, v, forget gate.
        self.sizes = [wide] * (1 + config.output_gate) + [narrow] * (2 + config.recurrence)
        self.norm = nn.RMSNorm(d, eps=config.rms_norm_eps)
        self.in_proj = nn.Linear(d, sum(self.sizes), bias=False)
        self.out_proj = nn.Linear(wide, d, bias=config.ratplus_out_bias)
        self.qkv_bias = nn.Parameter(torch.zeros(wide + 2 * narrow)) if config.ratplus_qkv_bias else None
        start = config.ratplus_gate_bias
        self.gate_bias = None if start is None else nn.Parameter(torch.full((narrow,), float(start)))
        normed = config.ratplus_qk_norm
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps) if normed else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps) if normed else None

    def forward(self, x_BTd, positions_BS, real_BS, rope, mask, cache):
        config, length = self.config, x_BTd.shape[1]
        blocks = list(self.in_proj(self.norm(x_BTd)).split(self.sizes, dim=-1))
        gate = blocks.pop(0) if config.output_gate else None
        if self.qkv_bias is not None:
            sizes = [block.shape[-1] for block in blocks[:3]]
            blocks[:3] = [block + bias for block, bias in zip(blocks, self.qkv_bias.split(sizes))]
        if self.gate_bias is not None:
            blocks[3] = blocks[3] + self.gate_bias
        q, k, v, *logit = (block.unflatten(-1, (-1, config.head_dim)).transpose(1, 2) for block in blocks)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = q * query_scale(config)
        if logit:
            k, v = self.recur(logit[0], k, v, positions_BS[:, -length:], real_BS[:, -length:], cache)
        if cache is not None:
            # Keys are kept before RoPE: the last ones are then the state of the recurrence, so that whatever reorders,
            # repeats or cuts the cache (beams, assisted decoding) does so with the state.
            k, v = cache.update(k, v, self.layer)
        cos, sin = rope
        q, k = rotate(q, cos[:, :, -length:], sin[:, :, -length:]), rotate(k, cos, sin)
        group = config.num_attention_heads // config.num_key_value_heads
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)
        return x_BTd + self.out_proj(y if gate is None else y * torch.sigmoid(gate))

    def recur(self, logit, k, v, positions_BT, real_BT, cache):
        """h_t = g_t h_{t-1} + (1 - g_t) u_t with g = sigmoid(logit), of keys and values alike, in float32."""
        keep, take = torch.sigmoid(logit.float()), torch.sigmoid(-logit.float())
        if self.config.ratplus_recurrence_chunk is not None:
            first = positions_BT % self.config.ratplus_recurrence_chunk == 0
            keep = keep.masked_fill(first[:, None, :, None], 0.0)
        padding = ~real_BT[:, None, :, None]
        keep, take = keep.masked_fill(padding, 1.0), take.masked_fill(padding, 0.0)
        states = []
        held = cache is not None and cache.get_seq_length(self.layer) > 0
        for u, name in ((k, "keys"), (v, "values")):
            fresh = take * u.float()
            if held:
                before = getattr(cache.layers[self.layer], name)[:, :, -1].to(fresh)
                fresh = torch.cat((fresh[:, :, :1] + (keep[:, :, 0] * before)[:, :, None], fresh[:, :, 1:]), dim=2)
            states.append(scan(keep, fresh).to(u.dtype))
        return states


class RATPlusFeedForward(nn.Module):
    """GELU, or SwiGLU (hidden_act silu), whose `up` has the rows of the gate first."""

    def __init__(self, config):
        super().__init__()
        self.gated = config.hidden_act == "silu"
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.up = nn.Linear(config.hidden_size, (1 + self.gated) * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTd):
        z = self.up(self.norm(x_BTd))
        if not self.gated:
            return x_BTd + self.down(F.gelu(z))
        gate, up = z.chunk(2, dim=-1)
        return x_BTd + self.down(F.silu(gate) * up)


class RATPlusBlock(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.mixer = RATPlusMixer(config, layer)
        self.ffn = RATPlusFeedForward(config)

    def forward(self, x_BTd, *what):
        return self.ffn(self.mixer(x_BTd, *what))


class RATPlusForCausalLM(PreTrainedModel, GenerationMixin):
    """The language model. Its output head is the embedding, or `head` where config.json does not tie the two."""

    config_class = RATPlusConfig
    _no_split_modules = ["RATPlusBlock"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(RATPlusBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, RATPlusMixer):
            for bias, start in ((module.qkv_bias, 0.0), (module.gate_bias, self.config.ratplus_gate_bias)):
                if bias is not None and not getattr(bias, "_is_hf_initialized", False):
                    nn.init.constant_(bias, start)

    def get_input_embeddings(self):
        return self.embed

    def set_input_embeddings(self, value):
        self.embed = value

    def get_output_embeddings(self):
        return self.head

    def set_output_embeddings(self, new_embeddings):
        self.head = new_embeddings

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        cache=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits [B, T, vocabulary] of tokens [B, T], and what transformers' models give beside them.

        Positions follow from `attention_mask` [B, held and new tokens]: the first token that is not padding has 0.
        """
        cache = past_key_values if cache is None else cache
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        held = 0 if cache is None else cache.get_seq_length()
        batch, length = x.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones(batch, held + length, dtype=torch.long, device=x.device)
        positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        self._refuse(output_attentions, cache, attention_mask, positions, position_ids, held + length)
        real = attention_mask.bool()
        angle = positions[..., None].float() * rope_frequencies(self.config, x.device)
        angle = torch.cat((angle, angle), dim=-1)[:, None]
        rope = angle.cos(), angle.sin()
        rows = patterns_of(
            self.config.sparse_pattern or "D1", self.config.num_hidden_layers, self.config.num_attention_heads
        )
        masks = {pattern: visible(pattern, positions, real, length) for row in rows for pattern in set(row)}
        seen = []
        for block, row in zip(self.layers, rows):
            seen.append(x)
            mask = masks[row[0]] if len(set(row)) == 1 else torch.cat([masks[pattern] for pattern in row], dim=1)
            x = block(x, positions, real, rope, mask, cache)
        x = self.norm(x)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = F.linear(x[:, keep], (self.embed if self.head is None else self.head).weight)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=(*seen, x) if asked else None)
        if cache is not None:
            # Which of its two names the cache has depends on the version of transformers.
            output["cache" if hasattr(output, "cache") else "past_key_values"] = cache
        return output.to_tuple() if return_dict is False else output

    def _refuse(self, output_attentions, cache, attention_mask, positions, position_ids, tokens):
        """ValueError for what this model would compute otherwise than asked."""
        if output_attentions:
            raise ValueError("output_attentions: attention is computed without its weights here; leave it out")
        if cache is not None and any(type(layer) is not DynamicLayer for layer in cache.layers):
            raise ValueError(
                "cache: the recurrence's state is the last entry of a cache that grows; use the dynamic one "
                "(leave out cache_implementation)"
            )
        if attention_mask.dim() != 2 or attention_mask.shape[1] != tokens:
            raise ValueError(
                f"attention_mask: got shape {list(attention_mask.shape)}; give [batch, {tokens}], one number for each "
                "held and each new token"
            )
        if position_ids is not None:
            new, real = (x[:, -position_ids.shape[-1] :] for x in (positions, attention_mask.bool()))
            if not torch.equal(torch.where(real, position_ids, new), new):
                raise ValueError("position_ids: positions follow from attention_mask here; leave them out")
