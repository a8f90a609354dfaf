"""The RAT+ language model: attention whose keys and values first pass a gated recurrence (arXiv 2602.18196).

One set of weights, many patterns: what the heads see is an argument of every call, not a property of the model.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ratplus.config.model import ModelConfig
from ratplus.kernels import block_attention, dilated_attention, gated_scan
from ratplus.model.cache import KVCache
from ratplus.model.cache_chunk import AnyLayer, Chunk, HeldLayer
from ratplus.model.feed_forward import FeedForward
from ratplus.model.given_patterns import check_whole_texts, resolved
from ratplus.model.head_parts import HeadPart, head_parts, heads_in_order
from ratplus.model.rope import attention_scale, rope_tables, rotate
from ratplus.model.state_mixer import StateMixer
from ratplus.pattern import Pattern, PatternMap


class Mixer(nn.Module):
    """Pre-norm temporal mixing with residual: projections, recurrence on k and v, RoPE, attention, output gate."""

    def __init__(self, config: ModelConfig, layer: int = 0):
        super().__init__()
        d = config.d_model
        self.config = config
        self.layer = layer  # random blocks differ by it
        # On the queries alone: keys are un-rotated by their tables later, so those must not scale.
        self.q_scale = attention_scale(config.rope_scaling, config.rope_factor)
        # Blocks of rows in the reference order: o (output gate) and q of as many as the heads have channels, which is
        # d in the paper's models; k, v, g (forget gate) of as many as the heads of keys have.
        wide, narrow = config.query_width, config.key_heads * config.d_head
        self.sizes = [wide] * (1 + config.output_gate) + [narrow] * (2 + config.recurrence)
        self.norm = nn.RMSNorm(d, eps=config.norm_eps)
        self.in_proj = nn.Linear(d, sum(self.sizes), bias=False)
        self.out_proj = nn.Linear(wide, d, bias=config.out_bias)
        # Of some blocks of in_proj only (qkv; g), so parameters of their own rather than the matrix's bias.
        self.bias_rows = config.output_gate * wide, wide + 2 * narrow, config.recurrence * narrow
        self.qkv_bias = nn.Parameter(torch.zeros(wide + 2 * narrow)) if config.qkv_bias else None
        self.gate_bias = nn.Parameter(torch.zeros(narrow)) if config.gate_bias is not None else None
        self.q_norm = nn.RMSNorm(config.d_head, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.d_head, eps=config.norm_eps) if config.qk_norm else None

    def _project(self, x_BTd: Tensor):
        """Gate [B,T,d] (or None) and q, k, v, recurrence logit (or None) as [B,H,T,d_head] views of one product.

        k, v and logit have the heads of keys only: the recurrence never runs on copies.
        """
        z = self.in_proj(self.norm(x_BTd))
        if self.qkv_bias is not None or self.gate_bias is not None:
            z = z + self._in_bias(z.dtype)
        blocks = list(z.split(self.sizes, dim=-1))
        gate = blocks.pop(0) if self.config.output_gate else None
        heads = [b.unflatten(-1, (-1, self.config.d_head)).transpose(1, 2) for b in blocks]
        q, k, v = heads[:3]
        if self.q_norm is not None and self.k_norm is not None:
            # Before the recurrence, which averages keys as the weights were trained to have them; RoPE comes after it.
            # The norms' weights may be of higher precision than the products under autocast.
            q, k = self.q_norm(q).to(q.dtype), self.k_norm(k).to(k.dtype)
        if self.q_scale != 1:
            q = q * self.q_scale
        return gate, q, k, v, heads[3] if self.config.recurrence else None

    def _in_bias(self, dtype: torch.dtype) -> Tensor:
        """What is added to the rows of in_proj: those of q, k and v have a bias, or those of g, or both; o has none."""
        given = None, self.qkv_bias, self.gate_bias
        some = next(bias for bias in given if bias is not None)
        parts = [some.new_zeros(rows) if bias is None else bias for bias, rows in zip(given, self.bias_rows)]
        return torch.cat(parts).to(dtype)

    def _finish(self, x_BTd: Tensor, y_BHTd: Tensor, gate: Tensor | None) -> Tensor:
        y = y_BHTd.transpose(1, 2).flatten(-2)
        if gate is not None:
            y = y * torch.sigmoid(gate)
        return x_BTd + self.out_proj(y)

    def _restart(self, logit: Tensor | None, k: Tensor, v: Tensor, before_B: Tensor | None = None):
        """Gate logit, keys and values such that nothing from before a chunk's first position counts after it.

        All [B, H, T, d], or [B, H, d] for one token; `before_B` tokens were there before (None: none).
        """
        chunk = self.config.recurrence_chunk
        if chunk is None or logit is None:
            return logit, k, v
        if logit.dim() == 3:
            assert before_B is not None
            first = (before_B % chunk == 0)[:, None, None]
        else:
            positions = torch.arange(logit.shape[2], device=logit.device)
            if before_B is not None:
                positions = before_B[:, None, None] + positions
            first = (positions % chunk == 0)[..., None]
        # There h = (1 - g) u, as after a state of zero; the scan itself is told to forget all (g = 0).
        take = torch.sigmoid(-logit.to(torch.promote_types(logit.dtype, torch.float32))).to(k.dtype)
        k, v = (torch.where(first, take * x, x) for x in (k, v))
        return logit.masked_fill(first, -torch.inf), k, v

    def _recur(self, logit, k, v, rope, initial=None):
        """Keys and values after the recurrence, keys rotated; and the final state (None without recurrence)."""
        if logit is None:
            return rotate(k, *_over_heads(rope)), v, None
        return gated_scan(logit, k, v, initial=initial, rope=rope)

    def forward(self, x_BTd: Tensor, row: tuple[Pattern, ...], rope: tuple[Tensor, Tensor]) -> Tensor:
        gate, q, k, v, logit = self._project(x_BTd)
        logit, k, v = self._restart(logit, k, v)
        k, v, _ = self._recur(logit, k, v, rope)
        y = self._attend(rotate(q, *rope), k, v, head_parts(row[:: self.config.group]))
        return self._finish(x_BTd, y, gate)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, parts: tuple[HeadPart, ...]) -> Tensor:
        """Attention [B,H,T,d] of q [B,H,T,d] over k, v [B,H_kv,T,d]; each part of the heads as its patterns say."""
        if len(parts) == 1:
            return self._attend_part(q, k, v, parts[0])
        group, device = q.shape[1] // k.shape[1], q.device
        mixed = [
            self._attend_part(q[:, part.index(device, group)], *(x[:, part.index(device)] for x in (k, v)), part)
            for part in parts
        ]
        return torch.cat(mixed, dim=1).index_select(1, heads_in_order(parts, group, device))

    def _attend_part(self, q: Tensor, k: Tensor, v: Tensor, part: HeadPart) -> Tensor:
        setting = part.static_setting(q.device)
        if part.kind == "static":
            return dilated_attention(q, k, v, *setting)
        assert part.kind == "blocks", part  # `Network.forward` refuses SnapKV, and phases
        return block_attention(q, k, v, *setting, **part.block_setting(self.layer, q.shape[2], q.device))

    def prefill(self, x_BTd: Tensor, layer: AnyLayer, rope: tuple[Tensor, Tensor], chunk: Chunk) -> Tensor:
        """Like forward, but over what `layer` already holds, and storing what it must keep. Right padding is not real.

        `rope` tables are [T, d_head], or [B, T, d_head] where sequences stand at different positions.
        """
        gate, q, k, v, logit = self._project(x_BTd)
        logit, k, v = self._restart(logit, k, v, layer.positions)
        if logit is not None and chunk.real_BT is not None:
            # A gate of exactly 1 holds the state over padding, so the final state is that of the last real token.
            logit = logit.masked_fill(~chunk.real_BT[:, None, :, None], torch.inf)
        k, v, final = self._recur(logit, k, v, rope, initial=layer.state)
        y = layer.attend_chunk(rotate(q, *_over_heads(rope)), k, v, chunk)
        layer.store_chunk(k, v, chunk, final)
        return self._finish(x_BTd, y, gate)

    def step(self, x_B1d: Tensor, layer: AnyLayer, rope: tuple[Tensor, Tensor]) -> Tensor:
        """One token per sequence; `rope` are the full tables [max_len, d_head], read at `layer.positions`."""
        gate, q, k, v, logit = self._project(x_B1d)
        q, k, v = (x[:, :, 0] for x in (q, k, v))
        logit, k, v = self._restart(None if logit is None else logit[:, :, 0], k, v, layer.positions)
        y = layer.step(q, k, v, logit, rope)
        return self._finish(x_B1d, y[:, :, None], gate)


def _over_heads(rope: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Tables [T, d] or [B, T, d], broadcastable to [B, H, T, d]."""
    return tuple(table if table.dim() == 2 else table[:, None] for table in rope)


