"""`mlx_lm serve` under load, and any server with OpenAI's interface: requests per second and time to the first token.

    load.py storm  [--binary target/release/mlx_lm] [--seconds 60] [--model-root PATH]
    load.py rate URL [--model NAME] [--clients 1,8,32] [--seconds 10]
    load.py overhead [--binary target/release/mlx_lm]
    load.py kills [--binary target/release/mlx_lm] [--times 100]

`storm` starts the server with the demo model, or with another one, which completes short texts: 200 clients at once for a while, then 2,000 requests of which a third hang up at random
moments. Each answer must be the one that `mlx_lm` gives for the prompt and the seed, no request may fail but with 429, all sequences must
be freed, and the memory after a second round must be that after the first within 5 %.

`rate` sends a question to `/v1/chat/completions`; or, with `--ids`, for checkpoints without a chat template, 32 random token ids to
`/v1/completions`.

`kills` ends a server with SIGKILL at random moments while it writes its prompt cache. Each next start must warn of nothing, clear away
what was half written, and answer the same.

`overhead` takes what the engine says of its time for a line of a batch from what a client waits for the same. Nothing but Python's own library is needed.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import tempfile
import time
from urllib.parse import urlsplit

PROMPTS = [
    {"messages": [{"role": "user", "content": f"{question} ({i})"}], "max_tokens": 8 + 5 * (i % 6), "temperature": i % 3 / 2, "seed": i}
    for i, question in enumerate(["Why is the sky blue?", "Tell me a story.", "What colour is the sea?", "Hello!"] * 8)
]


TEXTS = [
    {"prompt": text, "max_tokens": 2 + i % 5, "temperature": i % 3 / 2, "seed": i, "ignore_eos": True}
    for i, text in enumerate(["sky", "stories", "the sea", "Hello!"] * 8)
]


class Hung(Exception):
    """This client hung up."""


async def ask(url, path, body, hang_up_after=None, headers=""):
    """Status, the text of the answer, seconds to its first token and to its end."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        data = json.dumps(body).encode() if body is not None else b""
        method = "POST" if data else "GET"
        head = f"{method} {path} HTTP/1.0\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        if hang_up_after is not None:
            await asyncio.sleep(hang_up_after)
            raise Hung
        status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        text, first, raw = "", None, b""
        while line := await reader.readline():
            raw += line
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return 500, line.decode(), first, time.perf_counter() - began
            for choice in event["choices"]:
                piece = choice.get("delta", {}).get("content") or choice.get("text") or ""
                if piece and first is None:
                    first = time.perf_counter() - began
                text += piece
        return status, text or raw.decode(errors="replace"), first, time.perf_counter() - began
    finally:
        writer.close()


async def clients(n, seconds, once):
    """Let `n` clients do `once` again and again; all they got."""
    until = time.monotonic() + seconds
    results = []

    async def client():
        while time.monotonic() < until:
            results.append(await once())

    await asyncio.gather(*(client() for _ in range(n)))
    return results


def milliseconds(times):
    times = sorted(times)
    return f"{1000 * statistics.median(times):.0f} ms (95 %: {1000 * times[len(times) * 95 // 100]:.0f} ms)"


def question(options):
    """A path and a body."""
    body = {"max_tokens": options.tokens, "temperature": 0, "stream": True, **json.loads(options.extra)}
    if options.model:
        body["model"] = options.model
    if options.ids:
        return "/v1/completions", {**body, "prompt": [random.randrange(100, options.ids) for _ in range(32)]}
    text = f"Tell me a story about the number {random.random()}."
    return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]}


async def rate(options):
    url = urlsplit(options.url)
    for n in map(int, options.clients.split(",")):
        async def once():
            return await ask(url, *question(options))

        await once()
        began = time.monotonic()
        results = await clients(n, options.seconds, once)
        took = time.monotonic() - began
        failed = [result for result in results if result[0] != 200]
        firsts = [first for status, _, first, _ in results if status == 200 and first is not None]
        print(f"{n} clients: {len(results) / took:.2f} requests/s, first token after {milliseconds(firsts)}, {len(failed)} failed", flush=True)


def expected(binary, model, prompts):
    """What `mlx_lm` answers."""
    names = {"temperature": "temp"}
    lines = "\n".join(json.dumps({names.get(k, k): v for k, v in prompt.items()}) for prompt in prompts)
    done = subprocess.run([binary, "--batch", "-", *model], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line)["text"] for line in done.stdout.splitlines()]


