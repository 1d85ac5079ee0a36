"""Where the text comes from, and how it becomes tokens and batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from farthing.section import Section

Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[int, Field(ge=1)] | Fraction | str
"""A held-out part: a fraction of the documents (0.1), a number of them (2000), or files of its own ("val.txt")."""


class Source(Section):
    """What every source of text has in common."""

    validation: Share = 0.1
    """held-out part for validation: a fraction of the documents (0.1), a number of documents (2000), or a path or glob of its own ("val.txt")"""
    test: Share | None = None
    """a further held-out part that training never scores: as validation"""
    split: Literal["shuffle", "tail"] = "shuffle"
    """shuffle: held-out documents are drawn by a shuffle seeded with split_seed; tail: they are the last ones in the file's order, test last of all"""
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 1337
    """seed of the split and of limit's draw; apart from the run's seed, so that runs of several seeds share one validation text"""
    limit: Annotated[int, Field(ge=1)] | None = None
    """use only this many documents, before the split: drawn by the same shuffle, or with split = "tail" the first ones"""

    @field_validator("validation", "test")
    @classmethod
    def _share(cls, value: object) -> object:
        if isinstance(value, str) and not value.strip():
            raise ValueError("an empty path; give a fraction, a number of documents or a path")
        return value


class PyStdlib(Source):
    """The Python standard library's own sources: real text on every machine, no download."""

    kind: Literal["pystdlib"] = "pystdlib"


class Text(Source):
    """Plain text files, UTF-8, also gzip- or zstd-compressed."""

    kind: Literal["text"] = "text"
    path: str | list[str]
    """a file, a folder's glob ("books/*.txt"), or a list of these"""
    documents: Literal["file", "line", "paragraph", "marker"] = "file"
    """what a document is: a whole file, a line, a paragraph between blank lines, or what `marker` separates"""
    marker: str | None = None
    """the text between documents when documents = "marker", for example "<|endoftext|>"; it is no part of them"""

    @model_validator(mode="after")
    def _marker(self) -> Text:
        if (self.documents == "marker") != bool(self.marker):
            raise ValueError('documents = "marker" and marker = "..." go together: give both or neither')
        return self


class Jsonl(Source):
    """JSON lines; a document is the named field of a line. Also gzip- or zstd-compressed."""

    kind: Literal["jsonl"] = "jsonl"
    path: str | list[str]
    """a file, a glob, or a list of these"""
    field: str = "text"
    """the field that holds the text"""


class Parquet(Source):
    """Parquet files; a document is the named column of a row (needs the extra [hf])."""

    kind: Literal["parquet"] = "parquet"
    path: str | list[str]
    """a file, a glob, or a list of these"""
    field: str = "text"
    """the column that holds the text"""


class Csv(Source):
    """CSV files with a header line; a document is the named column of a row. Also gzip- or zstd-compressed."""

    kind: Literal["csv"] = "csv"
    path: str | list[str]
    """a file, a glob, or a list of these"""
    field: str = "text"
    """the column that holds the text"""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """the character between columns"""


class Hub(Source):
    """A Hugging Face dataset by name, streamed once into the local cache (needs the extra [hf])."""

    kind: Literal["hub"] = "hub"
    path: str
    """the dataset's name, for example "roneneldan/TinyStories" """
    name: str | None = None
    """the dataset's configuration, where it has several"""
    hub_split: str = "train"
    """which of the dataset's splits to read"""
    revision: str | None = None
    """branch, tag or commit of the dataset; none is its main branch"""
    field: str = "text"
    """the field that holds the text"""


class Bin(Source):
    """Token shards in llm.c's .bin format (uint16 tokens after a header of 256 int32); documents begin at the separator token."""

    kind: Literal["bin"] = "bin"
    path: str | list[str]
    """a shard, a glob ("fineweb_train_*.bin"), or a list of these"""


class Npz(Source):
    """Token arrays from NumPy .npz or .npy files; documents begin at the separator token, or are the rows of a 2-D array."""

    kind: Literal["npz"] = "npz"
    path: str | list[str]
    """a file, a glob, or a list of these"""
    array: str | None = None
    """name of the array inside the .npz; none takes the only one there is"""


Data = Annotated[
    PyStdlib | Text | Jsonl | Parquet | Csv | Hub | Bin | Npz,
    Field(discriminator="kind"),
]


class ByteTokenizer(Section):
    """Every byte of the UTF-8 text is a token: 256 tokens and a separator."""

    kind: Literal["byte"] = "byte"


class TrainedTokenizer(Section):
    """What the tokenizers trained here have in common: byte-level, so that no text is out of vocabulary."""

    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] = 8192
    """number of tokens, the 256 bytes and the separator included"""
    train_on: Literal["train", "train+validation"] = "train"
    """which documents it learns from; train+validation is a leak, for comparison with the published titles benchmark only"""
    sample_bytes: Annotated[int, Field(ge=1)] = 100_000_000
    """train on at most this many bytes of text, drawn evenly over the documents, so that memory stays bounded"""


class Bpe(TrainedTokenizer):
    """Byte-level byte-pair encoding."""

    kind: Literal["bpe"] = "bpe"


class Unigram(TrainedTokenizer):
    """Byte-level unigram language model (SentencePiece's)."""

    kind: Literal["unigram"] = "unigram"


class Gpt2Tokenizer(Section):
    """GPT-2's own byte-level BPE: 50,257 tokens, separator <|endoftext|>."""

    kind: Literal["gpt2"] = "gpt2"
    path: str | None = None
    """folder with encoder.json and vocab.bpe (or vocab.json and merges.txt); none fetches them from the hub once"""


class TokenizerFile(Section):
    """Any tokenizer.json of the `tokenizers` library."""

    kind: Literal["file"] = "file"
    path: str
    """the tokenizer.json"""
    separator: str = "auto"
    """the token of its vocabulary that ends a document; auto: its only special token"""


Tokenizer = Annotated[
    ByteTokenizer | Bpe | Unigram | Gpt2Tokenizer | TokenizerFile,
    Field(discriminator="kind"),
]
