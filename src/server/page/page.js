// The page: what is shown, and what happens when something is pressed.

import { ApiError, answer, models } from "./api.js";
import * as store from "./chats.js";
import { action, copyButton, el, icon } from "./dom.js";
import { Rendered } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
const scroll = $("scroll");
const text = $("text");
const send = $("send");
const dialog = $("settings");
const form = dialog.querySelector("form");
const narrow = matchMedia("(max-width: 50rem)");
const touch = matchMedia("(pointer: coarse)");

const settings = store.settings();
let chats = store.all();
let chat = store.newChat(settings.system);
/** Answers under way, by conversation. */
const running = new Map();
/** What shows the answer under way of this conversation. */
let live = null;

// What is kept

function keep(kept) {
  kept.updated = Date.now();
  if (!chats.includes(kept)) chats.push(kept);
  chats.sort((a, b) => b.updated - a.updated);
  try {
    store.save(kept);
  } catch (error) {
    notice(error.message, { wrong: true });
  }
}

function keepSettings() {
  try {
    store.saveSettings(settings);
  } catch (error) {
    notice(error.message, { wrong: true });
  }
}

// Messages to the person

function say(words) {
  $("status").textContent = words;
}

function notice(words, { wrong = false, controls = [] } = {}) {
  const close = el("button", { type: "button", class: "icon", "aria-label": "Close", click: () => ($("notice").hidden = true) }, icon("close"));
  $("notice").replaceChildren(el("p", {}, words), ...controls, close);
  $("notice").classList.toggle("wrong", wrong);
  $("notice").hidden = false;
}

function keyForm(then) {
  const input = el("input", { type: "password", "aria-label": "API key", placeholder: "API key", autocomplete: "off", required: true });
  const submit = (event) => {
    event.preventDefault();
    useKey(input.value.trim());
    $("notice").hidden = true;
    then();
  };
  return el("form", { class: "key", submit }, input, el("button", { class: "plain main" }, "Use it"));
}

function useKey(key) {
  try {
    store.saveKey(key);
  } catch (error) {
    notice(error.message, { wrong: true });
  }
}

// The list of conversations

function showChats() {
  const entry = (one) => {
    const open = el("button", { type: "button", class: running.has(one.id) ? "open busy" : "open", click: () => openChat(one) }, store.title(one));
    if (one === chat) open.setAttribute("aria-current", "true");
    const remove = el("button", { type: "button", class: "icon", "aria-label": `Delete “${store.title(one)}”`, click: () => removeChat(one) }, icon("trash"));
    return el("li", { class: one === chat ? "current" : null }, open, remove);
  };
  $("chats").replaceChildren(...chats.map(entry));
}

function openChat(one) {
  chat = one;
  closeSide();
  showChats();
  showChat();
  text.focus();
}

function removeChat(one) {
  running.get(one.id)?.abort();
  chats = chats.filter((other) => other !== one);
  store.remove(one);
  if (one === chat) chat = store.newChat(settings.system);
  showChats();
  showChat();
  const back = () => {
    $("notice").hidden = true;
    keep(one);
    openChat(one);
  };
  notice(`“${store.title(one)}” is deleted.`, { controls: [el("button", { type: "button", class: "plain", click: back }, "Undo")] });
  ($("chats").querySelector("button") ?? $("new")).focus();
}

function openSide() {
  $("side").classList.add("open");
  $("shade").hidden = false;
  $("open-side").setAttribute("aria-expanded", "true");
  document.querySelector("main").inert = true;
  $("close-side").focus();
}

function closeSide() {
  if ($("shade").hidden) return;
  $("side").classList.remove("open");
  $("shade").hidden = true;
  $("open-side").setAttribute("aria-expanded", "false");
  document.querySelector("main").inert = false;
  $("open-side").focus();
}

// The conversation

function showChat() {
  live = null;
  $("heading").textContent = store.title(chat);
  document.title = chat.messages.length ? `${store.title(chat)} – mlx_lm` : "mlx_lm";
  if (chat.messages.length) {
    log.replaceChildren(...chat.messages.map(article));
  } else {
    const words = "Everything stays between this browser and your server.";
    log.replaceChildren(el("div", { class: "empty" }, el("span", { class: "mark" }), el("h2", {}, "What is on your mind?"), el("p", {}, words)));
  }
  showSend();
  scroll.scrollTop = scroll.scrollHeight;
}

function article(message) {
  return message.role === "user" ? question(message) : answered(message);
}

function question(message) {
  const said = el("div", { class: "said" }, message.content);
  const actions = el("div", { class: "actions" }, copyButton(() => message.content), action("edit", "Edit", () => edit(message, element)));
  const element = el("article", { class: "question", "aria-label": "Your message" }, said, actions);
  return element;
}

