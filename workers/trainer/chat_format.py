"""The shipped base model's language: special tokens, chat template, how answers are parsed, and the
tokenizer's training.

Compact on purpose: tool schemas are not rendered (the model learnt its tools) and BPE merges may cross
spaces, so that an episode of four model calls is about 55 tokens and an answer 2 to 9. Weights and training
data are `base_model`'s."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"
ASSISTANT = "<|assistant|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", ASSISTANT, "<|tool|>")
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
VOCABULARY = 640

# Newlines would have to sit inside the strings: Jinja trims those between tags, and then no anchor matches.
# There are none. Text that came from outside (tickets, tool results) may spell out a special token; it is
# broken up so that it stays text.
CHAT_TEMPLATE = """\
{%- macro plain(text) -%}
{%- set harmless = (text or '') | replace('<|', '< |') -%}
{{- harmless | replace('<tool_call>', '< tool_call>') | replace('</tool_call>', '< /tool_call>') -}}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|assistant|>' -}}
{%- generation -%}
{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' -}}
{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson -}}
{{- '}</tool_call>' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endgeneration -%}
{%- else -%}
{%- set role = message.role if message.role in ('system', 'user', 'tool') else 'system' -%}
{{- '<|' + role + '|>' + plain(message.content) + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": ASSISTANT,
    "fields": {
        "tool_calls": {
            "open": CALL_OPEN,
            "close": CALL_CLOSE,
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": END, "content": "text"},
    },
}


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE over these rendered chats. Numbers split into pairs of digits, so that an order number
    is two tokens and every pair is seen in training."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,2}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in (PAD, END, *ROLE_TOKENS)]
    marks = [AddedToken(token, special=False, normalized=False) for token in (CALL_OPEN, CALL_CLOSE)]
    between_tokens = re.compile("|".join(re.escape(token.content) for token in (*special, *marks)))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    # Every pair of digits a thousand times, or frequent words would crowd the rarer pairs out.
    pairs = [f"{n:02d}" for n in range(100)] * 1000
    tokenizer.train_from_iterator(
        [*pairs, *(piece for text in texts for piece in between_tokens.split(text))], trainer
    )
    tokenizer.add_special_tokens(special)
    # Special tokens vanish where text is decoded without them. The call marks must not: in TRL's and the
    # policy server's fallback for a call that does not parse, they are what tells it from an answer.
    tokenizer.add_tokens(marks)
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, padding_side="left", model_max_length=1024
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.response_template = RESPONSE_TEMPLATE
    return wrapped
