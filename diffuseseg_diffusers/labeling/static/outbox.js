// Strokes on their way to the server, one after the other. Each is in the browser's storage until it is answered: it is
// sent again after the server was away, or the page was closed, and its key tells the server if it has it already.

import { ServerError } from "./api.js";

const LONGEST = 8000; // milliseconds between two tries
const REFUSED = [400, 413, 422]; // what the server says of the stroke itself; all else passes

// A stored stroke; nothing if it is damaged, or another tab took it away.
function read(text) {
  try {
    const item = JSON.parse(text);
    return item?.key && item.picture && Array.isArray(item.runs) ? item : null;
  } catch {
    return null;
  }
}

export class Outbox {
  // `send` posts an item; `act` has what happens when it is answered (`sent`) or refused (`refused`), when the server is
  // of another state than the page (`behind`), and when there is something new to say (`changed`).
  constructor(session, send, act) {
    this.session = session;
    this.prefix = `diffuseseg-stroke-${session}-`;
    this.send = send;
    this.act = act;
    this.reverts = new Map(); // by key, of strokes of this page
    this.waiting = false; // for a server that does not answer
    this.stored = true;
    this.items = [];
    try {
      const left = Object.keys(localStorage).filter((name) => name.startsWith(this.prefix));
      this.items = left.map((name) => read(localStorage.getItem(name))).filter(Boolean).sort((a, b) => a.at - b.at);
    } catch {
      this.stored = false; // the browser keeps nothing
    }
    addEventListener("online", () => this.wake?.());
    addEventListener("beforeunload", (event) => { if (this.items.length && !this.stored) event.preventDefault(); });
  }

  // What is said of it.
  get state() {
    const strokes = this.items.length === 1 ? "1 stroke" : `${this.items.length} strokes`;
    if (!this.items.length) return "saved";
    if (!this.waiting) return "sending …";
    return `waiting for the server: ${strokes} ${this.stored ? "kept in this browser" : "kept in this page: leave it open"}`;
  }

  of(picture) {
    return this.items.filter((item) => item.picture === picture);
  }

  add(stroke, revert) {
    const key = Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("-");
    const item = { ...stroke, key, at: Date.now() };
    this.items.push(item);
    this.reverts.set(key, revert);
    try {
      localStorage.setItem(this.prefix + key, JSON.stringify(item));
    } catch {
      this.stored = false; // it is full, or off
    }
    this.act.changed();
    this.run();
  }

  // Whether a stroke was drawn in this page.
  isMine(item) {
    return this.reverts.has(item.key);
  }

  // Takes back the last stroke of this page, if the server cannot have it; says whether it did.
  takeBack(picture) {
    const last = this.items.at(-1);
    if (!this.waiting || last?.picture !== picture || !this.isMine(last) || last.tried) return false;
    const revert = this.reverts.get(last.key);
    this.remove(last);
    revert();
    return true;
  }

  remove(item) {
    this.items = this.items.filter((other) => other.key !== item.key);
    this.reverts.delete(item.key);
    try {
      localStorage.removeItem(this.prefix + item.key);
    } catch { /* nothing is kept */ }
    this.act.changed();
  }

  async run() {
    if (this.running) return;
    this.running = true;
    try {
      let pause = 500;
      while (this.items.length) {
        const item = this.items[0];
        let [answer, error] = [null, null];
        item.tried = true; // it may arrive, whatever is answered
        try {
          answer = await this.send(item);
        } catch (caught) {
          error = caught;
        }
        const refused = error instanceof ServerError && error.own && REFUSED.includes(error.status);
        this.waiting = !!error && !refused;
        if (this.waiting) {
          this.act.changed(error);
          if (error.status === 409) await this.act.behind();
          await new Promise((resolve) => { this.wake = resolve; setTimeout(resolve, pause); });
          pause = Math.min(2 * pause, LONGEST);
          continue;
        }
        pause = 500;
        const mine = this.isMine(item);
        this.remove(item);
        await (error ? this.act.refused(item, error) : this.act.sent(item, answer, mine));
      }
    } finally {
      this.running = false;
    }
  }

  // Resolves when all is answered.
  async settled() {
    while (this.items.length) {
      if (this.waiting) throw new ServerError("This waits for the server, too: strokes are still on their way.", 0);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}
