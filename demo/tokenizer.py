"""The tokenizer of the demo model: byte-level BPE trained on the corpus, its chat template and its small configs."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import generate

BOS, END, SYSTEM, USER, ASSISTANT, PAD = range(6)

CHAT_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('Unknown role: ' + message['role']) -}}
{%- endif -%}
{%- if message['role'] == 'system' and not loop.first -%}
{{- raise_exception('The system message must come first') -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}"""


def train(seed, vocab_size, count):
    """A tokenizer trained on `count` documents of their own chunk of the corpus."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=generate.SPECIALS, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    texts = (text for doc in generate.documents(seed, "tokenizer", count) for _, text in doc)
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", BOS)])
    return bpe


def save(bpe, folder, length):
    """tokenizer.json, tokenizer_config.json and generation_config.json, all compact."""
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<|bos|>", eos_token="<|end|>",
                    pad_token="<|pad|>", model_max_length=length, clean_up_tokenization_spaces=False,
                    chat_template=CHAT_TEMPLATE)
    generation = dict(bos_token_id=BOS, eos_token_id=END, pad_token_id=PAD)
    folder = Path(folder)
    (folder / "tokenizer.json").write_text(compact(json.loads(bpe.to_str())), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(compact(settings), encoding="utf-8")
    (folder / "generation_config.json").write_text(compact(generation), encoding="utf-8")


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