function edit(message, element) {
  const area = el("textarea", { "aria-label": "Edit the message" });
  area.value = message.content;
  const cancel = () => {
    const again = question(message);
    element.replaceWith(again);
    again.querySelector(".action:last-child").focus();
  };
  const resend = () => {
    const content = area.value.trim();
    if (!content || running.has(chat.id)) return;
    chat.messages.length = chat.messages.indexOf(message);
    ask(content);
    text.focus();
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    } else if (sends(event)) {
      event.preventDefault();
      resend();
    }
  });
  const buttons = el("div", {}, el("button", { type: "button", class: "plain", click: cancel }, "Cancel"), el("button", { type: "button", class: "plain main", click: resend }, "Send again"));
  element.replaceChildren(el("div", { class: "edit" }, area, buttons));
  area.focus();
}

/** An answer; `show` brings it up to date. */
function answered(message) {
  const thoughts = el("div");
  const summary = el("summary");
  const details = el("details", {}, summary, thoughts);
  const said = el("div", { class: "said" });
  const actions = el("div", { class: "actions" });
  const rendered = new Rendered(said);
  const element = el("article", { class: "answer", "aria-label": "Answer" }, details, said, actions);
  const show = () => {
    const busy = running.get(chat.id)?.message === message;
    details.hidden = !message.reasoning;
    thoughts.textContent = message.reasoning ?? "";
    summary.textContent = busy && !message.content ? "Thinking" : "Reasoning";
    rendered.update(message.content);
    said.classList.toggle("waits", busy && !message.content);
    element.setAttribute("aria-busy", String(busy));
    const meta = el("span", { class: "meta" }, figures(message));
    if (busy) {
      actions.replaceChildren(meta);
    } else {
      const copy = message.content ? [copyButton(() => message.content)] : [];
      const redo = message.error ? [] : [action("redo", "Regenerate", () => regenerate(message))];
      actions.replaceChildren(...copy, ...redo, meta);
      if (message.error) actions.before(errorBox(message));
    }
  };
  show();
  if (running.get(chat.id)?.message === message) live = show;
  return element;
}

function errorBox(message) {
  const again = () => regenerate(message);
  const control = message.error.status === 401 ? keyForm(again) : el("button", { type: "button", class: "plain", click: again }, "Try again");
  return el("div", { class: "error", role: "alert" }, el("p", {}, message.error.message), control);
}

function figures({ tokens, seconds, first, cached, stopped, finish }) {
  const parts = [];
  if (tokens) parts.push(`${tokens} tokens`);
  if (tokens > 1 && seconds > 0.01) parts.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
  if (first != null) parts.push(`first after ${first.toFixed(2)} s`);
  if (cached) parts.push(`${cached} reused`);
  if (stopped) parts.push("stopped");
  if (finish === "length") parts.push("cut off at the most tokens");
  return parts.join(" · ");
}

// Asking

function ask(content) {
  chat.messages.push({ role: "user", content });
  reply();
}

function regenerate(message) {
  if (running.has(chat.id)) return;
  chat.messages.length = chat.messages.indexOf(message);
  reply();
  text.focus();
}

/** Let the model answer the last message. */
async function reply() {
  const own = chat;
  const message = { role: "assistant", content: "" };
  const controller = new AbortController();
  running.set(own.id, { message, abort: () => controller.abort() });
  const sent = messagesFor(own);
  own.messages.push(message);
  keep(own);
  showChats();
  showChat();
  say("The model answers.");

  const begun = performance.now();
  const keeper = setInterval(() => keep(own), 2000);
  let last = begun;
  try {
    for await (const part of answer(bodyFor(sent), store.key(), controller.signal)) {
      if (part.reasoning) message.reasoning = (message.reasoning ?? "") + part.reasoning;
      if (part.content) message.content += part.content;
      if (part.reasoning || part.content) {
        last = performance.now();
        message.first ??= (last - begun) / 1000;
        message.tokens = (message.tokens ?? 0) + 1;
        message.seconds = (last - begun) / 1000 - message.first;
      }
      if (part.finish) message.finish = part.finish;
      if (part.usage) {
        message.tokens = part.usage.completion_tokens;
        message.cached = part.usage.prompt_tokens_details?.cached_tokens;
      }
      if (own === chat) draw();
    }
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else message.error = { status: error.status ?? 0, message: error instanceof ApiError ? error.message : `The answer could not be read: ${error.message}` };
  }
  clearInterval(keeper);
  running.delete(own.id);
  if (chats.includes(own)) keep(own);
  showChats();
  if (own === chat) {
    const atEnd = isAtEnd();
    live?.();
    live = null;
    showSend();
    if (atEnd) follow();
    showJump();
  }
  say(message.error ? "" : message.stopped ? "The answer was stopped." : "The answer is complete.");
}

