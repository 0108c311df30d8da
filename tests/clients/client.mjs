// The openai package against a running server: `node client.mjs URL KEY`. The models are those of client.py.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "What colour is the sky?" }];
const chat = (options = {}) => client.chat.completions.create({ model: "demo", messages, ...options });

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.deepEqual(models, ["demo", "tools"]);

// Chat, whole and streamed.
const answer = await chat();
assert.equal(answer.choices[0].message.content, "The sky is blue.");
let text = "";
let usage;
for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, "The sky is blue.");
assert.equal(usage.completion_tokens, answer.usage.completion_tokens);
const stream = client.chat.completions.stream({ model: "demo", messages });
assert.equal(await stream.finalContent(), "The sky is blue.");

// A stream that is broken off.
const endless = await client.completions.create({ model: "demo", prompt: "Once", max_tokens: 10_000_000, ignore_eos: true, stream: true });
for await (const chunk of endless) {
  assert.equal(chunk.object, "text_completion");
  break;
}

// Log-probabilities.
const { content } = (await chat({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs;
assert.equal(content.map((token) => token.token).join(""), "The sky is blue.");
assert.ok(content.every((token) => token.top_logprobs.length === 2));

// Structured output and functions.
const parameters = {
  type: "object",
  properties: { unit: { enum: ["celsius", "kelvin"] } },
  required: ["unit"],
  additionalProperties: false,
};
const parsed = await client.chat.completions.parse({
  model: "tools",
  messages,
  response_format: { type: "json_schema", json_schema: { name: "weather", schema: parameters, strict: true } },
});
assert.ok(["celsius", "kelvin"].includes(JSON.parse(parsed.choices[0].message.content).unit));
const tools = [{ type: "function", function: { name: "weather", parameters, strict: true } }];
const called = await chat({ model: "tools", tools, tool_choice: "required" });
const [call] = called.choices[0].message.tool_calls;
assert.equal(call.function.name, "weather");
assert.ok(["celsius", "kelvin"].includes(JSON.parse(call.function.arguments).unit));
const streamed = client.chat.completions.stream({ model: "tools", messages, tools, tool_choice: "required" });
assert.equal((await streamed.finalMessage()).tool_calls[0].function.arguments, call.function.arguments);

// Errors are of the package's own kinds.
await assert.rejects(chat({ foo: 1 }), (error) => error instanceof OpenAI.BadRequestError && error.param === "foo");
await assert.rejects(chat({ model: "nothing" }), OpenAI.NotFoundError);
await assert.rejects(client.withOptions({ apiKey: "wrong" }).models.list(), OpenAI.AuthenticationError);
