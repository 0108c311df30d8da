// Markdown as elements. The common part of CommonMark that models write; what it does not know stays text.

import { copyButton, el } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+)(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** What stands deeper than this is text. */
const DEEPEST = 8;

/** Text that is shown as it grows: blocks that have not changed keep their elements. */
export class Rendered {
  constructor(element) {
    this.element = element;
    this.sources = [];
  }

  update(text) {
    const sources = split(text.replace(/\r\n?/g, "\n").split("\n"));
    sources.forEach((source, i) => {
      if (source === this.sources[i]) return;
      const block = render(source.split("\n"));
      if (i < this.sources.length) this.element.children[i].replaceWith(block);
      else this.element.append(block);
    });
    while (this.element.children.length > sources.length) this.element.lastElementChild.remove();
    this.sources = sources;
  }
}

/** The sources of the blocks. */
function split(lines) {
  const blocks = [];
  let block = [];
  let fence = null;
  const end = () => {
    while (block.length && !block.at(-1).trim()) block.pop();
    if (block.length) blocks.push(block.join("\n"));
    block = [];
  };
  for (const line of lines) {
    const inList = block.length > 0 && ITEM.test(block[0]) && !RULE.test(block[0]);
    if (fence) {
      block.push(line);
      if (line.trim().startsWith(fence) && !line.trim().replace(/[`~]/g, "")) {
        fence = null;
        if (!inList) end();
      }
      continue;
    }
    const opens = FENCE.exec(line) ?? (inList ? FENCE.exec(line.trim()) : null);
    const indented = /^\s+\S/.test(line);
    if (!line.trim()) {
      if (inList) block.push(line);
      else end();
      continue;
    }
    if (inList) {
      const goesOn = ITEM.test(line) || indented || (block.at(-1).trim() && !startsBlock(line));
      if (!goesOn) end();
    } else if (block.length && (startsBlock(line) || ITEM.test(line) || QUOTE.test(line) !== QUOTE.test(block[0]))) {
      end();
    }
    block.push(line);
    if (opens) fence = opens[1];
    else if (block.length === 1 && (HEADING.test(line) || RULE.test(line))) end();
  }
  end();
  return blocks;
}

const startsBlock = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line);

function render(lines, depth = 0) {
  const [first] = lines;
  const fence = FENCE.exec(first);
  if (fence) return code(lines, fence);
  const heading = HEADING.exec(first);
  // The page's own heading is the first.
  if (heading) return el(`h${Math.min(6, heading[1].length + 1)}`, {}, ...inline(heading[2]));
  if (RULE.test(first)) return el("hr");
  if (depth < DEEPEST && ITEM.test(first)) return list(lines, depth);
  if (depth < DEEPEST && QUOTE.test(first)) return el("blockquote", {}, ...blocks(lines.map((line) => line.replace(QUOTE, "")), depth));
  if (lines.length > 1 && first.includes("|") && DIVIDER.test(lines[1])) return table(lines);
  return el("p", {}, ...inline(lines.map((line) => line.trimStart()).join("\n")));
}

const blocks = (lines, depth) => split(lines).map((source) => render(source.split("\n"), depth + 1));

function code(lines, [, fence, info]) {
  const closed = lines.length > 1 && lines.at(-1).trim().startsWith(fence);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const language = info.trim().split(/\s/)[0];
  const bar = el("div", { class: "bar" }, el("span", {}, language || "text"), copyButton(() => text));
  return el("div", { class: "code" }, bar, el("pre", { tabindex: "0", role: "group", "aria-label": `Code, ${language || "text"}` }, el("code", {}, text)));
}

function list(lines, depth) {
  const [, base, marker] = ITEM.exec(lines[0]);
  const items = [];
  let loose = false;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length < base.length + 2) {
      loose ||= items.length > 0 && !items.at(-1).lines.at(-1).trim();
      items.push({ indent: item[1].length + item[2].length + Math.min(item[3].length, 4), lines: [item[4]] });
    } else {
      const { indent, lines } = items.at(-1);
      lines.push(line.replace(new RegExp(`^\\s{0,${indent}}`), ""));
    }
  }
  const contents = items.map(({ lines }) => blocks(lines, depth));
  const isText = (block) => block.tagName === "P";
  loose ||= contents.some((inner) => inner.filter(isText).length > 1);
  // Otherwise items stand close.
  const item = (inner) => el("li", {}, ...(loose ? inner : inner.flatMap((block) => (isText(block) ? [...block.childNodes] : [block]))));
  const start = Number.parseInt(marker, 10);
  const ordered = !Number.isNaN(start);
  const attributes = ordered && start !== 1 ? { start } : {};
  return el(ordered ? "ol" : "ul", attributes, ...contents.map(item));
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
  const sides = cells(lines[1]).map((cell) => (/^:.*:$/.test(cell) ? "center" : cell.endsWith(":") ? "right" : null));
  const row = (tag) => (line) => el("tr", {}, ...cells(line).slice(0, sides.length).map((cell, i) => el(tag, { class: sides[i] }, ...inline(cell))));
  const [head, , ...body] = lines;
  const content = el("table", {}, el("thead", {}, row("th")(head)), el("tbody", {}, ...body.map(row("td"))));
  return el("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" }, content);
}

const INLINE = [
  // A backslash before punctuation, code, links, addresses, and what is strong, emphatic or struck.
  [/^\\([!-/:-@[-`{-~])/, ([, text]) => text],
  [/^(`+)([^`]|[^`][^]*?[^`])\1(?!`)/, ([, , text]) => el("code", {}, text.replace(/\n/g, " ").replace(/^ (.*\S.*) $/, "$1"))],
  [/^!?\[((?:[^[\]\\]|\\.|\[[^\]]*\])*)\]\(\s*<?([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)>?(?:\s+"[^"]*")?\s*\)/, ([all, text, address], depth) => link(address, inline(text, depth)) ?? all],
  [/^<(https?:\/\/[^\s<>]+)>/, ([, address]) => link(address, [address]) ?? address],
  [/^https?:\/\/[^\s<>()"']+[^\s<>()"'.,;:!?*_~`]/, ([address]) => link(address, [address]) ?? address],
  [/^(\*\*|__)(?=\S)([^]*?[^\s\\])\1(?![*_])/, ([, , text], depth) => el("strong", {}, ...inline(text, depth))],
  [/^~~(?=\S)([^]*?\S)~~/, ([, text], depth) => el("del", {}, ...inline(text, depth))],
  [/^\*(?=[^\s*])((?:[^*]|\*\*[^*]+\*\*)+?)(?<![\s\\])\*(?!\*)/, ([, text], depth) => el("em", {}, ...inline(text, depth))],
  [/^_(?=[^\s_])([^_]*?[^\s_\\])_(?!\w)/, ([, text], depth, before) => (/\w$/.test(before) ? null : el("em", {}, ...inline(text, depth)))],
  [/^(?: {2,}|\\)\n/, () => el("br")],
];
const MARK = /[\\`![<*_~]|https?:\/\/| {2,}\n/g;

/** Text and elements of a line. */
function inline(text, depth = 0) {
  if (depth > DEEPEST) return [text];
  const out = [];
  let plain = "";
  let at = 0;
  while (at < text.length) {
    MARK.lastIndex = at;
    const next = MARK.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    at = next;
    if (at === text.length) break;
    const rest = text.slice(at, at + 4000);
    let found = null;
    for (const [pattern, make] of INLINE) {
      const match = pattern.exec(rest);
      found = match && make(match, depth + 1, plain);
      if (found !== null) {
        at += match[0].length;
        break;
      }
    }
    if (found === null) plain += text[at++];
    else if (typeof found === "string") plain += found;
    else {
      if (plain) out.push(plain);
      plain = "";
      out.push(found);
    }
  }
  if (plain) out.push(plain);
  return out;
}

/** A link to another site; null for an address of any other kind. */
function link(address, content) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!["http:", "https:"].includes(url.protocol)) return null;
  return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, ...content);
}
