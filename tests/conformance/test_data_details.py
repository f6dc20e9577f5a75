"""What the published systems do with texts, prompts and truncation: one test per detail, each failing when the detail is undone.

Sources: lm-human-preferences (Ziegler et al. 2019, released code) and the N implementation details of its reproduction.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from humanward.data import Task, TaskConfig, Text, index_order, left_pad, right_pad, shard
from humanward.maths import position_ids, truncate_at
from humanward.storage import derive_seed

DOT = ord(".")


def tokens(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def cut(tokenizer: PreTrainedTokenizerFast, text: str, **settings: object) -> str | None:
    task = Task(TaskConfig(**settings), tokenizer)
    found = task.cut(text)
    return None if found is None else bytes(found).decode()


def test_prompts_begin_behind_the_first_start_token(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Released code, language/datasets.py: everything up to and including the first start token is dropped."""
    assert cut(byte_tokenizer, "a. b. c. d.") == " b. c. d."


def test_a_start_token_that_ends_the_text_is_not_dropped(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Released code, language/datasets.py: nothing is dropped where nothing would be left (first_index < len(tokens))."""
    assert cut(byte_tokenizer, "a b c.") == "a b c."


def test_prompts_are_clipped_to_their_length(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Released code, language/datasets.py: clip to query_length, after the start is dropped."""
    assert cut(byte_tokenizer, "x.abcdefgh", prompt_length=4, prompt_end=None) == "abcd"


def test_prompts_end_with_the_last_end_token(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Released code, language/datasets.py: cut behind the last end token; N details, policy 3: period-delimited queries."""
    assert cut(byte_tokenizer, "x. b. c. d") == " b. c."


def test_the_clip_comes_before_the_end_is_sought(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Released code, language/datasets.py: an end token behind query_length does not count."""
    assert cut(byte_tokenizer, "x.ab.cdef.", prompt_length=5) == "ab."
    assert cut(byte_tokenizer, "x.abcdef.", prompt_length=5) is None


def test_a_text_without_a_start_token_is_skipped(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Released code, language/datasets.py: a text in which the start token is missing gives no query."""
    assert cut(byte_tokenizer, "no mark at all", prompt_end=None) is None


def test_a_text_without_an_end_token_is_skipped(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Released code, language/datasets.py: a text in which the end token is missing gives no query."""
    assert cut(byte_tokenizer, "a. no further mark", prompt_end="!") is None


def test_without_marks_the_text_is_only_clipped(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Released code, launch.py: the TL;DR task has neither start nor end text."""
    assert cut(byte_tokenizer, "a. b. c", prompt_start=None, prompt_end=None, prompt_length=5) == "a. b."


def test_prefix_and_suffix_are_added_behind_the_clip(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Released code, lm_tasks.py query_formatter: prefix, query of query_length, suffix."""
    settings = {
        "prompt_start": None,
        "prompt_end": None,
        "prompt_length": 3,
        "prompt_prefix": "Article:\n\n",
        "prompt_suffix": "\n\nTL;DR:",
    }
    assert cut(byte_tokenizer, "abcdef", **settings) == "Article:\n\nabc\n\nTL;DR:"


def test_prompts_are_padded_on_the_left(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """N details, general 3: with Hugging Face models queries are left-padded, so that every response begins in one column."""
    ids, mask = left_pad([tokens("abc"), tokens("d")], byte_tokenizer.pad_token_id)
    assert ids[:, -1].tolist() == [ord("c"), ord("d")]
    assert mask.tolist() == [[True, True, True], [False, False, True]]


def test_the_pad_token_is_none_of_the_text(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Released code, language/encodings.py; N details, general 2: padding is a token that no text has, and never EOS."""
    task = Task(TaskConfig(), byte_tokenizer)
    assert task.pad_id not in set(range(256)) | {byte_tokenizer.eos_token_id}


def test_positions_do_not_count_pads() -> None:
    """Released code, language/model.py; N details, general 3: positions are an exclusive cumulative sum of the mask."""
    _, mask = left_pad([(5, 6, 7), (8,)], 0)
    assert position_ids(mask)[mask].tolist() == [0, 1, 2, 0]


def test_the_truncation_token_is_kept() -> None:
    """Released code, lm_tasks.py: tokens behind the truncation token are padded, the token itself is kept."""
    mask, found = truncate_at(torch.tensor([[1, 2, DOT, 3, DOT, 4]]), DOT, 0)
    assert mask.tolist() == [[True, True, True, False, False, False]]
    assert found.tolist() == [True]


def test_truncation_only_at_or_after_its_index() -> None:
    """Released code, lm_tasks.py: the first truncation token at 0-based index >= truncate_after counts; an earlier one does not."""
    responses = torch.tensor([[DOT, 1, DOT, 2, DOT]])
    assert truncate_at(responses, DOT, 1)[0].sum().item() == 3
    assert truncate_at(responses, DOT, 2)[0].sum().item() == 3
    assert truncate_at(responses, DOT, 3)[0].sum().item() == 5


def test_a_response_without_the_truncation_token_stays_whole_and_is_marked() -> None:
    """Released code, lm_tasks.py filter_fn: such a response is not truncated, and its score is replaced."""
    mask, found = truncate_at(torch.tensor([[DOT, 1, 2, 3]]), DOT, 1)
    assert mask.all()
    assert found.tolist() == [False]


def test_the_score_of_a_response_without_an_end_is_minus_one() -> None:
    """Released code, lm_tasks.py: penalty_reward_value -1."""
    assert TaskConfig().missing_truncation_score == -1.0


def test_responses_have_one_fixed_length() -> None:
    """Released code; N details, general 4: always the full length is sampled, no stop at EOS."""
    config = TaskConfig()
    assert not config.stop_at_eos
    assert config.response_length == 24
    ids, mask = right_pad([range(24), range(24)], 0, config.response_length)
    assert ids.shape == (2, 24)
    assert mask.all()


def test_ppo_sees_the_untruncated_response() -> None:
    """Released code, train_policy.py: only the score function sees the truncated response."""
    assert TaskConfig().train_on_truncated is False


def test_sampling_is_plain() -> None:
    """Released code: temperature 0.7 for the style tasks, top_k 0, top_p 1; special tokens are never sampled."""
    config = TaskConfig()
    assert (config.temperature, config.top_k, config.top_p, config.suppress_special_tokens) == (0.7, 0, 1.0, True)


def test_processes_have_their_own_prompts() -> None:
    """N details, general 6; released code, language/datasets.py: each process takes its own share, with no item twice in a batch."""
    batch = index_order(1, 64, 32, 1000)
    shares = [shard(batch, rank, 8) for rank in range(8)]
    assert sorted(i for share in shares for i in share) == sorted(batch)
    assert len({i for share in shares for i in share}) == 32


def test_processes_draw_different_numbers() -> None:
    """N details, general 6; released code, utils/core.py: seed + rank * 100003, so that no two processes sample the same response."""
    assert len({derive_seed(1, "rollout", 0, response) for response in range(512)}) == 512


def test_data_order_does_not_depend_on_the_number_of_processes() -> None:
    """Released code, train_reward.py: all ranks shuffle with one order and take every n-th index of it."""
    batch = index_order(1, 0, 8, 100)
    assert [list(shard(batch, rank, 2)) for rank in range(2)] == [batch[0::2], batch[1::2]]


def test_items_are_shuffled_anew_at_the_end_of_the_data() -> None:
    """N+ details, 21: prompts are reused and reshuffled when they are used up."""
    stream = index_order(1, 0, 200, 100)
    assert sorted(stream[:100]) == sorted(stream[100:]) == list(range(100))
    assert stream[:100] != stream[100:]


def test_a_prompt_is_the_same_text_for_people_and_for_the_policy(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Released code, label files: a label names the query by its tokens; text and tokens of a prompt must be one thing."""
    (prompt,) = Task(TaskConfig(), byte_tokenizer).prompts([Text("a. b. c", "1")])
    assert tokens(prompt.text) == prompt.tokens
