// The page with a server that says what a test wants: what a model cannot be made to say, or not at the right moment.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";

const PAGE = new URL("../../src/server/page/", import.meta.url);
const TYPES = { html: "text/html; charset=utf-8", css: "text/css; charset=utf-8", js: "text/javascript; charset=utf-8" };
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/** `replies` are called with a request's body, one after another; each gives a status and an error, or yields deltas. */
export async function serve() {
  const mock = { replies: [], requests: [], key: null, open: 0 };
  const server = createServer(async (request, response) => {
    const json = (status, value) => response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
    const file = /^\/(?:([a-z]+\.(?:html|css|js)))?$/.exec(request.url);
    if (file) {
      const name = file[1] ?? "index.html";
      const text = await readFile(new URL(name, PAGE));
      return response.writeHead(200, { "content-type": TYPES[name.split(".")[1]], "content-security-policy": POLICY }).end(text);
    }
    if (mock.key && request.headers.authorization !== `Bearer ${mock.key}`) {
      return json(401, { error: { message: "this server wants an API key", type: "invalid_request_error" } });
    }
    if (request.url === "/v1/models") return json(200, { object: "list", data: [{ id: "small" }, { id: "large-instruct-4bit" }] });
    let body = "";
    for await (const piece of request) body += piece;
    mock.requests.push(JSON.parse(body));
    const reply = mock.replies.shift() ?? (() => echo(mock.requests.at(-1)));
    const { status, error, deltas } = await reply();
    if (status) return json(status, { error: { message: error } });
    response.writeHead(200, { "content-type": "text/event-stream" });
    mock.open++;
    let gone = false;
    response.on("close", () => ((gone = true), mock.open--));
    const event = (value) => response.write(`data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`);
    let tokens = 0;
    response.write(": reading\n\n");
    for await (const delta of deltas) {
      if (gone) return;
      if (delta.error) event(delta);
      else event({ choices: [{ index: 0, delta, finish_reason: null }] });
      tokens++;
    }
    event({ choices: [{ index: 0, delta: {}, finish_reason: "stop" }] });
    event({ choices: [], usage: { prompt_tokens: 20, completion_tokens: tokens, prompt_tokens_details: { cached_tokens: 12 } } });
    event("[DONE]");
    response.end();
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return Object.assign(mock, { address: `http://127.0.0.1:${server.address().port}/`, close: () => server.closeAllConnections() ?? server.close() });
}

/** An answer in pieces of a few characters. */
export function saying(content, reasoning = "") {
  return () => ({ deltas: pieces(content, reasoning) });
}

async function* pieces(content, reasoning) {
  for (const piece of reasoning.match(/[^]{1,5}/g) ?? []) yield { reasoning_content: piece };
  for (const piece of content.match(/[^]{1,7}/g) ?? []) yield { content: piece };
}

const echo = ({ messages }) => ({ deltas: pieces(`You said: ${messages.at(-1).content}`, "") });

/** An answer without end: a word for each time that the event loop comes round. */
export function endless() {
  return {
    deltas: (async function* () {
      for (let i = 0; ; i++) {
        yield { content: `word ${i} ` };
        await new Promise((next) => setTimeout(next, 5));
      }
    })(),
  };
}
