// The page in a browser: `node browser.mjs [SERVER]`. What a model cannot be made to say comes from a mock; with the address of a
// running server, its page is talked to as well. Screenshots go to `screenshots/`.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import axe from "axe-core";
import { chromium } from "playwright-core";

import { endless, saying, serve } from "./mock.mjs";

const SHOTS = new URL("screenshots/", import.meta.url).pathname;
const SIZES = [
  { width: 1280, height: 860 },
  { width: 390, height: 844 },
];
const ANSWER = `Light is scattered by the **air**, and blue light much more than *red*.

## In numbers

| Colour | Scattered |
|---|---:|
| blue | 4.4 |
| red | 1 |

\`\`\`python
def ratio(nm):
    return (650 / nm) ** 4  # <b>
\`\`\`

1. Sunlight enters the air.
2. Blue goes in all directions:
   - so the sky is blue

See [Rayleigh scattering](https://en.wikipedia.org/wiki/Rayleigh_scattering).`;
const ATTACK = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>

[run](javascript:document.title='owned') [data](data:text/html,owned) <a href="javascript:1">x</a> ![i](https://example.com/i.png)

\`\`\`"><script>document.title='owned'</script>
</code><img src=x onerror=alert(1)>
\`\`\`

# <svg onload="document.title='owned'">

${"> ".repeat(5000)}deep`;

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
// Root has no sandbox, a container little shared memory.
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
await mkdir(SHOTS, { recursive: true });
let passed = 0;

/** Run `test` in a fresh browser profile at `address`; what the console complains of fails it, but for `expected`. */
async function check(name, address, { size = SIZES[0], colorScheme = "light", expected = /^$/, ...options }, test) {
  const context = await browser.newContext({ viewport: size, colorScheme, reducedMotion: "reduce", ...options });
  context.setDefaultTimeout(120_000); // far more than it takes
  const page = await context.newPage();
  const complaints = [];
  const complain = (text) => expected.test(text) || complaints.push(text);
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && complain(message.text()));
  page.on("pageerror", (error) => complain(String(error)));
  const foreign = [];
  page.on("request", (request) => request.url().startsWith(address) || request.url().startsWith("data:") || foreign.push(request.url()));
  try {
    await page.goto(address);
    await page.waitForSelector("#model option[value]", { state: "attached" }).catch((error) => {
      if (!options.withoutModels) throw error;
    });
    await test(page);
    assert.deepEqual({ complaints, foreign }, { complaints: [], foreign: [] });
    console.log(`ok: ${name}`);
    passed++;
  } catch (error) {
    await page.screenshot({ path: `${SHOTS}failed.png` });
    console.error(`failed: ${name}`);
    throw error;
  } finally {
    await context.close();
  }
}

const done = "article.answer[aria-busy=false]";

async function ask(page, text) {
  const before = await page.locator(done).count();
  await page.fill("#text", text);
  await page.press("#text", "Enter");
  await page.locator(done).nth(before).waitFor();
  return page.locator(`${done} .said`).nth(before).innerText();
}

/** Whatever axe finds wrong: names, roles, contrast. The order of headings is the model's. */
async function accessible(page) {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => window.axe.run({ rules: { "heading-order": { enabled: false } }, runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] }));
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
  assert.deepEqual(found, []);
}

const shoot = (page, name) => page.screenshot({ path: `${SHOTS}${name}.png` });

async function looks(mock) {
  for (const colorScheme of ["light", "dark"]) {
    for (const size of SIZES) {
      const name = `${colorScheme}-${size.width}`;
      await check(`looks right, ${name}`, mock.address, { size, colorScheme, expected: /503/ }, async (page) => {
        await accessible(page);
        await shoot(page, `${name}-empty`);
        mock.replies.push(saying(ANSWER, "The user asks about the sky."));
        await ask(page, "Why is the sky blue?");
        await accessible(page);
        await shoot(page, `${name}-answer`);
        assert.equal(await page.locator(".answer h3").innerText(), "In numbers");
        assert.equal(await page.locator(".answer pre").innerText(), "def ratio(nm):\n    return (650 / nm) ** 4  # <b>");
        assert.deepEqual(await page.locator(".answer li li").allInnerTexts(), ["so the sky is blue"]);
        assert.equal(await page.locator(".answer .said a").getAttribute("rel"), "noopener noreferrer");
        assert.match(await page.locator(".answer .meta").innerText(), /^\d+ tokens .*12 reused$/);
        // Reasoning is folded.
        assert.equal(await page.getByText("The user asks about the sky.").isVisible(), false);
        await page.click("summary");
        assert.equal(await page.getByText("The user asks about the sky.").isVisible(), true);
        mock.replies.push(() => ({ status: 503, error: "the model is being loaded" }));
        await page.fill("#text", "And at night?");
        await page.press("#text", "Enter");
        await page.getByText("the model is being loaded").waitFor();
        await accessible(page);
        await shoot(page, `${name}-error`);
        // Nothing is wider than the screen.
        assert.equal(await page.evaluate(() => document.documentElement.scrollWidth > innerWidth), false);
        await page.click("#open-settings");
        await accessible(page);
        await shoot(page, `${name}-settings`);
        await page.keyboard.press("Escape");
        if (size.width < 800) {
          await page.click("#open-side");
          await accessible(page);
          await shoot(page, `${name}-list`);
        }
      });
    }
  }
}

