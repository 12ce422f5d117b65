"""A Qwen3.5 text model that sleeps: before a full window leaves the attention cache, the blocks make N passes over it.

This file belongs to an exported model and needs torch and transformers 5 only. `AutoModelForCausalLM.from_pretrained(folder,
trust_remote_code=True)` gives `SleepForCausalLM`; without `trust_remote_code` the folder is the plain model, which never sleeps.

The section `sleep` of config.json:
    window            L, tokens of a window
    passes            N, the first pass included; 1: no sleep
    layers            [first, stop]: passes 2..N run blocks first..stop-1
    feedback          what they read: raw (features of the pass before), normed (these through the final norm), embeddings, or gated
    feedback_weight   of gated: embeddings plus this times the normed features
    trigger           every: each full window sleeps; context: those without generated tokens
    eviction          hard: the cache is cleared; sliding: it keeps the newest L-1 tokens
    conv_carry        whether the inputs of the short convolution cross passes and windows
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, Qwen3_5ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast


class SleepCache(DynamicCache):
    """Fast weights, attention cache and the unfinished window of rows of equal length."""

    is_compileable = is_croppable = False

    def __init__(self, config: Any, passes: int | None = None) -> None:
        """`passes` replaces N."""
        super().__init__(config=config)
        self.passes = config.sleep["passes"] if passes is None else passes
        if self.passes < 1:
            raise ValueError(f"passes = {passes} must be at least 1; the first pass is counted")
        self.evicted = 0
        """Tokens of the windows before."""
        self.generated = False
        """Whether the window holds generated tokens."""
        self.window: dict[str, Tensor] = {}
        """Its tokens [rows, time], and their features [rows, time, width] before and after the looped blocks in pass 1."""
        self.start: list[Any] = []
        """The states at its start of the blocks that run again after the last pass, which are the last ones."""

    @property
    def fill(self) -> int:
        """Tokens of the unfinished window."""
        return self.window["tokens"].shape[1] if self.window else 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """All tokens read so far, evicted ones included."""
        return self.evicted + self.fill

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows, for beam search."""
        super().reorder_cache(beam_idx)
        self.window = {name: tensor[beam_idx] for name, tensor in self.window.items()}
        for layer in self.start:
            layer.reorder_cache(beam_idx)

    def cached(self, layer: int) -> int:
        """Tokens in the attention cache of a block."""
        keys = getattr(self.layers[layer], "keys", None)
        return 0 if keys is None or keys.numel() == 0 else keys.shape[-2]

    def keep_keys(self, blocks: slice, tokens: slice) -> None:
        """Keep these entries of the attention caches of some blocks, in memory of their own."""
        for layer in self.layers[blocks]:
            if getattr(layer, "keys", None) is not None and layer.keys.numel():
                kept = (t[..., tokens, :] for t in (layer.keys, layer.values))
                # An empty cache has no shape, so that rows can be selected.
                layer.keys, layer.values = (t.clone() if t.numel() else t.new_empty(0) for t in kept)

    def clear_convolutions(self) -> None:
        """Forget the inputs of the short convolutions."""
        for layer in self.layers:
            if (state := getattr(layer, "conv_states", {}).get(0)) is not None:
                state.zero_()