/** What the model is sent: what was said, without what failed before anything was. */
function messagesFor({ system, messages }) {
  const said = messages.filter(({ role, content, reasoning }) => role === "user" || content || reasoning);
  const plain = said.map(({ role, content, reasoning }) => ({ role, content, ...(reasoning && { reasoning_content: reasoning }) }));
  return system ? [{ role: "system", content: system }, ...plain] : plain;
}

function bodyFor(messages) {
  // Another seed each time, so that an answer that is asked for again can be another.
  const seed = Math.floor(Math.random() * 2 ** 31);
  return { ...(settings.model && { model: settings.model }), messages, seed, ...settings.sampling };
}

let drawing = false;
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const atEnd = isAtEnd();
    live?.();
    if (atEnd) follow();
    showJump();
  });
}

const isAtEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;

function follow() {
  scroll.scrollTop = scroll.scrollHeight;
}

function showJump() {
  $("jump").hidden = isAtEnd();
}

function showSend() {
  const busy = running.has(chat.id);
  send.setAttribute("aria-label", busy ? "Stop" : "Send");
  send.replaceChildren(icon(busy ? "stop" : "send"));
  send.disabled = !busy && !text.value.trim();
}

// Where one types on glass, Enter begins a line.
const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch.matches;

// The model and the settings

async function showModels() {
  const select = $("model");
  try {
    const names = await models(store.key());
    if (!names.includes(settings.model)) settings.model = names[0] ?? "";
    select.replaceChildren(...names.map((name) => el("option", { value: name, selected: name === settings.model }, name)));
    select.disabled = names.length < 2;
  } catch (error) {
    select.replaceChildren(el("option", {}, "No model"));
    const again = el("button", { type: "button", class: "plain", click: showModels }, "Try again");
    notice(error.message, { wrong: true, controls: [error.status === 401 ? keyForm(showModels) : again] });
    return;
  }
  $("notice").hidden = true;
}

function openSettings() {
  form.system.value = chat.system ?? "";
  form.key.value = store.key();
  for (const input of form.querySelectorAll(".grid input")) input.value = settings.sampling[input.name] ?? "";
  dialog.showModal();
}

function takeSettings() {
  const sampling = {};
  for (const input of form.querySelectorAll(".grid input")) {
    if (!input.value || !input.checkValidity()) continue;
    sampling[input.name] = input.type === "number" ? input.valueAsNumber : input.value;
  }
  settings.sampling = sampling;
  settings.system = form.system.value.trim();
  chat.system = settings.system;
  keepSettings();
  if (chat.messages.length) keep(chat);
  const key = form.key.value.trim();
  if (key !== store.key()) {
    useKey(key);
    showModels();
  }
}

function showTheme() {
  document.documentElement.dataset.theme = settings.theme;
  for (const input of $("theme").querySelectorAll("input")) input.checked = input.value === settings.theme;
}

// What is pressed

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running.has(chat.id)) return running.get(chat.id).abort();
  const content = text.value.trim();
  if (!content) return;
  text.value = "";
  ask(content);
});
text.addEventListener("input", showSend);
text.addEventListener("keydown", (event) => {
  if (!sends(event)) return;
  event.preventDefault();
  if (!running.has(chat.id)) $("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || dialog.open) return;
  if (!$("shade").hidden) closeSide();
  else running.get(chat.id)?.abort();
});
$("new").addEventListener("click", () => openChat(store.newChat(settings.system)));
$("open-side").addEventListener("click", openSide);
$("close-side").addEventListener("click", closeSide);
$("shade").addEventListener("click", closeSide);
narrow.addEventListener("change", closeSide);
$("open-settings").addEventListener("click", openSettings);
dialog.addEventListener("close", takeSettings);
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
$("model").addEventListener("change", (event) => {
  settings.model = event.target.value;
  keepSettings();
});
$("theme").addEventListener("change", (event) => {
  settings.theme = event.target.value;
  showTheme();
  keepSettings();
});
$("jump").addEventListener("click", () => scroll.scrollTo({ top: scroll.scrollHeight, behavior: "smooth" }));
scroll.addEventListener("scroll", showJump, { passive: true });
addEventListener("pagehide", () => running.forEach(({ message }) => keep(chats.find((one) => one.messages.includes(message)))));
// Another tab has changed something.
addEventListener("storage", (event) => {
  if (!store.isChatKey(event.key) || running.size) return;
  chats = store.all();
  const same = chats.find((one) => one.id === chat.id);
  if (same) {
    chat = same;
    showChat();
  }
  showChats();
});

showTheme();
if (chats.length) [chat] = chats;
showChats();
showChat();
showModels();
if (!narrow.matches) text.focus();
