"""Property 4: pad is not EOS, the stop token is supervised, special tokens are one id each and absent from the corpus,
the vocabulary is a multiple of 64, and BOS stands exactly once where the tokenizer defines one."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import tasks
from fulltune import config, data, model
from fulltune import tokenizer as tok
from tasks.base import Record, UserError

TASK = tasks.get("viggo")
RECORD = Record(
    "viggo-train-0", {"ref": "Is Dusk on Steam?", "mr": "verify_attribute(name[Dusk], available_on_steam[yes])"}
)


def encoded(tokenizer, loss_on="completion"):
    return tok.encode_examples(tokenizer, TASK, [TASK.render(RECORD)], loss_on=loss_on)[0]


def test_pad_is_not_eos(tiny):
    assert tiny.tokenizer.pad_token_id not in (None, tiny.tokenizer.eos_token_id)


def test_special_tokens_are_one_id_each(tiny):
    for token in TASK.special_tokens:
        assert len(tiny.tokenizer(token, add_special_tokens=False).input_ids) == 1


def test_supervised_tokens_are_exactly_the_answer_and_the_stop_token(tiny):
    ids, labels = encoded(tiny.tokenizer)
    supervised = [i for i, label in zip(ids, labels, strict=True) if label != tok.IGNORE]
    assert tiny.tokenizer.decode(supervised) == RECORD["mr"] + TASK.stop
    assert supervised[-1] == tok.stop_id(tiny.tokenizer, TASK)
    assert all(label in (tok.IGNORE, i) for i, label in zip(ids, labels, strict=True))


def test_bos_stands_once_and_is_never_a_target(tiny):
    ids, labels = encoded(tiny.tokenizer, loss_on="all")
    bos = tiny.tokenizer.bos_token_id
    assert ids[0] == bos
    assert ids.count(bos) == 1
    assert labels[0] == tok.IGNORE
    assert tok.encode_prompt(tiny.tokenizer, TASK, RECORD).count(bos) == 1


def test_the_prompt_at_prediction_is_the_prompt_of_training(tiny):
    ids, labels = encoded(tiny.tokenizer)
    first = next(i for i, label in enumerate(labels) if label != tok.IGNORE)
    assert tok.encode_prompt(tiny.tokenizer, TASK, RECORD) == ids[:first]


def test_special_tokens_in_the_corpus_are_refused(tiny):
    bad = Record("viggo-train-9", {"ref": "a <END_A> b", "mr": "inform(name[x])"})
    with pytest.raises(UserError, match=r"viggo-train-9.*<END_A>"):
        data.refuse_special_tokens(TASK, [RECORD, bad])


def test_vocabulary_is_a_multiple_of_64(tiny):
    rows = load_file(tiny.model / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    assert rows % 64 == 0
    assert rows >= len(tiny.tokenizer)
    assert json.loads((tiny.model / "config.json").read_text())["vocab_size"] == rows


def test_rows_that_encode_to_nothing_supervised_or_too_long_are_counted(tiny, tmp_path):
    settings = config.DataConfig(max_length=30)
    long = Record("viggo-train-1", {"ref": "word " * 60, "mr": "inform(name[x])"})
    table = data.prepare(TASK, [RECORD, long] if _length(tiny, RECORD) <= 30 else [long, _short()], tiny.tokenizer,
                         settings, split="train", cache=tmp_path)  # fmt: skip
    assert [entry[0] for entry in table.manifest["left_out"]["too_long"]["first"]] == ["viggo-train-1"]
    assert table.manifest["rows"] == 1


def _length(tiny, record):
    return len(tok.encode_examples(tiny.tokenizer, TASK, [TASK.render(record)], loss_on="completion")[0][0])


def _short():
    return Record("viggo-train-2", {"ref": "?", "mr": "inform()"})


class TestPretrained:
    """A small pretrained model: its vocabulary grows while its files are streamed."""

    @pytest.fixture
    def source(self, tiny, tmp_path):
        folder = tmp_path / "pretrained"
        torch.manual_seed(3)
        shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        tokenizer = tok.train_bpe(["a b c inform name " * 4] * 3, 350)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    def prepared(self, source, tmp_path, rule="mean_noise"):
        settings = config.ModelConfig(name_or_path=str(source), new_token_init=rule)
        return model.prepare(settings, TASK, [], seed=5, cache=tmp_path / "cache")

    def test_old_rows_are_untouched_and_new_rows_follow_their_rule(self, source, tmp_path):
        before = load_file(source / "model.safetensors")
        folder = self.prepared(source, tmp_path)
        after = load_file(folder / "model.safetensors")
        tokenizer = tok.load(str(folder))
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(after[name][: len(before[name])], before[name])
            stop, eos = tok.stop_id(tokenizer, TASK), tokenizer.eos_token_id
            assert torch.equal(after[name][stop], before[name][eos]), "the stop token starts as EOS"
            mean = before[name].mean(0)
            start_q = after[name][tokenizer.convert_tokens_to_ids("<START_Q>")]
            assert 0 < (start_q - mean).std() < 0.06
            assert torch.allclose(after[name][-1], mean, atol=1e-6), "unused rows are the mean"
        assert all(torch.equal(after[name], before[name]) for name in before if "norm" in name or "proj" in name)

    def test_the_mean_rule_adds_no_noise(self, source, tmp_path):
        folder = self.prepared(source, tmp_path, rule="mean")
        old = load_file(source / "model.safetensors")["lm_head.weight"]
        matrix = load_file(folder / "model.safetensors")["lm_head.weight"]
        row = tok.load(str(folder)).convert_tokens_to_ids("<START_Q>")
        assert torch.allclose(matrix[row], old.mean(0), atol=1e-6)

    def test_the_stop_token_may_follow_the_rule_of_the_others(self, source, tmp_path):
        settings = config.ModelConfig(name_or_path=str(source), new_token_init="mean", stop_token_init="new_token_init")
        folder = model.prepare(settings, TASK, [], seed=5, cache=tmp_path / "cache")
        old = load_file(source / "model.safetensors")["lm_head.weight"]
        stop = tok.stop_id(tok.load(str(folder)), TASK)
        assert torch.allclose(load_file(folder / "model.safetensors")["lm_head.weight"][stop], old.mean(0), atol=1e-6)

    def test_descriptions_give_the_mean_of_their_tokens_rows(self, source, tmp_path):
        folder = self.prepared(source, tmp_path, rule="description")
        old = load_file(source / "model.safetensors")["lm_head.weight"]
        matrix = load_file(folder / "model.safetensors")["lm_head.weight"]
        tokenizer = tok.load(str(folder))
        words = TASK.token_descriptions["<START_Q>"]
        ids = tokenizer(words, add_special_tokens=False).input_ids
        assert len(ids) > 1
        start_q = matrix[tokenizer.convert_tokens_to_ids("<START_Q>")]
        assert torch.allclose(start_q, old[ids].mean(0), atol=1e-6)

    def test_a_token_without_a_description_takes_its_letters(self, source, tmp_path):
        bare = dataclasses.replace(TASK, token_descriptions={})
        settings = config.ModelConfig(name_or_path=str(source), new_token_init="description")
        folder = model.prepare(settings, bare, [], seed=5, cache=tmp_path / "cache")
        tokenizer = tok.load(str(folder))
        ids = tokenizer("start q", add_special_tokens=False).input_ids
        old = load_file(source / "model.safetensors")["lm_head.weight"]
        row = load_file(folder / "model.safetensors")["lm_head.weight"][tokenizer.convert_tokens_to_ids("<START_Q>")]
        assert torch.allclose(row, old[ids].mean(0), atol=1e-6)

    def test_a_changed_description_makes_another_start(self, source, tmp_path):
        settings = config.ModelConfig(name_or_path=str(source), new_token_init="description")
        other = dataclasses.replace(TASK, token_descriptions={"<START_Q>": "a b c"})
        folders = {model.prepare(settings, task, [], seed=5, cache=tmp_path / "cache") for task in (TASK, other)}
        assert len(folders) == 2

    def test_weights_spread_over_files_are_streamed_to_the_same_result(self, source, tmp_path):
        whole = load_file(self.prepared(source, tmp_path) / "model.safetensors")
        split = tmp_path / "split"
        split.mkdir()
        for file in source.iterdir():
            if file.suffix == ".json":
                (split / file.name).write_bytes(file.read_bytes())
        weights = load_file(source / "model.safetensors")
        parts = [dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])]
        names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for name, part in zip(names, parts, strict=True):
            save_file(part, str(split / name), metadata={"format": "pt"})
        index = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (split / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        folder = self.prepared(split, tmp_path)
        again = LlamaForCausalLM.from_pretrained(folder)
        for name, tensor in again.state_dict().items():
            if not name.endswith("inv_freq"):
                assert torch.equal(tensor, whole[name]), name


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="pickled"):
        model.resolve_source(config.ModelConfig(name_or_path=str(tmp_path)), tmp_path)


def test_llama_2_ids(real_data):
    """The study's ids: <START_Q> is 32000. Golden ids pin BOS and the tokens around special tokens."""
    tokenizer = tok.load(str(real_data / "llama2_tokenizer"))
    assert tok.add_task_tokens(tokenizer, TASK)[:4] == [32000, 32001, 32002, 32003]
    assert [tokenizer.convert_tokens_to_ids(t) for t in TASK.special_tokens] == [32000, 32001, 32002, 32003]
    record = Record("viggo-x-0", {"ref": "Hello world!", "mr": "inform(name[Dusk])"})
    ids, labels = tok.encode_examples(tokenizer, TASK, [TASK.render(record)], loss_on="completion")[0]
    assert ids[:7] == [1, 32000, 15043, 3186, 29991, 32001, 32002]
    assert ids[-1] == 32003
    answer = ids[7:-1]
    assert tokenizer.decode(answer) == "inform(name[Dusk])"
    assert answer == tokenizer("inform(name[Dusk])", add_special_tokens=False).input_ids
    assert labels == [tok.IGNORE] * 7 + answer + [32003]
    assert model.padded(len(tokenizer)) == 32064


def test_the_covariance_rule_draws_from_the_rows_mean_and_covariance():
    torch.manual_seed(0)
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.5, 0.5, 0.0], [0.0, 0.3, 0.1]])
    old = torch.randn(400, 3) @ mixing.T + torch.tensor([5.0, -3.0, 0.0])
    rows = dict.fromkeys(range(400, 4400), "covariance")
    drawn = model.grow(old, 4400, rows, seed=3)[400:]
    assert torch.allclose(drawn.mean(0), old.mean(0), atol=0.1)
    wanted = torch.cov(old.T, correction=0)
    assert (torch.cov(drawn.T) - wanted).norm() < 0.05 * wanted.norm()
