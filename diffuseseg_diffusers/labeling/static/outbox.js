// Strokes on their way to the server, one after the other. They are in the page's storage until they are answered: a
// stroke is sent again after the server was away, or the page was closed, and its key tells the server if it has it.

import { ServerError } from "./api.js";

const LONGEST = 8000; // milliseconds between two tries

export class Outbox {
  // `send` posts an item; `act` has what happens when it is answered (`sent`) or refused (`refused`), and when the
  // state changes (`changed`).
  constructor(name, send, act) {
    this.name = `diffuseseg-outbox-${name}`;
    this.send = send;
    this.act = act;
    this.reverts = new Map(); // by key, of strokes of this page
    this.waiting = false; // for a server that does not answer
    this.stored = true;
    try {
      this.items = JSON.parse(localStorage.getItem(this.name) ?? "[]");
    } catch {
      this.items = [];
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

  add(item, revert) {
    const key = Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("-");
    this.items.push({ ...item, key });
    this.reverts.set(key, revert);
    this.keep();
    this.run();
  }

  // Takes back the last stroke if the server cannot have it yet; says whether it did.
  takeBack(picture) {
    const last = this.items.at(-1);
    if (!this.waiting || last?.picture !== picture || !this.reverts.has(last.key) || last.tried) return false;
    this.items.pop();
    this.keep();
    this.reverts.get(last.key)();
    return true;
  }

  keep() {
    try {
      localStorage.setItem(this.name, JSON.stringify(this.items));
      this.stored = true;
    } catch {
      this.stored = false; // it is full, or off
    }
    this.act.changed();
  }

  async run() {
    if (this.running) return;
    this.running = true;
    let pause = 500;
    while (this.items.length) {
      const item = this.items[0];
      try {
        item.tried = true; // it may arrive, whatever is answered
        const answer = await this.send(item);
        this.waiting = false;
        pause = 500;
        this.done(item);
        await this.act.sent(item, answer);
      } catch (error) {
        const away = error instanceof ServerError && [0, 401, 502, 503, 504, 507].includes(error.status);
        if (away) {
          this.waiting = true;
          this.act.changed(error);
          await new Promise((resolve) => { this.wake = resolve; setTimeout(resolve, pause); });
          pause = Math.min(2 * pause, LONGEST);
        } else {
          this.waiting = false;
          const revert = this.reverts.get(item.key);
          this.done(item);
          this.act.refused(item, error, revert);
        }
      }
    }
    this.running = false;
  }

  done(item) {
    this.items.shift();
    this.reverts.delete(item.key);
    this.keep();
  }

  // Resolves when all is answered, or at once while the server is away.
  async settled() {
    while (this.items.length && !this.waiting) await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