class SleepForCausalLM(Qwen3_5ForCausalLM):
    """The native model, whose windows sleep. It is for inference: no gradient is computed.

    It reads tokens one after another, in whatever pieces they come; a full window sleeps and is evicted when the next token
    arrives. So a new token costs one pass, and memory does not grow with the text.
    """

    _supports_flash_attn = False
    _supports_flex_attn = False

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, past_key_values: SleepCache | None = None,
        labels: Tensor | None = None, logits_to_keep: int | Tensor = 0, generated: bool = False, **kwargs: Any,
    ) -> CausalLMOutputWithPast:  # fmt: skip
        """Read `input_ids` [rows, time]: logits of the token after each [rows, time, vocab], and the cache after the last one.

        `generated`: the tokens were generated, so that under `trigger: context` their window does not sleep. ValueError for padding
        before a row, which `generate` can handle.
        """
        if input_ids is None:
            raise ValueError("a sleeping model reads input_ids; it has no inputs_embeds")
        if attention_mask is not None and not bool((attention_mask == 1).all()):
            raise ValueError("forward reads rows without padding; generate() takes rows that are padded on the left")
        cache = SleepCache(self.config) if past_key_values is None else past_key_values
        if not isinstance(cache, SleepCache):
            raise ValueError(f"a sleeping model needs a SleepCache, not {type(cache).__name__}")
        features, at = [], 0
        while at < input_ids.shape[1]:
            if cache.fill == self.config.sleep["window"]:
                self._evict(cache)
            stop = at + self.config.sleep["window"] - cache.fill
            features.append(self._first_pass(cache, input_ids[:, at:stop]))
            cache.generated |= generated
            at = stop
        h = torch.cat(features, 1)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.model.norm(h[:, keep]))
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def sleep(self, input_ids: Tensor, passes: int | None = None) -> SleepCache:
        """Read `input_ids` [rows, time] with N = `passes`; the cache, from which `generate(..., past_key_values=cache)` goes on."""
        cache = SleepCache(self.config, passes)
        self(input_ids, past_key_values=cache, logits_to_keep=1)
        return cache

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, passes: int | None = None, **kwargs: Any) -> Any:
        """`generate` of transformers, with N = `passes`. `inputs` is the whole text, with what a given cache has read of it.

        Rows padded on the left are generated in groups of equal length, each as it would be alone, and padded on the right.
        """
        inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
        mask, cache = kwargs.pop("attention_mask", None), kwargs.pop("past_key_values", None)
        if inputs is None or inputs.shape[1] <= (0 if cache is None else cache.get_seq_length()):
            raise ValueError("generate() needs input_ids with a token that the cache has not read")
        if kwargs.get("use_cache") is False:
            raise ValueError("a sleeping model cannot generate with use_cache=False: fast weights are in the cache")
        if mask is None or bool((mask == 1).all()):
            cache = SleepCache(self.config, passes) if cache is None else cache
            ones = torch.ones_like(inputs)
            return super().generate(inputs, *args, attention_mask=ones, past_key_values=cache, **kwargs)
        if cache is not None or kwargs.get("streamer") or kwargs.get("return_dict_in_generate"):
            raise ValueError("rows of several lengths have no cache, streamer or dictionary of results")
        return self._generate_groups(inputs, mask, *args, passes=passes, **kwargs)

    def _generate_groups(self, inputs: Tensor, mask: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`generate` for rows of several lengths."""
        (rows, time), lengths, groups = inputs.shape, mask.sum(1), list[tuple[Tensor, Tensor]]()
        if bool((mask != (torch.arange(time, device=mask.device) >= time - lengths[:, None])).any()):
            raise ValueError("rows of several lengths must be padded on the left")
        for length in lengths.unique().tolist():
            same = (lengths == length).nonzero()[:, 0]
            out = self.generate(inputs[same, -length:], *args, **kwargs)
            groups.append((same, out[:, length:].view(len(same), -1, out.shape[1] - length)))
        longest, pad = max(new.shape[2] for _, new in groups), self.generation_config.pad_token_id or 0
        result = inputs.new_full((rows, groups[0][1].shape[1], time + longest), pad)
        result[..., :time] = inputs[:, None]
        for same, new in groups:
            result[same, :, time : time + new.shape[2]] = new
        return result.flatten(0, 1)

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any) -> Any:
        """The inputs of `forward`; tokens after the prompt were generated."""
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        return {**inputs, "generated": not is_first_iteration}

    def _first_pass(self, cache: SleepCache, tokens: Tensor) -> Tensor:
        """Pass 1 over the next tokens of the unfinished window: the features [rows, time, width] after the last block."""
        sleep, depth = self.config.sleep, len(self.model.layers)
        first, stop = sleep["layers"]
        if cache.fill == 0:
            if not sleep["conv_carry"]:
                cache.clear_convolutions()
            if sleep["trigger"] == "context" and cache.passes > 1:
                cache.start = copy.deepcopy(cache.layers[stop:])
        position = self._window_position(cache) + cache.fill
        above = self._run(cache, self.model.embed_tokens(tokens), 0, first, position)
        leaving = self._run(cache, above, first, stop, position)
        features = self._run(cache, leaving, stop, depth, position)
        new = {"tokens": tokens, "above": above, "leaving": leaving}
        cache.window = {name: torch.cat([cache.window[name], t], 1) if cache.fill else t for name, t in new.items()}
        return features

    def _evict(self, cache: SleepCache) -> None:
        """Passes 2..N over the full window if it sleeps; then it leaves the attention cache."""
        sleep = self.config.sleep
        if cache.passes > 1 and (sleep["trigger"] == "every" or not cache.generated):
            self._sleep_passes(cache)
        kept = sleep["window"] - 1 if sleep["eviction"] == "sliding" else 0
        cache.keep_keys(slice(None), slice(-kept, None) if kept else slice(0))
        cache.evicted, cache.generated, cache.window = cache.evicted + cache.fill, False, {}

    def _sleep_passes(self, cache: SleepCache) -> None:
        sleep, h, position = self.config.sleep, cache.window["leaving"], self._window_position(cache)
        first, stop = sleep["layers"]
        for _ in range(cache.passes - 1):
            # Every pass writes the keys and values of the window anew, and the last one leaves them.
            cache.keep_keys(slice(first, stop), slice(-cache.fill))
            if not sleep["conv_carry"]:
                cache.clear_convolutions()
            h = self._run(cache, self._feedback(cache.window, h), first, stop, position)
        if sleep["trigger"] == "context":
            cache.layers[stop:] = cache.start
            self._run(cache, h, stop, len(self.model.layers), position)

    def _feedback(self, window: dict[str, Tensor], h: Tensor) -> Tensor:
        """What a later pass reads, from the features that left the looped blocks in the pass before."""
        match self.config.sleep["feedback"]:
            case "raw":
                return h
            case "normed":
                return self.model.norm(h)
            case "embeddings":
                return window["above"]
        weight = torch.tensor(self.config.sleep["feedback_weight"], device=h.device)
        normed = F.rms_norm(h.float(), h.shape[-1:], weight, self.config.rms_norm_eps)
        return self.model.embed_tokens(window["tokens"]) + normed.to(h.dtype)

    def _window_position(self, cache: SleepCache) -> int:
        """The rotary position of the window's first token."""
        return cache.evicted if self.config.sleep["eviction"] == "sliding" else 0

    def _run(self, cache: SleepCache, h: Tensor, first: int, stop: int, position: int) -> Tensor:
        """Blocks first..stop-1 over features [rows, time, width] whose first token has a rotary position."""
        positions = torch.arange(position, position + h.shape[1], device=h.device)[None]
        rotary = self.model.rotary_emb(h, positions.expand(3, h.shape[0], -1))
        for i in range(first, stop):
            block, mask = self.model.layers[i], None
            if block.block_type == "full_attention":
                mask = self._mask(cache.cached(i), h)
            h = block(h, position_embeddings=rotary, attention_mask=mask, position_ids=positions, past_key_values=cache)
        return h

    def _mask(self, cached: int, h: Tensor) -> Tensor:
        """What is added to attention scores [1, 1, time, keys]: a query sees the newest L keys up to its own."""
        time = h.shape[1]
        query = torch.arange(cached, cached + time, device=h.device)[:, None]
        key = torch.arange(cached + time, device=h.device)
        seen = (key <= query) & (query - key < self.config.sleep["window"])
        return torch.zeros(seen.shape, dtype=h.dtype, device=h.device).masked_fill(~seen, torch.finfo(h.dtype).min)[
            None, None
        ]