class Block(nn.Module):
    """A mixer and the feed-forward half; a mixer with a state reads neither the patterns nor the tables it is given."""

    def __init__(self, config: ModelConfig, layer: int = 0):
        super().__init__()
        self.mixer: Mixer | StateMixer = Mixer(config, layer) if config.attends else StateMixer.of(config)
        self.ffn = FeedForward(config)

    def forward(self, x_BTd: Tensor, row: tuple[Pattern, ...], rope: tuple[Tensor, Tensor]) -> Tensor:
        return self.ffn(self.mixer(x_BTd, row, rope))

    # A cache is made from the model's own config, so that its layers are of the kind that the mixers take.

    def prefill(self, x_BTd: Tensor, layer: HeldLayer, rope: tuple[Tensor, Tensor], chunk: Chunk) -> Tensor:
        return self.ffn(self.mixer.prefill(x_BTd, cast("Any", layer), rope, chunk))

    def step(self, x_B1d: Tensor, layer: HeldLayer, rope: tuple[Tensor, Tensor]) -> Tensor:
        return self.ffn(self.mixer.step(x_B1d, cast("Any", layer), rope))


class Network(nn.Module):
    """Decoder-only language model with run-time sparse patterns; `ratplus.model.RATPlus` is this with `generate`.

    Args:
        config: shape of the model; `recurrence=False` gives the attention-only baseline.

    The output head is the embedding, or `head` where `config.tied` is false. Weights start at N(0, 0.02), norms at 1,
    biases at 0, those of forget gates at `config.gate_bias`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._rope: dict[torch.device, tuple[Tensor, Tensor]] = {}
        # Keep only each block's input for the backward pass, and compute the block again there
        # (ratplus.training.blocks).
        self.activation_checkpointing = False
        self.reset_parameters()

    @property
    def blocks(self) -> list[Block]:
        """The blocks, first to last; `layers` is the same as a module."""
        return cast("list[Block]", list(self.layers))

    def reset_parameters(self, seed: int | None = None, std: float = 0.02) -> None:
        """Draw every matrix from N(0, std^2); with a seed, from a CPU generator of its own (same on every device).

        Norms start at 1 and biases at 0, those of forget gates at what the config says.
        """
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, (nn.Linear, nn.Embedding)):
                    if generator is None:
                        module.weight.normal_(0.0, std)
                    else:
                        drawn = torch.empty(module.weight.shape).normal_(0.0, std, generator=generator)
                        module.weight.copy_(drawn)
                    if isinstance(module, nn.Linear) and module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, nn.RMSNorm):
                    module.weight.fill_(1.0)
                elif isinstance(module, Mixer):
                    if module.qkv_bias is not None:
                        module.qkv_bias.zero_()
                    start = self.config.gate_bias
                    if module.gate_bias is not None and start is not None:
                        module.gate_bias.fill_(start)
                elif isinstance(module, StateMixer):
                    module.reset_state_parameters(generator)

    # ---- patterns and tables -----------------------------------------------------------------------------------

    def resolve_patterns(self, patterns: PatternMap | Pattern | None) -> PatternMap:
        """None is dense everywhere; a single Pattern is used everywhere; a PatternMap must fit the model.

        Raises:
            ValueError: as of `ratplus.model.given_patterns.resolved`.
        """
        return resolved(self.config, patterns)

    def rope(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine tables [max_len, d_head], made once per device."""
        device = self.embed.weight.device
        if device not in self._rope:
            # Made once for all calls: tensors of an inference mode could not be used in training later.
            with torch.inference_mode(False):
                positions = torch.arange(self.config.max_len, device=device)
                c = self.config
                self._rope[device] = rope_tables(
                    positions, c.d_head, c.rope_base, c.rope_scaling, c.rope_factor, c.rope_original, c.rope_low,
                    c.rope_high,
                )  # fmt: skip
        return self._rope[device]

    # ---- full forward ------------------------------------------------------------------------------------------

    def forward(self, tokens: Tensor, patterns: PatternMap | Pattern | None = None) -> Tensor:
        """Logits [B, T, vocab] of tokens [B, T]. `patterns` None means dense.

        Raises:
            ValueError: T > max_len, a PatternMap of another shape than the model's, a pattern that depends on where a
                prompt ends (SnapKV, or a selection in one phase alone), or (on a CPU; elsewhere the look
                would stall the device) a token outside the vocabulary.
        """
        patterns = self.resolve_patterns(patterns)
        check_whole_texts(patterns)
        length = tokens.shape[1]
        self.check_length(length)
        self._check_tokens(tokens)
        cosines, sines = self.rope()
        rope = cosines[:length], sines[:length]
        x = self.embed(tokens)
        for block, row in zip(self.blocks, patterns):
            if self.activation_checkpointing and torch.is_grad_enabled():
                # Nothing in a block draws random numbers, so there is no generator's state to keep.
                x = checkpoint(block, x, row, rope, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, row, rope)
        return self.logits_of(x)

    def logits_of(self, x: Tensor) -> Tensor:
        """Logits of what the last block gives."""
        return F.linear(self.norm(x), (self.embed if self.head is None else self.head).weight)

    def check_length(self, length: int) -> None:
        """Raises ValueError if the model can't take so many tokens."""
        if length > self.config.max_len:
            raise ValueError(
                f"sequence of {length} tokens is longer than the model's max_len={self.config.max_len}; "
                "shorten it or build the model with a larger max_len"
            )

    def _check_tokens(self, tokens: Tensor) -> None:
        # A compiler's tensors and those that stand for a shape alone (a subclass of Tensor) have no values to look at.
        if tokens.device.type != "cpu" or torch.compiler.is_compiling() or type(tokens) is not Tensor:
            return
        if not tokens.numel():
            return
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"tokens: id {low if low < 0 else high} is outside the model's vocabulary of {self.config.vocab_size}"
            )

    # ---- decoding ----------------------------------------------------------------------------------------------

    def new_cache(self, batch: int, patterns: PatternMap | Pattern | None, max_len: int) -> KVCache:
        """Empty compact cache for `batch` sequences of at most `max_len` tokens (prompt and continuation)."""
        self.check_length(max_len)
        weight = self.embed.weight
        return KVCache.empty(self.config, self.resolve_patterns(patterns), batch, max_len, weight.device, weight.dtype)

    @torch.no_grad()
    def prefill(self, tokens: Tensor, cache: KVCache, lengths=None, every: bool = False) -> Tensor:
        """Feed a chunk of each sequence; logits [B, vocab] after each sequence's last real token.

        Args:
            tokens: [B, T], right-padded where sequences are shorter than T.
            cache: from `new_cache`; call again with the next chunk to continue.
            lengths: real tokens of each row (list or tensor [B]); None means T for all. A row of length 0 is left
                as it is, and its logits are NaN.
            every: logits [B, T, vocab] after every token instead; those of padding mean nothing.

        Raises:
            ValueError: the cache would overrun, lengths do not fit, or a token is outside the vocabulary.
        """
        batch, width = tokens.shape
        if lengths is not None:
            lengths = lengths.tolist() if isinstance(lengths, Tensor) else [int(n) for n in lengths]
        chunk = cache.chunk(lengths, width, batch)
        cosines, sines = self.rope()
        if chunk.start is not None:
            rope = cosines[chunk.start : chunk.start + width], sines[chunk.start : chunk.start + width]
        else:
            positions_BT = cache.positions[:, None] + torch.arange(width, device=tokens.device)
            positions_BT.clamp_(max=self.config.max_len - 1)
            rope = cosines[positions_BT], sines[positions_BT]
        if chunk.real_BT is not None:
            tokens = tokens.where(chunk.real_BT, 0)
        self._check_tokens(tokens)
        x = self.embed(tokens)
        for block, layer in zip(self.blocks, cache.layers):
            x = block.prefill(x, layer, rope, chunk)
        cache.advance(chunk)
        if every:
            return self.logits_of(x)
        if chunk.real_B is None:
            return self.logits_of(x[:, -1])
        rows = torch.arange(batch, device=tokens.device)
        logits = self.logits_of(x[rows, (chunk.real_B - 1).clamp(min=0)])
        return logits.masked_fill(chunk.real_B[:, None] == 0, torch.nan)

    @torch.no_grad()
    def step(self, token: Tensor, cache: KVCache) -> Tensor:
        """Feed one token [B] per sequence at its own position; logits [B, vocab]. Raises ValueError on overrun."""
        cache.begin_step(token.shape[0])
        self._check_tokens(token)
        logits = self.step_on_device(token, cache)
        cache.count_step()
        return logits

    @torch.no_grad()
    def step_on_device(self, token: Tensor, cache: KVCache) -> Tensor:
        """The device's half of `step`: no look at the host's counters, nothing that waits, so a graph can capture it.

        The caller has checked that there is room, and counts the token on the host (`cache.count_step`).
        """
        rope = self.rope()
        x = self.embed(token[:, None])
        for block, layer in zip(self.blocks, cache.layers):
            x = block.step(x, layer, rope)
        cache.positions += 1
        return self.logits_of(x[:, 0])
