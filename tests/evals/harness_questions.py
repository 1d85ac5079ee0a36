"""Questions in every form that the harness's local tasks read, made up from a seed, and a model small enough to ask."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from farthing.data.tokenizer import Tokenizer, build_tokenizer
from farthing.model.gpt import GPT, build_model
from farthing.recipe.data import Bpe
from farthing.recipe.model import Model, RmsNorm, Rope, SwiGlu

WORDS = [
    *(
        "the",
        "a",
        "cat",
        "dog",
        "runs",
        "sleeps",
        "under",
        "over",
        "red",
        "über",
        "naïve",
        "漢字",
        "42",
        "don't,",
        "tea;",
    ),
    *("house's", "quickly", "—", "and", "then"),
]
CHOICES = {"hellaswag": 4, "arc_easy": 4, "arc_challenge": 5, "piqa": 2, "winogrande": 2}
TASKS = [*CHOICES, "lambada_openai"]


def phrase(random: Random, least: int, most: int) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(least, most)))


def question(task: str, random: Random, *, hub: bool) -> dict[str, Any]:
    """One line of a question file: a row of the hub's, or one with the question put together."""
    options = [phrase(random, 1, 12) for _ in range(CHOICES.get(task, 1))]
    gold = random.randrange(len(options))
    # Some contexts are longer than the model can read.
    text = phrase(random, 3, random.choice([6, 12, 90]))
    match task, hub:
        case "hellaswag", True:
            context = {"activity_label": phrase(random, 1, 3), "ctx_a": f"[header] {text} [title] How.", "ctx_b": "she"}
            return {**context, "endings": [f"{option}  [step] so." for option in options], "label": str(gold)}
        case "hellaswag", False:
            return {"query": f"{phrase(random, 1, 3)}: {text}", "endings": options, "label": gold}
        case "arc_easy" | "arc_challenge", True:
            labels = list(random.choice(["ABCDE", "12345"]))[: len(options)]
            return {"question": text, "choices": {"text": options, "label": labels}, "answerKey": labels[gold]}
        case "arc_easy" | "arc_challenge", False:
            return {"query": f"Question: {text}", "choices": options, "gold": gold}
        case "piqa", True:
            return {"goal": text, "sol1": options[0], "sol2": options[1], "label": gold}
        case "piqa", False:
            return {"query": f"Question: {text}\n", "choices": options, "gold": gold}
        case "winogrande", True:
            sentence = f"{text} because _ {phrase(random, 1, 8)}."
            return {"sentence": sentence, "option1": options[0], "option2": options[1], "answer": str(gold + 1)}
        case "winogrande", False:
            contexts = [f"{text} because {option}" for option in options]
            return {"context_options": contexts, "continuation": phrase(random, 1, 8), "gold": gold}
        case "lambada_openai", True:
            return {"text": f"{text}\n{phrase(random, 2, 4)} {random.choice(WORDS)}"}
        case _:
            return {"context": f'"{text},', "continuation": random.choice(WORDS)}


def write_questions(folder: Path, *, each: int, tasks: Sequence[str] = TASKS) -> Path:
    """A file for each task, half of its rows in each form."""
    folder.mkdir(exist_ok=True)
    random = Random(1337)
    for task in tasks:
        rows = [question(task, random, hub=number % 2 == 0) for number in range(each)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{task}.jsonl").write_text(lines, "utf-8")
    return folder


def small_tokenizer() -> Tokenizer:
    """Byte-pair encoding of the words, merges across white space included."""
    random = Random(7)
    texts = [phrase(random, 5, 40) for _ in range(200)]
    return build_tokenizer(Bpe(vocab_size=400), lambda: iter(texts), directory=Path())


def small_model(tokenizer: Tokenizer, *, context_length: int = 96, steps: int = 80) -> GPT:
    """A Llama that has learnt which words there are."""
    section = Model(
        n_layer=2,
        n_head=4,
        n_kv_head=2,
        d_model=32,
        context_length=context_length,
        norm=RmsNorm(),
        position=Rope(),
        mlp=SwiGlu(ratio=2.0),
        tie_embeddings=False,
    )
    model = build_model(section, tokenizer.vocab_size, seed=5)
    stream = torch.tensor(tokenizer.encode(phrase(Random(9), 8000, 8000)))
    windows_WT = stream[: len(stream) // 65 * 65].view(-1, 65)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch_BT = windows_WT[step * 8 % (len(windows_WT) - 8) :][:8]
        logits_BTV = model(batch_BT[:, :-1])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), batch_BT[:, 1:].flatten()).backward()
        optimizer.step()
    return model.eval()


_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def as_llama(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors by the names of LlamaForCausalLM."""
    found = {"model.embed_tokens.weight": weights["embed.weight"], "lm_head.weight": weights["unembed.weight"]}
    found["model.norm.weight"] = weights["norm.weight"]
    layers = sum(name.endswith("mlp.up.weight") for name in weights)
    for layer in range(layers):
        for ours, theirs in _LAYER.items():
            found[f"model.layers.{layer}.{theirs}.weight"] = weights[f"blocks.{layer}.{ours}.weight"]
    return found


def write_llama(model: GPT, tokenizer: Tokenizer, folder: Path) -> Path:
    """The model as a folder that transformers loads with its own classes."""
    import tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    section = model.section
    assert isinstance(section.position, Rope)
    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=section.d_model,
        intermediate_size=section.hidden,
        num_hidden_layers=section.n_layer,
        num_attention_heads=section.n_head,
        num_key_value_heads=section.kv_heads,
        max_position_embeddings=section.context_length,
        rms_norm_eps=section.norm.eps,
        rope_parameters={"rope_type": "default", "rope_theta": section.position.base},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.separator,
        eos_token_id=tokenizer.separator,
    )
    llama = LlamaForCausalLM(config)
    llama.load_state_dict(as_llama(model.state_dict()))
    llama.save_pretrained(folder)
    name = tokenizer.separator_text
    inner = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=name, eos_token=name, pad_token=name).save_pretrained(
        folder
    )
    return folder