async function behaves(mock) {
  await check("model output stays text", mock.address, {}, async (page) => {
    mock.replies.push(saying(ATTACK, ATTACK));
    await ask(page, ATTACK);
    await page.reload();
    await page.locator(done).waitFor();
    const inside = (selector) => page.locator(`#log :is(${selector})`).count();
    assert.equal(await inside("img, script, iframe, svg:not(.action svg), [onerror], [onload], [style]"), 0);
    const addresses = await page.locator("#log a").evaluateAll((links) => links.map((link) => link.href));
    assert.deepEqual(addresses, ["https://example.com/i.png"]);
    assert.notEqual(await page.title(), "owned");
    assert.ok((await page.locator("#log").innerText()).includes(`<img src=x onerror="document.title='owned'">`));
  });

  await check("Markdown is what CommonMark says, of the part that is known", mock.address, {}, async (page) => {
    const cases = {
      "**bold *and em***, *em **and bold***": "<p><strong>bold <em>and em</em></strong>, <em>em <strong>and bold</strong></em></p>",
      "snake_case_name 2 * 3 * 4 \\*no\\* a*b*c": "<p>snake_case_name 2 * 3 * 4 *no* a<em>b</em>c</p>",
      "`` a`b `` and `**x**` and ~~no~~": "<p><code>a`b</code> and <code>**x**</code> and <del>no</del></p>",
      "one\n\ntwo  \nthree": "<p>one</p><p>two<br>three</p>",
      "3. a\n4. b\n\n   more\n": '<ol start="3"><li><p>a</p></li><li><p>b</p><p>more</p></li></ol>',
      "- a\n  1. b\n     c\n- d": "<ul><li>a<ol><li>b\nc</li></ol></li><li>d</li></ul>",
      "> quoted\n> - list\n\nplain\n***": "<blockquote><p>quoted</p><ul><li>list</li></ul></blockquote><p>plain</p><hr>",
      "# a #\n## b\ntext\n### c": "<h2>a</h2><h3>b</h3><p>text</p><h4>c</h4>",
      "<b>&amp;</b> 1 < 2": "<p>&lt;b&gt;&amp;amp;&lt;/b&gt; 1 &lt; 2</p>",
      "**open and `open and [open](": "<p>**open and `open and [open](</p>",
    };
    const found = await page.evaluate(async (sources) => {
      const { Rendered } = await import("./markdown.js");
      return sources.map((source) => {
        const element = document.createElement("div");
        const rendered = new Rendered(element);
        for (let i = 0; i <= source.length; i++) rendered.update(source.slice(0, i)); // as it streams
        return element.innerHTML;
      });
    }, Object.keys(cases));
    assert.deepEqual(found, Object.values(cases));
  });

  await check("an answer can be stopped, and what was said is kept", mock.address, {}, async (page) => {
    mock.replies.push(endless);
    await page.fill("#text", "Count.");
    await page.press("#text", "Enter");
    await page.getByText("word 5").waitFor();
    assert.equal(await page.getByRole("button", { name: "Stop" }).count(), 1);
    await page.click("#send");
    await page.locator(done).waitFor();
    const said = await page.locator(".answer .said").innerText();
    assert.match(said, /^word 0 word 1 .* word \d+$/);
    assert.match(await page.locator(".answer .meta").innerText(), /stopped$/);
    assert.equal(await page.locator("#status").innerText(), "The answer was stopped.");
    // The server is told.
    while (mock.open) await new Promise((next) => setImmediate(next));
    await ask(page, "Go on.");
    assert.equal(mock.requests.at(-1).messages[1].content.trim(), said);
    // The other way, from anywhere.
    mock.replies.push(endless);
    await page.fill("#text", "Again.");
    await page.press("#text", "Enter");
    await page.getByText("word 5").nth(1).waitFor();
    await page.keyboard.press("Escape");
    await page.getByText("stopped").nth(1).waitFor();
  });

  await check("answers are given anew, and questions edited", mock.address, {}, async (page) => {
    mock.replies.push(saying("One."), saying("Two."), saying("Three."));
    await ask(page, "A number?");
    await page.getByRole("button", { name: "Regenerate" }).click();
    await page.getByText("Two.").waitFor();
    assert.equal(await page.getByText("One.").count(), 0);
    const [first, second] = mock.requests.slice(-2);
    assert.deepEqual([first.messages, first.seed === second.seed], [second.messages, false]);
    await page.getByRole("button", { name: "Edit" }).click();
    await page.getByLabel("Edit the message").fill("Another number?");
    await page.keyboard.press("Enter");
    await page.getByText("Three.").waitFor();
    assert.deepEqual(mock.requests.at(-1).messages, [{ role: "user", content: "Another number?" }]);
    assert.equal(await page.locator("article").count(), 2);
  });

  await check("a key is asked for where it is missing", mock.address, { expected: /401/, withoutModels: true }, async (page) => {
    mock.key = "secret";
    await page.reload();
    await page.getByText("this server wants an API key").waitFor();
    await accessible(page);
    await shoot(page, "key");
    await page.fill("#text", "Hello");
    await page.press("#text", "Enter");
    await page.locator(".error").getByLabel("API key").fill("secret");
    await page.locator(".error").getByRole("button").click();
    await page.getByText("You said: Hello").waitFor();
    mock.key = null;
  });

  await check("settings are sent, and kept", mock.address, {}, async (page) => {
    await page.click("#open-settings");
    await page.getByLabel("System message").fill("Be brief.");
    await page.getByLabel("Top k").fill("40");
    await page.getByLabel("Temperature").fill("");
    await page.getByRole("button", { name: "Close" }).click();
    await page.selectOption("#model", "large-instruct-4bit");
    await page.getByText("Dark", { exact: true }).click();
    await page.reload();
    assert.equal(await page.evaluate(() => getComputedStyle(document.body).colorScheme), "dark");
    await ask(page, "Hello");
    const { seed, ...sent } = mock.requests.at(-1);
    const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Hello" }];
    assert.deepEqual(sent, { model: "large-instruct-4bit", messages, top_k: 40, stream: true, stream_options: { include_usage: true } });
    assert.equal(Number.isInteger(seed), true);
  });

  await check("a full storage is told, and loses nothing that is shown", mock.address, {}, async (page) => {
    await page.evaluate(() => {
      let size = 1 << 24;
      for (let i = 0; size > 0; size >>= 1) {
        for (let full = false; !full; ) {
          try {
            localStorage.setItem(`fill${i++}`, "x".repeat(size));
          } catch {
            full = true;
          }
        }
      }
    });
    assert.equal(await ask(page, "Hello"), "You said: Hello");
    await page.getByText("The browser's storage is full").waitFor();
  });

  await check("a broken answer says so where it breaks", mock.address, {}, async (page) => {
    const deltas = (async function* () {
      yield { content: "So far" };
      yield { error: { message: "memory ran out", code: 500 } };
    })();
    mock.replies.push(() => ({ deltas }));
    assert.equal(await ask(page, "Hello"), "So far");
    assert.match(await page.locator(".answer .error").innerText(), /^memory ran out/);
  });

  await check("the keyboard is enough", mock.address, {}, async (page) => {
    const press = async (...keys) => {
      for (const key of keys) await page.keyboard.press(key);
    };
    const focused = () => page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.innerText.trim());
    /** Tab until something of this name has the focus. */
    const reach = async (name, key = "Tab") => {
      for (let i = 0; i < 60; i++) {
        if (name.test(await focused())) return;
        await press(key);
      }
      assert.fail(`${name} is not reached`);
    };
    await page.keyboard.type("First");
    await press("Enter");
    await page.getByText("You said: First").waitFor();
    await reach(/^Regenerate$/, "Shift+Tab");
    await press("Enter");
    await page.locator(done).waitFor();
    await reach(/^New conversation$/);
    await press("Enter");
    await page.keyboard.type("Second");
    await press("Shift+Enter");
    await page.keyboard.type("line");
    await press("Enter");
    await page.getByText("You said: Second").waitFor();
    assert.equal(mock.requests.at(-1).messages[0].content, "Second\nline");
    await reach(/^First$/, "Shift+Tab");
    await press("Enter");
    await page.getByText("You said: First").waitFor();
    await reach(/^Edit$/, "Shift+Tab");
    await press("Enter", "End");
    await page.keyboard.type("!");
    await press("Enter");
    await page.getByText("You said: First!").waitFor();
    await reach(/^Settings$/, "Shift+Tab");
    await press("Enter");
    await page.keyboard.press("Escape");
    assert.equal(await focused(), "Settings");
    await reach(/^Delete “First!”$/, "Shift+Tab");
    await press("Enter");
    await reach(/^Undo$/);
    await press("Enter");
    await page.getByText("You said: First!").waitFor();
  });
}

/** A running server, with whatever model it has. */
async function talks(address) {
  for (const size of SIZES) {
    await check(`talks to the server, ${size.width}`, address, { size }, async (page) => {
      const first = await ask(page, "What colour is the sky?");
      assert.notEqual(first, "");
      assert.match(await page.locator(".answer .meta").innerText(), /^\d+ tokens/);
      await ask(page, "Why is the sky blue?");
      await page.reload();
      await page.locator(done).nth(1).waitFor();
      assert.equal(await page.locator(`${done} .said`).first().innerText(), first);
      await shoot(page, `server-${size.width}`);
      await page.getByRole("button", { name: "Regenerate" }).last().click();
      await page.locator(done).nth(1).waitFor();
      await accessible(page);
    });
  }
}

const mock = await serve();
try {
  await looks(mock);
  await behaves(mock);
  if (process.argv[2]) await talks(new URL("/", process.argv[2]).href);
  console.log(`${passed} passed, 0 failed`);
} finally {
  await browser.close();
  mock.close();
}
