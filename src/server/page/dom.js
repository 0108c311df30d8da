// Elements, made one by one: text from a model or a server is only ever text.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (functions are listeners) and children (strings are text). */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A small button with a picture and a word. */
export function action(picture, label, click) {
  return el("button", { type: "button", class: "action", click }, icon(picture), el("span", {}, label));
}

/** A button that copies what `text` gives. */
export function copyButton(text) {
  const button = action("copy", "Copy", async () => {
    const done = await copy(text());
    button.replaceChildren(icon(done ? "check" : "close"), el("span", {}, done ? "Copied" : "Not copied"));
    setTimeout(() => button.replaceChildren(icon("copy"), el("span", {}, "Copy")), 1600);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without TLS a page has no clipboard, but for a selection.
    const area = el("textarea", { class: "unseen" });
    area.value = text;
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}
