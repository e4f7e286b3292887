"""Asks a server with the official client. Usage: client.py URL KEY DATA; every function whose name starts with `check` is one check."""

import base64
import concurrent.futures
import sys
import traceback

import openai
import pyarrow.parquet

URL, KEY, DATA = sys.argv[1:]
CLIENT = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=120)
MODEL = CLIENT.models.list().data[0].id
QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]


def chat(**options):
    options = {"model": MODEL, "messages": QUESTION, "max_tokens": 24, **options}
    return CLIENT.chat.completions.create(**options)


def complete(prompt, **options):
    return CLIENT.completions.create(**{"model": MODEL, "prompt": prompt, "max_tokens": 12, **options})


def fails(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def pictures(count):
    rows = pyarrow.parquet.read_table(DATA).slice(0, count).to_pylist()
    for row in rows:
        url = "data:image/png;base64," + base64.b64encode(row["images"][0]["bytes"]).decode()
        text = row["problem"].replace("<image>", "")
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        yield [{"role": "user", "content": parts}], row["answer"]


def collect(stream):
    """Texts, reasons and tokens by choice, and the usage."""
    texts, reasons, tokens, logprobs, usage = {}, {}, {}, {}, None
    for piece in stream:
        usage = usage or piece.usage
        for choice in piece.choices:
            at = choice.index
            assert at not in reasons, "nothing comes after the end"
            said = choice.text if hasattr(choice, "text") else choice.delta.content
            texts[at] = texts.get(at, "") + (said or "")
            tokens.setdefault(at, []).extend(getattr(choice, "token_ids", None) or [])
            if choice.logprobs and choice.logprobs.content:
                logprobs.setdefault(at, []).extend(choice.logprobs.content)
            if choice.finish_reason:
                reasons[at] = choice.finish_reason
    return texts, reasons, tokens, logprobs, usage


def check_models():
    models = CLIENT.models.list().data
    assert [model.id for model in models] == [MODEL]
    assert CLIENT.models.retrieve(MODEL).owned_by == "metis-flow"
    fails(openai.NotFoundError, lambda: CLIENT.models.retrieve("other"))


def check_chat_has_the_shape_that_the_client_knows():
    answer = chat(temperature=0)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.finish_reason == "stop"
    assert choice.message.content and "<|im_end|>" not in choice.message.content
    assert choice.logprobs is None
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.choices == chat(temperature=0).choices


def check_the_model_reads_pictures():
    right = 0
    for messages, answer in pictures(12):
        said = chat(messages=messages, temperature=0).choices[0].message.content
        right += f"\\boxed{{{answer}}}" in said
    assert right >= 3, right


def check_a_stream_says_what_a_whole_answer_says():
    options = {"n": 3, "seed": 7, "temperature": 1.5, "logprobs": True, "top_logprobs": 2}
    options["extra_body"] = {"return_token_ids": True}
    whole = chat(**options)
    texts, reasons, tokens, logprobs, usage = collect(chat(stream=True, stream_options={"include_usage": True}, **options))
    assert len(whole.choices) == 3 and usage == whole.usage
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert reasons[choice.index] == choice.finish_reason
        assert tokens[choice.index] == choice.token_ids
        assert_close(logprobs[choice.index], choice.logprobs.content)
    assert whole.usage.completion_tokens == sum(len(choice.token_ids) for choice in whole.choices)
    assert len({choice.message.content for choice in whole.choices}) > 1
    assert isinstance(whole.prompt_token_ids, list) and len(whole.prompt_token_ids) == usage.prompt_tokens


def assert_close(streamed, whole):
    """The same tokens; the last bits of log-probabilities depend on what else is in the running batch."""
    assert len(streamed) == len(whole)
    for one, other in zip(streamed, whole):
        assert one.token == other.token and one.bytes == other.bytes
        assert abs(one.logprob - other.logprob) < 1e-4, (one.logprob, other.logprob)
        assert [top.token for top in one.top_logprobs] == [top.token for top in other.top_logprobs]


def check_logprobs_are_those_of_the_most_likely_token_when_greedy():
    content = chat(temperature=0, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
        assert abs(token.top_logprobs[0].logprob - token.logprob) < 1e-4
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert bytes(token.bytes).decode() == token.token


def check_a_seed_repeats_and_no_seed_differs():
    def texts(**options):
        return [choice.message.content for choice in chat(n=4, temperature=2, **options).choices]

    assert texts(seed=5) == texts(seed=5)
    assert texts(seed=5) != texts(seed=6)
    assert texts() != texts()


def check_stop_strings_never_show():
    options = {"temperature": 3.0, "extra_body": {"ignore_eos": True}, "max_tokens": 60}
    for seed in range(4):
        plain = chat(seed=seed, **options).choices[0]
        assert plain.finish_reason == "length"
        text = plain.message.content
        stop = text[len(text) // 2 : len(text) // 2 + 3]
        cut = text[: text.index(stop)]
        whole = chat(seed=seed, stop=[stop, "never said"], **options).choices[0]
        assert (whole.message.content, whole.finish_reason) == (cut, "stop"), (stop, text)
        stream = chat(seed=seed, stop=stop, stream=True, **options)
        texts, reasons, _, _, _ = collect(stream)
        assert (texts[0], reasons[0]) == (cut, "stop")


def check_text_is_whole_characters_even_when_tokens_are_not():
    options = {"temperature": 20.0, "max_tokens": 80, "extra_body": {"ignore_eos": True, "return_token_ids": True}}
    for seed in range(4):
        whole = chat(seed=seed, **options).choices[0]
        pieces = [piece.choices[0].delta.content or "" for piece in chat(seed=seed, stream=True, **options) if piece.choices]
        assert "".join(pieces) == whole.message.content
        "".join(pieces).encode()


def check_completions_take_text_texts_and_tokens():
    one = complete("1 + 2 =", temperature=0, extra_body={"return_token_ids": True})
    assert one.object == "text_completion" and one.usage.completion_tokens <= 12
    ids = one.choices[0].prompt_token_ids
    assert complete(ids, temperature=0).choices[0].text == one.choices[0].text
    many = complete(["1 + 2 =", "7 - 5 ="], temperature=0, n=1)
    assert [choice.index for choice in many.choices] == [0, 1]
    assert many.choices[0].text == one.choices[0].text
    lists = complete([ids, ids], temperature=1, n=2, seed=3)
    assert len(lists.choices) == 4
    # The same prompt and the same seed draw the same.
    assert [choice.text for choice in lists.choices[:2]] == [choice.text for choice in lists.choices[2:]]
    logged = complete("1 + 2 =", temperature=0, logprobs=2).choices[0].logprobs
    assert len(logged.tokens) == len(logged.token_logprobs) == len(logged.top_logprobs) == len(logged.text_offset)
    texts, reasons, _, _, _ = collect(complete("1 + 2 =", temperature=0, stream=True))
    assert texts[0] == one.choices[0].text and reasons[0] == one.choices[0].finish_reason


def check_options_of_vllm():
    limits = {"min_tokens": 9, "top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "return_token_ids": True}
    answer = chat(temperature=1, seed=1, extra_body=limits).choices[0]
    assert len(answer.token_ids) >= 9
    first = chat(temperature=0, extra_body={"return_token_ids": True}).choices[0].token_ids[1]
    ended = chat(temperature=0, extra_body={"stop_token_ids": [first], "return_token_ids": True}).choices[0]
    assert ended.token_ids[-1] == first and ended.finish_reason == "stop"
    greedy = chat(temperature=1, extra_body={"top_k": 1}).choices[0].message.content
    assert greedy == chat(temperature=0).choices[0].message.content


def check_wrong_requests_say_what_is_wrong():
    long = [{"role": "user", "content": "3 + 4 " * 2000}]
    error = fails(openai.BadRequestError, lambda: chat(messages=long))
    assert error.code == "context_length_exceeded" and "tokens" in error.message
    error = fails(openai.BadRequestError, lambda: chat(max_tokens=100_000))
    assert error.code == "context_length_exceeded"
    error = fails(openai.NotFoundError, lambda: chat(model="other"))
    assert error.code == "model_not_found" and error.param == "model"
    assert fails(openai.BadRequestError, lambda: chat(temperature=-1)).param == "temperature"
    assert fails(openai.BadRequestError, lambda: chat(extra_body={"temprature": 1})).param == "temprature"
    assert fails(openai.BadRequestError, lambda: chat(messages=[])).param == "messages"
    assert fails(openai.BadRequestError, lambda: complete([99_999_999])).param == "prompt"
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    error = fails(openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": picture}]))
    assert "image 0" in error.message
    far = [{"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}]
    error = fails(openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": far}]))
    assert "data:" in error.message
    error = fails(openai.BadRequestError, lambda: list(chat(messages=long, stream=True)))
    assert error.status_code == 400


def check_a_wrong_key_stays_out():
    if not KEY.startswith("k"):
        return
    stranger = openai.OpenAI(base_url=URL, api_key="other", max_retries=0)
    fails(openai.AuthenticationError, stranger.models.list)
    call = lambda: stranger.chat.completions.create(model=MODEL, messages=QUESTION)
    assert fails(openai.AuthenticationError, call).code == "invalid_api_key"


def check_twenty_at_a_time_get_what_each_gets_alone():
    def ask(seed):
        messages = [{"role": "user", "content": f"What is {seed} + {seed}?"}]
        return chat(messages=messages, seed=seed, temperature=1).choices[0].message.content

    alone = [ask(seed) for seed in range(20)]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        together = list(pool.map(ask, range(20)))
    same = sum(a == b for a, b in zip(alone, together))
    # Sums of floats may differ with the size of the batch, and with them a token once in a long while.
    assert same >= 18, same


failed = 0
for name, check in list(globals().items()):
    if name.startswith("check"):
        try:
            check()
            print("ok", name)
        except Exception:
            failed += 1
            print("FAILED", name)
            traceback.print_exc(file=sys.stdout)
sys.exit(failed > 0)
