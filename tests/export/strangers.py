"""Models as strangers hold them: small ones of transformers' own classes, saved by transformers, with a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from farthing.data.tokenizer import SEPARATOR, Tokenizer
from farthing.data.tokenizer_train import train_bpe
from farthing.export.huggingface import own_config
from farthing.export.stock import stock_class
from farthing.model.gpt import GPT, build_model
from farthing.recipe.model import Model

TEXT = "The quick brown fox jumps over the lazy dog; it's 3 o'clock, isn't it?\n"
TOKENIZER = train_bpe(iter([TEXT * 20]), vocab_size=300)
VOCABULARY = Tokenizer.from_json(TOKENIZER, separator=SEPARATOR).vocab_size
CONTEXT = 24
SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 4, "d_model": 16, "context_length": CONTEXT}

USUAL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
}


def made_by_transformers(kind: str, **settings: Any) -> Any:
    """A model of transformers with weights that matter everywhere, norms and biases included."""
    from transformers import AutoConfig, AutoModelForCausalLM

    usual = GPT2 if kind == "gpt2" else {**USUAL, **({} if kind == "opt" else {"num_key_value_heads": 2})}
    config = AutoConfig.for_model(kind, **{**usual, **settings})
    return scrambled(AutoModelForCausalLM.from_config(config, attn_implementation="eager")).eval()


def scrambled(model: Any) -> Any:
    """The same model with all its parameters drawn anew."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=0.1, std=0.3, generator=generator)
    return model


def save(model: Any, folder: Path, **settings: Any) -> Path:
    """The folder that `save_pretrained` writes, and a tokenizer.json."""
    model.save_pretrained(folder, **settings)
    (folder / "tokenizer.json").write_text(TOKENIZER, "utf-8")
    return folder


def ours(section: Model, seed: int = 3) -> GPT:
    """A model of ours with weights that matter everywhere."""
    model: GPT = scrambled(build_model(section, VOCABULARY, seed=seed))
    return model.eval()


def save_ours(model: GPT, folder: Path) -> Path:
    """The folder that export makes of it, without the proof that export demands."""
    stock, section = stock_class(model.section).stock, model.section
    config = {"model_type": "farthing", **own_config(section)}
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    if stock is not None:
        config = {"model_type": stock.model_type, **stock.config(section)}
        weights = stock.weights(section, weights)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY, **config}), "utf-8")
    (folder / "tokenizer.json").write_text(TOKENIZER, "utf-8")
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def tokens() -> Tensor:
    """Two windows of tokens."""
    return torch.randint(0, VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(5))


def logits_of(model: Any) -> Tensor:
    """Logits of `tokens`, by a model of ours or of transformers, of the tokens that the vocabulary has."""
    with torch.inference_mode():
        found = model(tokens())
    values: Tensor = getattr(found, "logits", found)
    return values[..., :VOCABULARY].float()


def section(**changes: Any) -> Model:
    """A small [model]."""
    return Model.model_validate({**SHAPE, **changes})
