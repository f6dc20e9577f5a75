"""Train the embedded model's tokenizer: a byte-level BPE whose full stop is always a token of its own.

    python recipes/tokenizer.py ../shared/data/books OUT_FOLDER

The full stop stands alone because the tasks of Ziegler et al. 2019 cut prompts and responses at '.' tokens; a merged '."' would hide
the end of a sentence from them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from corpus import books
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096
END, PAD = "<|endoftext|>", "<|pad|>"


def train(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(".", behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((b.text for b in books(folder) if not b.held_out), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=PAD, model_max_length=512, clean_up_tokenization_spaces=False
    )


if __name__ == "__main__":
    train(Path(sys.argv[1])).save_pretrained(sys.argv[2])
