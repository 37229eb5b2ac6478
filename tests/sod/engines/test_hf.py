"""The lockstep engine against plain forwards of single rows."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sod.engines.base import SamplingParams
from sod.engines.hf import HFEngine
from sod.engines.lockstep import _read_width
from sod.errors import ModelError, RolloutError
from sod.types import StopReason
from tests.sod.streams import PROMPTS, STOP, Recorder, make_recorder, params
from tests.sod.tiny import sharpened


def teacher_forced(model, ids, temperature, vocab_size=None):
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0, :, :vocab_size].float()
    log_probs = (logits / temperature).log_softmax(-1)
    labels = torch.tensor(ids)[1:, None].clamp(max=log_probs.shape[-1] - 1)
    return log_probs[:-1].gather(-1, labels)[:, 0]


def check_log_probs(model, recorder, temperature, vocab_size=None, least=20):
    num_sampled = 0
    for row, ids in recorder.streams.items():
        expected = teacher_forced(model, ids, temperature, vocab_size)
        for position in range(1, len(ids)):
            if recorder.is_sampled[row][position]:
                num_sampled += 1
                assert recorder.log_probs[row][position] == pytest.approx(
                    expected[position - 1].item(), abs=1e-5
                )
    assert num_sampled >= least


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_log_probs_equal_teacher_forcing(tiny_model, temperature, attention):
    tiny_model.set_attn_implementation(attention)
    recorder = make_recorder()
    HFEngine(tiny_model, pad_id=0).rollout(PROMPTS, recorder, params(temperature=temperature), seed=3)
    assert [len(recorder.generations[row]) for row in range(5)] == [4, 1, 3, 2, 4]
    assert any(len(call) < 5 for call in recorder.calls)
    check_log_probs(tiny_model, recorder, temperature)


def test_the_sampled_rows_are_not_all_alike(tiny_model):
    # Guards the test above: a model without preferences would pass with the wrong positions.
    recorder = make_recorder()
    HFEngine(tiny_model, pad_id=0).rollout(PROMPTS, recorder, params(), seed=3)
    values = [value for row in recorder.log_probs.values() for value in row if value]
    assert max(values) - min(values) > 1.0


def naive_greedy(model, prompts, recorder, *, max_turn_tokens, vocab_size=512):
    """One row at a time, a whole forward per token, no cache."""
    for row in range(len(prompts)):
        is_over = False
        while not is_over:
            turn, log_probs = [], []
            while not turn or (turn[-1] not in STOP and len(turn) < max_turn_tokens):
                with torch.no_grad():
                    logits = model.eval()(torch.tensor([recorder.streams[row] + turn])).logits[
                        0, -1, :vocab_size
                    ]
                turn.append(int(logits.argmax()))
                log_probs.append(float(logits.log_softmax(-1)[turn[-1]]))
            reason = StopReason.STOP_TOKEN if turn[-1] in STOP else StopReason.LENGTH
            generation = type(
                "G", (), {"sampled_ids": tuple(turn), "log_probs": log_probs, "stop_reason": reason}
            )
            is_over = recorder([(row, generation)])[0] is None


def test_greedy_equals_a_naive_loop_over_single_rows(tiny_model):
    recorder, naive = make_recorder(), make_recorder()
    HFEngine(tiny_model, pad_id=0).rollout(PROMPTS, recorder, params(temperature=0.0), seed=0)
    naive_greedy(tiny_model, PROMPTS, naive, max_turn_tokens=9)
    assert recorder.streams == naive.streams
    assert recorder.is_sampled == naive.is_sampled
    for row in naive.streams:
        assert recorder.log_probs[row] == pytest.approx(naive.log_probs[row], abs=1e-5)
        assert [g.stop_reason for g in recorder.generations[row]] == [
            g.stop_reason for g in naive.generations[row]
        ]


def run(model, seed, **options):
    recorder = make_recorder()
    sampling = options.pop("params", params())
    HFEngine(model, pad_id=0, **options).rollout(PROMPTS, recorder, sampling, seed=seed)
    return recorder


def test_bitwise_repeatable_and_seeded(tiny_model):
    first, second, other = run(tiny_model, 5), run(tiny_model, 5), run(tiny_model, 6)
    assert first.streams == second.streams
    assert first.log_probs == second.log_probs
    assert first.streams != other.streams


@pytest.mark.parametrize("max_batch", [1, 2, 4])
def test_rows_do_not_depend_on_their_batch(tiny_model, max_batch):
    whole, chunked = run(tiny_model, 5), run(tiny_model, 5, max_batch=max_batch)
    assert whole.streams == chunked.streams
    check_log_probs(tiny_model, chunked, 1.0)


def test_padding_id_is_never_read(tiny_model):
    assert run(tiny_model, 5).log_probs == _with_pad(tiny_model, 511).log_probs


def _with_pad(model, pad_id):
    recorder = make_recorder()
    HFEngine(model, pad_id=pad_id).rollout(PROMPTS, recorder, params(), seed=5)
    return recorder


def test_columns_beyond_the_vocabulary_are_never_sampled(tiny_model):
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight[400:] *= 30
    assert any(max(g.sampled_ids) >= 400 for gs in run(tiny_model, 1).generations.values() for g in gs)
    bounded = run(tiny_model, 1, vocab_size=400)
    assert all(max(g.sampled_ids) < 400 for gs in bounded.generations.values() for g in gs)
    check_log_probs(tiny_model, bounded, 1.0, vocab_size=400)


def test_the_token_limit_ends_a_turn(tiny_model):
    recorder = Recorder([PROMPTS[1]], [[]], [1])
    sampling = SamplingParams(max_turn_tokens=100, stop_ids=(511,), max_total_tokens=len(PROMPTS[1]) + 4)
    HFEngine(tiny_model, pad_id=0).rollout([PROMPTS[1]], recorder, sampling, seed=0)
    (generation,) = recorder.generations[0]
    assert generation.stop_reason is StopReason.LENGTH
    assert len(generation.sampled_ids) == 4


def test_training_mode_comes_back_and_no_graph_is_built(tiny_model):
    tiny_model.train()
    seen = []

    def respond(ended):
        seen.append((tiny_model.training, torch.is_inference_mode_enabled()))
        raise KeyError("a tool broke")

    with pytest.raises(KeyError):
        HFEngine(tiny_model, pad_id=0).rollout(PROMPTS, respond, params(), seed=0)
    assert tiny_model.training
    # Tools and rewards may use torch themselves: they run outside inference mode.
    assert seen == [(False, False)]


def test_weights_arrive(tiny_model, tiny_checkpoint):
    other = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    engine = HFEngine(other, pad_id=0)
    engine.update_weights(tiny_model, 7)
    assert engine.policy_version == 7
    recorder = make_recorder()
    engine.rollout(PROMPTS, recorder, params(), seed=5)
    check_log_probs(tiny_model, recorder, 1.0)
    engine.update_weights({name: value * 0 for name, value in tiny_model.state_dict().items()}, 8)
    assert (engine.policy_version, other.model.norm.weight.abs().sum().item()) == (8, 0.0)


def test_no_prompts_is_no_work(tiny_model):
    HFEngine(tiny_model, pad_id=0).rollout([], make_recorder(), params(), seed=0)


def test_bad_prompts_and_limits_are_named(tiny_model):
    engine = HFEngine(tiny_model, pad_id=0)
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        engine.rollout([(1,), ()], make_recorder(), params(), seed=0)
    with pytest.raises(ValueError, match=r"prompt 0 has 17 tokens.*fewer than the 17"):
        engine.rollout([PROMPTS[1]], make_recorder(), params(max_total_tokens=17), seed=0)
    with pytest.raises(ValueError, match="max_total_tokens is 5000, but the model has 4096"):
        engine.rollout([(1,)], make_recorder(), params(max_total_tokens=5000), seed=0)
    with pytest.raises(ValueError, match="max_batch must be 1 or more, got 0"):
        HFEngine(tiny_model, pad_id=0, max_batch=0)


def test_an_observation_without_room_is_an_error(tiny_model):
    engine = HFEngine(tiny_model, pad_id=0)
    with pytest.raises(RolloutError, match="observation of row 0 has 50 tokens"):
        engine.rollout(
            [(1, 2)], lambda ended: [(3,) * 50 for _ in ended], params(max_total_tokens=40), seed=0
        )


def test_broken_weights_are_an_error(tiny_model):
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(float("nan"))
    for sampling in (params(), params(temperature=0.0), params(top_p=0.5)):
        with pytest.raises(RolloutError, match="row 0 a log-probability of nan"):
            HFEngine(tiny_model, pad_id=0).rollout(PROMPTS, make_recorder(), sampling, seed=0)


def test_every_token_is_read_exactly_once(tiny_model):
    reads = []

    def record(module, args, kwargs):
        shape = kwargs["input_ids"].shape
        reads.append((shape, int(kwargs["attention_mask"][:, -shape[1] :].sum())))

    tiny_model.register_forward_pre_hook(record, with_kwargs=True)
    recorder = make_recorder()
    HFEngine(tiny_model, pad_id=0).rollout(PROMPTS, recorder, params(), seed=3)
    # The last token of a row is never needed again.
    assert sum(num_read for _, num_read in reads) == sum(len(ids) - 1 for ids in recorder.streams.values())
    assert reads[0][0] == (5, 40)


def test_a_long_observation_is_one_read_when_no_row_samples(tiny_model):
    shapes = []
    hook = tiny_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    recorder = Recorder([(1, 2, 3)], [[50]], [2])
    HFEngine(tiny_model, pad_id=0).rollout([(1, 2, 3)], recorder, params(max_turn_tokens=1), seed=0)
    # The prompt, then the sampled token with the whole observation behind it.
    assert shapes == [(1, 3), (1, 51)]
    hook.remove()
    check_log_probs(tiny_model, recorder, 1.0, least=2)


def test_sliding_windows(tiny_checkpoint):
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    config.use_sliding_window, config.sliding_window = True, 6
    config.layer_types = ["sliding_attention", "full_attention"]
    model = sharpened(AutoModelForCausalLM.from_pretrained(tiny_checkpoint, config=config))
    recorder = make_recorder()
    HFEngine(model, pad_id=0).rollout(PROMPTS, recorder, params(), seed=3)
    check_log_probs(model, recorder, 1.0)


def test_a_recurrent_model_is_refused(tiny_model):
    tiny_model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ModelError, match=r"Qwen3ForCausalLM keeps a state .*\(LinearAttentionLayer\)"):
        HFEngine(tiny_model, pad_id=0).rollout(PROMPTS, make_recorder(), params(), seed=0)


def test_a_long_observation_is_one_read_beside_rows_that_sample(tiny_model):
    shapes, widths = [], []

    def record(module, args, kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        widths.append(kwargs["attention_mask"].shape[-1])

    hook = tiny_model.register_forward_pre_hook(record, with_kwargs=True)
    # All turns end together: the row with the long prompt is over, one reads 60 tokens, one goes on sampling.
    prompts = [PROMPTS[3], PROMPTS[1], PROMPTS[2]]
    recorder = Recorder(prompts, [[], [60], [1, 1]], [1, 2, 3])
    sampling = params(max_turn_tokens=20, stop_ids=(511,))
    HFEngine(tiny_model, pad_id=0).rollout(prompts, recorder, sampling, seed=3)
    hook.remove()
    # The last sampled token goes with the observation; two of the other row are padded to as many.
    assert shapes[20] == (2, 61)
    # The padding leaves the cache, that of the long prompt too: no mask is wider than the longest row.
    assert widths[19:22] == [40 + 19, 17 + 20 + 60, 17 + 20 + 60 + 1]
    check_log_probs(tiny_model, recorder, 1.0)


@pytest.mark.parametrize(
    ("lengths", "width"),
    [
        ([1, 1, 1], 1),
        ([50], 50),
        # One reader among a few is let through; among many it reads beside them.
        ([1, 1, 1, 60], 60),
        ([1] * 31 + [60], 1),
        ([1] * 4 + [60] * 28, 60),
        ([3, 3, 200], 200),
    ],
)
def test_a_pass_is_as_wide_as_its_tokens_are_worth(lengths, width):
    assert _read_width(lengths) == width


@pytest.mark.gpu
def test_log_probs_on_a_gpu(tiny_model):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    recorder = make_recorder()
    HFEngine(tiny_model.cuda(), pad_id=0).rollout(PROMPTS, recorder, params(temperature=0.7), seed=3)
    check_log_probs(tiny_model.cpu(), recorder, 0.7)