async def overhead(options):
    """Medians over 100 requests, one after another."""
    def line(tokens, i):
        return {"messages": [{"role": "user", "content": f"Tell me a story ({i})."}], "max_tokens": tokens, "ignore_eos": True}

    server = subprocess.Popen([options.binary, "serve", "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        url = urlsplit(next(m[1] for said in server.stderr if (m := re.search(r"listening at (\S+),", said))))
        beyond = {}
        for tokens in (1, 129):
            lines = "\n".join(json.dumps(line(tokens, i)) for i in range(100))
            done = subprocess.run([options.binary, "--batch", "-", "--parallel", "1"], input=lines, capture_output=True, text=True)
            told = [json.loads(result) for result in done.stdout.splitlines()]
            read = [t["prompt_tokens"] / t["prompt_tps"] + (tokens - 1) / (t["generation_tps"] or 1) for t in told]
            for stream in (False, True):
                waited = [(await ask(url, "/v1/chat/completions", {**line(tokens, i), "stream": stream}))[3] for i in range(100)]
                beyond[tokens, stream] = statistics.median(waited) - statistics.median(read)
        for stream in (False, True):
            request = beyond[1, stream]
            token = (beyond[129, stream] - request) / 128
            print(f"{'streamed' if stream else 'whole'}: {1e3 * request:.2f} ms a request, {1e6 * token:.0f} us a token")
    finally:
        server.terminate()
        server.wait(60)


async def kills(options):
    story = "The old lighthouse had been dark for a hundred years. Nobody went there but a fox called Lucy. " * 3
    hit = partial = 0
    answers = set()
    with tempfile.TemporaryDirectory() as folder:
        def halves():
            return [name for name in os.listdir(folder) if name.endswith("-partial")]

        # The first time tells how long a server takes to end, the last one what is left.
        takes = 0.0
        for i in range(options.times + 2):
            is_killed = 0 < i <= options.times
            command = [options.binary, "serve", "--port", "0", "--prompt-cache-dir", folder]
            server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            said = []
            try:
                for line in server.stderr:
                    said.append(line)
                    if m := re.search(r"listening at (\S+),", line):
                        break
                url = urlsplit(m[1])
                for beginning in ("", f"{i}. ", f"{i}. "):
                    body = {"prompt": beginning + story + "One day", "max_tokens": 4, "temperature": 0}
                    status, text, _, _ = await ask(url, "/v1/completions", body)
                    assert status == 200, text
                    if not beginning:
                        answers.add(json.loads(text)["choices"][0]["text"])
                assert not halves(), halves()
                server.terminate()
                began = time.perf_counter()
                if is_killed:
                    time.sleep(random.uniform(0, takes))
                    server.kill()
                code = server.wait(60)
                takes = takes or time.perf_counter() - began
                hit += is_killed and code == -9
                partial += len(halves())
                said += server.stderr
            finally:
                server.kill()
            assert not any("WARN" in line or "ERROR" in line for line in said), said
        assert not halves() and len(answers) == 1, (halves(), answers)
        print(f"{options.times} kills within {1000 * takes:.0f} ms: {hit} before the end, {partial} in the midst of a file; "
              f"{len(os.listdir(folder))} files at the end, no warning, one answer")


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024


async def running(url):
    _, metrics, _, _ = await ask(url, "/metrics", None)
    return int(re.search(r"^mlx_lm_running_sequences (\d+)", metrics, re.M)[1])


async def storm(options):
    model = ["--model-root", options.model_root] if options.model_root else []
    prompts, path = (TEXTS, "/v1/completions") if model else (PROMPTS, "/v1/chat/completions")
    answers = expected(options.binary, model, prompts)
    server = subprocess.Popen([options.binary, "serve", "--port", "0", *model], stderr=subprocess.PIPE, text=True)
    try:
        address = next(m[1] for line in server.stderr if (m := re.search(r"listening at (\S+),", line)))
        url = urlsplit(address)
        refused = failed = wrong = 0

        async def once(hang_up=False):
            nonlocal refused, failed, wrong
            i = random.randrange(len(prompts))
            stream = random.random() < 0.7
            try:
                status, text, first, took = await ask(
                    url, path, {**prompts[i], "stream": stream}, random.random() * 0.5 if hang_up else None
                )
            except Hung:
                return 0, None
            if status == 429:
                refused += 1
            elif status != 200:
                failed += 1
                print("failed:", status, text[:300])
            else:
                if not stream:
                    choice = json.loads(text)["choices"][0]
                    text = choice["text"] if model else choice["message"]["content"]
                wrong += text != answers[i]
            return status, first

        async def rounds():
            results = await clients(200, options.seconds, once)
            gate = asyncio.Semaphore(200)

            async def one(i):
                async with gate:
                    return await once(i % 3 == 0)

            await asyncio.gather(*(one(i) for i in range(2000)))
            until = time.monotonic() + 60
            while await running(url) and time.monotonic() < until:
                await asyncio.sleep(0.05)
            return results

        results = await rounds()
        before = resident(server.pid)
        results += await rounds()
        after = resident(server.pid)
        left = await running(url)
        firsts = [first for status, first in results if status == 200 and first is not None]
        print(f"200 clients, 2 times {options.seconds:.0f} s: {len(results) / (2 * options.seconds):.1f} requests/s, "
              f"first token after {milliseconds(firsts)}")
        print(f"refused with 429: {refused}, failed: {failed}, other answers than mlx_lm's: {wrong}, sequences left: {left}")
        print(f"memory: {before:.0f} MB after the first round, {after:.0f} MB after the second ({100 * (after / before - 1):+.1f} %)")
        assert failed == wrong == left == 0 and after < 1.05 * before
    finally:
        server.terminate()
        print("exit code:", server.wait(60))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
commands = parser.add_subparsers(required=True)
command = commands.add_parser("storm")
command.add_argument("--binary", default="target/release/mlx_lm")
command.add_argument("--seconds", type=float, default=60)
command.add_argument("--model-root")
command.set_defaults(run=storm)
command = commands.add_parser("rate")
command.add_argument("url")
command.add_argument("--model")
command.add_argument("--clients", default="1,8,32")
command.add_argument("--seconds", type=float, default=10)
command.add_argument("--tokens", type=int, default=32)
command.add_argument("--ids", type=int, metavar="BELOW")
command.add_argument("--extra", default="{}", metavar="JSON", help="further fields of each request")
command.set_defaults(run=rate)
command = commands.add_parser("kills")
command.add_argument("--binary", default="target/release/mlx_lm")
command.add_argument("--times", type=int, default=100)
command.set_defaults(run=kills)
command = commands.add_parser("overhead")
command.add_argument("--binary", default="target/release/mlx_lm")
command.set_defaults(run=overhead)
options = parser.parse_args()
asyncio.run(options.run(options))
