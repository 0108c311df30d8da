// Conversations and settings in the browser's storage, each conversation under its own key.

const CHAT = "mlx_lm.chat.";
const SETTINGS = "mlx_lm.settings";
const KEY = "mlx_lm.key";

/** The storage has no room, or none is allowed. */
export class NotKept extends Error {}

function write(storage, key, value) {
  try {
    storage().setItem(key, value);
  } catch (error) {
    const full = error.name === "QuotaExceededError";
    throw new NotKept(full ? "The browser's storage is full, so this is not kept. Delete conversations to make room." : "The browser keeps nothing for this page, so a reload forgets it.");
  }
}

function read(storage, key) {
  try {
    return JSON.parse(storage().getItem(key));
  } catch {
    return null;
  }
}

const local = () => localStorage;
const session = () => sessionStorage;

export const newChat = (system) => ({ id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, updated: 0, system, messages: [] });

/** All conversations, the newest first. */
export function all() {
  try {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
    const chats = keys.map((key) => read(local, key)).filter((chat) => chat?.id && Array.isArray(chat.messages));
    return chats.sort((a, b) => b.updated - a.updated);
  } catch {
    return [];
  }
}

export const isChatKey = (key) => key === null || key.startsWith(CHAT);

export const save = (chat) => write(local, CHAT + chat.id, JSON.stringify(chat));

export const remove = (chat) => localStorage.removeItem(CHAT + chat.id);

export function title(chat) {
  const first = chat.messages.find((message) => message.role === "user")?.content.trim().replace(/\s+/g, " ");
  return first ? (first.length > 80 ? `${first.slice(0, 80)}…` : first) : "New conversation";
}

export const settings = () => ({ theme: "auto", model: "", system: "", sampling: { temperature: 0.7 }, ...read(local, SETTINGS) });

export const saveSettings = (settings) => write(local, SETTINGS, JSON.stringify(settings));

export const key = () => read(session, KEY) ?? "";

export const saveKey = (key) => write(session, KEY, JSON.stringify(key));
