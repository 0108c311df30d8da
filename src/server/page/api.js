// The server: its models, and answers that come piece by piece.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(path, key, options = {}) {
  const headers = { ...(options.body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. Is it still running?");
  }
  if (!response.ok) {
    const text = await response.text();
    throw new ApiError(response.status, messageOf(text) || `The server answered ${response.status} ${response.statusText}`);
  }
  return response;
}

function messageOf(text) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text.slice(0, 500);
  }
}

export async function models(key) {
  const { data } = await (await request("v1/models", key)).json();
  return data.map((model) => model.id);
}

/** Yields {reasoning, content, usage, finish}, each where there is one. */
export async function* answer(body, key, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", key, { method: "POST", body: JSON.stringify(asked), signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const { choices, usage, error } = JSON.parse(data);
    if (error) throw new ApiError(error.code ?? 500, error.message);
    const [choice] = choices ?? [];
    yield { reasoning: choice?.delta.reasoning_content, content: choice?.delta.content, finish: choice?.finish_reason, usage };
  }
  throw new ApiError(0, "The answer broke off: the server closed the connection.");
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError(0, "The answer broke off: the connection was lost.");
      });
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
