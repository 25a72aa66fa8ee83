"""A tiny random Llama and a tokenizer of its own: no download, float64 truth in milliseconds."""

import signal
import socket

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ofa import Task

TEXTS = (
    "a bright and moving evening",
    "the second half never ends",
    "every scene earns its place",
    "dull jokes and a duller plot",
    "warm, funny and well played",
    "it forgets its own story",
)
LABELS = (1, 0, 1, 0, 1, 0)


def build_llama(dtype=torch.float64, n_layers=3, vocab_size=512, **options) -> LlamaForCausalLM:
    """Grouped-query attention, and weights large enough that every layer does something."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **options,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return model.to(dtype).eval()


def make_batch(lengths=(7, 5), side="right", vocab_size=512, seed=1) -> dict[str, torch.Tensor]:
    """Ragged rows; row i holds the same tokens whatever the padding."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.zeros(len(lengths), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, n in enumerate(lengths):
        place = slice(0, n) if side == "right" else slice(longest - n, longest)
        ids[i, place] = torch.randint(3, vocab_size, (n,), generator=generator)
        mask[i, place] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(len(lengths)) + 5}


def one_row(batch: dict[str, torch.Tensor], i: int) -> dict[str, torch.Tensor]:
    """Example i alone, unpadded, with its own probes."""
    real = batch["attention_mask"][i].bool()
    return {
        "input_ids": batch["input_ids"][i : i + 1, real],
        "attention_mask": batch["attention_mask"][i : i + 1, real],
        "labels": batch["labels"][i : i + 1],
        "example_ids": torch.tensor([i]),
    }


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return build_llama()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
    corpus = [
        f"Review: {text}\nSentiment: {word}"
        for text in TEXTS
        for word in ("bad", "good", "negative", "positive")
    ]
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture
def task() -> Task:
    return Task("reviews", "Review: {text}\nSentiment:", ("bad", "good"))


@pytest.fixture
def shots() -> list[dict]:
    return [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


@pytest.fixture
def model_folder(tmp_path_factory, tokenizer) -> str:
    """A float32 model with its tokenizer on the disk, as `ofa.models.load` takes it."""
    folder = tmp_path_factory.mktemp("model")
    build_llama(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def reference_backend(monkeypatch):
    """The backend with the bits of LlamaRMSNorm; the kernels' rstd is more exact than eager PyTorch's."""
    monkeypatch.setenv("OFA_BACKEND", "reference")


@pytest.fixture
def ctrl_c():
    """Python's handler of Ctrl-C, also where the tests were started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)
