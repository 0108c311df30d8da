"""The openai package against a running server: `python client.py URL KEY`.

The server has two models: the demo model as `demo`, and as `tools` the same with a chat template that calls functions.
"""

import json
import sys
from enum import Enum

import openai
from pydantic import BaseModel

url, key = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
QUESTION = [{"role": "user", "content": "What colour is the sky?"}]


def raises(kind, call, **expected):
    try:
        call()
    except kind as error:
        for name, value in expected.items():
            assert getattr(error, name) == value, (name, getattr(error, name), value)
    else:
        raise AssertionError(f"no {kind.__name__}")


def chat(**options):
    return client.chat.completions.create(**{"model": "demo", "messages": QUESTION, **options})


assert [model.id for model in client.models.list()] == ["demo", "tools"]
assert client.models.retrieve("tools").owned_by == "mlx_lm"

# Chat, whole and streamed.
answer = chat()
assert answer.choices[0].message.content == "The sky is blue.", answer
assert answer.choices[0].finish_reason == "stop"
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
assert answer.usage.prompt_tokens_details.cached_tokens == 0
chunks = list(chat(stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "The sky is blue."
assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
with client.chat.completions.stream(model="demo", messages=QUESTION) as stream:
    events = list(stream)
    assert stream.get_final_completion().choices[0].message.content == "The sky is blue."
assert "content.delta" in {event.type for event in events}
story = [{"role": "user", "content": "Tell me a story."}]
several = chat(messages=story, n=2, temperature=1, seed=3, max_tokens=12, stop=["."], user="somebody")
assert len({choice.message.content for choice in several.choices}) == 2, several

# Log-probabilities.
content = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
assert "".join(token.token for token in content) == "The sky is blue."
assert all(len(token.top_logprobs) == 3 and bytes(token.bytes).decode() == token.token for token in content)

# Completions.
completion = client.completions.create(model="demo", prompt=["Once upon a", "The"], max_tokens=3, logprobs=2)
assert len(completion.choices) == 2 and completion.choices[0].text.startswith(" time"), completion
assert len(completion.choices[0].logprobs.tokens) == 3


# Structured output.
class Unit(str, Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


class Weather(BaseModel):
    unit: Unit
    is_warm: bool


parsed = client.chat.completions.parse(model="tools", messages=QUESTION, response_format=Weather, temperature=1, seed=1)
assert isinstance(parsed.choices[0].message.parsed, Weather), parsed

# Functions.
tools = [openai.pydantic_function_tool(Weather, name="weather")]
called = client.chat.completions.parse(model="tools", messages=QUESTION, tools=tools, tool_choice="required")
call = called.choices[0].message.tool_calls[0]
assert call.function.name == "weather" and isinstance(call.function.parsed_arguments, Weather), called
assert called.choices[0].finish_reason == "tool_calls"
turns = QUESTION + [called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "20"}]
assert chat(model="tools", messages=turns, max_tokens=2).usage.completion_tokens <= 2
named = {"type": "function", "function": {"name": "weather"}}
streamed = chat(model="tools", tools=tools, tool_choice=named, stream=True)
arguments = "".join(c.choices[0].delta.tool_calls[0].function.arguments for c in streamed if c.choices[0].delta.tool_calls)
Weather.model_validate(json.loads(arguments))

# Errors are of the package's own kinds.
raises(openai.BadRequestError, lambda: chat(extra_body={"foo": 1}), param="foo", code="unknown_parameter")
raises(openai.BadRequestError, lambda: chat(temperature=-1), param="temperature", type="invalid_request_error")
raises(openai.NotFoundError, lambda: chat(model="nothing"), param="model", code="model_not_found")
stranger = client.with_options(api_key="wrong")
raises(openai.AuthenticationError, lambda: stranger.models.list(), code="invalid_api_key")
