// What the page knows, and what happens when.

import * as api from "./api.js";
import { PictureList, showClasses, showLines, showNotes, showPlaces } from "./panels.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const state = { revision: 0, classes: [], pictures: [], ranking: [], places: {}, finish: { state: "idle" } };
let current = null; // name of the open picture
let known = 0; // revision at which its labels were read, with our own strokes since
let latest = 0; // newest revision that an answer told: older states that arrive late are asked for again
let undoable = [];
let redoable = [];
let sending = Promise.resolve(); // strokes go one after the other
let unsent = 0; // strokes that the server has not answered
const passed = new Set(); // pictures that "Next" went by since the last stroke

const view = new View($("view"), stroke, accept);
const list = new PictureList($("pictures"), open, (name) => api.getImage(name, 64));

// Messages.

function fail(error) {
  $("message").textContent = error.message;
  $("message").hidden = false;
  if (!(error instanceof api.ServerError)) console.error(error);
}

function settle() {
  $("message").hidden = true;
}

const attempt = (action) => async (...given) => {
  try {
    const result = await action(...given);
    settle();
    return result;
  } catch (error) {
    fail(error);
  }
};

// For what runs by itself: it shows its errors, and leaves those of what was asked for.
const attemptQuietly = (action) => () => action().catch(fail);

// Pictures.

let opening = null;

async function openPicture(name) {
  opening = name;
  $("status").textContent = `Opening ${name} …`;
  const [{ image, notes }, labels] = await Promise.all([api.getImage(name), api.getLabels(name)]);
  if (opening !== name) return; // another one was chosen meanwhile
  current = name;
  location.hash = encodeURIComponent(name);
  known = labels.revision;
  undoable = labels.strokes;
  redoable = [];
  showLines($("about"), notes);
  view.open(image, labels.ids);
  if (document.activeElement === document.body) view.canvas.focus({ preventScroll: true });
  showLists();
  await refresh();
}
function open(name) {
  return attempt(openPicture)(name);
}

async function reloadLabels() {
  const picture = current;
  const labels = await api.getLabels(picture);
  if (picture !== current || view.stroke || unsent) return; // what is being drawn is newer
  known = labels.revision;
  undoable = undoable.filter((number) => labels.strokes.includes(number)); // other tabs undo their own
  view.setLabels(labels.ids);
}

function stroke(runs, revert) {
  const picture = current;
  const began = performance.now();
  view.stale = true;
  passed.clear();
  unsent++;
  sending = sending.then(async () => {
    try {
      const answer = await api.sendStroke(picture, runs, known);
      unsent--;
      try { await drawn(picture, answer); } finally { unsent++; }
      settle();
      refresh(began);
    } catch (error) {
      if (picture === current) revert();
      fail(error);
      if (error.status === 409) {
        latest = 0;
        start();
      }
    } finally {
      unsent--;
    }
  });
}

function accept(y, x) {
  const picture = current;
  sending = sending.then(attempt(async () => {
    const answer = await api.sendAccept(picture, y, x, known);
    if (picture === current && !answer.stale) view.drawRuns(answer.runs);
    await drawn(picture, answer);
    refresh();
  }));
}

async function drawn(picture, answer) {
  const own = state.pictures.find((p) => p.name === picture);
  if (own) own.strokes = answer.strokes;
  latest = Math.max(latest, answer.revision);
  if (picture !== current) return;
  if (answer.stale) { // another tab drew here
    await reloadLabels();
    await loadState();
  } else {
    known = answer.revision;
    undoable.push(answer.number);
  }
  redoable = [];
  showLists();
}

const undo = attempt(() => step(undoable, redoable, true));
const redo = attempt(() => step(redoable, undoable, false));

async function step(from, to, undone) {
  await sending;
  const number = from.pop();
  if (number === undefined) return;
  const left = redoable;
  let revision;
  try {
    ({ revision } = await api.setUndone(number, undone));
  } catch (error) {
    from.push(number);
    throw error;
  }
  latest = Math.max(latest, revision);
  to.push(number);
  await reloadLabels();
  redoable = left;
  await loadState();
  refresh();
}

// Masks: one request at a time, the last state always follows; the old mask stays, and is marked.

let asked = false;
let running = false;
let since = null;

async function refresh(began) {
  asked = true;
  since ??= began ?? null;
  $("badge").hidden = !view.mask;
  view.stale = true;
  view.draw();
  if (running) return;
  running = true;
  try {
    while (asked) {
      asked = false;
      const [picture, from] = [current, since];
      since = null;
      const answer = await api.getMask(picture);
      if (picture !== current) continue;
      view.setMask(answer.ids, answer.doubt);
      if (from !== null && answer.ids) {
        requestAnimationFrame(() => performance.measure("stroke-to-mask", { start: from, end: performance.now() }));
      }
      showStatus(answer);
      if (asked) continue;
      await Promise.all([refreshSmall(), refreshSuggestions()]);
    }
  } catch (error) {
    fail(error);
  } finally {
    running = false;
    view.stale = false;
    $("badge").hidden = true;
    view.draw();
  }
}

async function refreshSmall() {
  const ready = state.pictures.filter((p) => p.ready && list.visible.has(p.name)).map((p) => p.name);
  if (!ready.length) return;
  const { masks } = await api.getSmallMasks(ready);
  for (const name of ready) list.setMask(name, masks[name] ?? null, view.colors);
}
list.onVisible = () => { if (!running && current) refreshSmall().catch(fail); };

async function refreshSuggestions() {
  const picture = current;
  const found = await api.getSuggestions(picture);
  if (picture !== current) return;
  state.ranking = found.ranking;
  view.places = found.places[picture] ?? [];
  showLists();
  view.draw();
}

// What is shown.

function showStatus(answer) {
  const strokes = state.pictures.reduce((sum, p) => sum + p.strokes, 0);
  const labelled = state.pictures.filter((p) => p.strokes).length;
  const counts = `${strokes} ${strokes === 1 ? "stroke" : "strokes"} in ${labelled} of ${state.pictures.length} pictures`;
  const hint = state.classes.length < 2 ? "add two classes and draw a stroke of each" : "draw strokes of two classes";
  const size = `${view.width} × ${view.height} pixels`;
  const ready = state.pictures.find((p) => p.name === current)?.ready;
  const waiting = ready ? `${counts}; ${hint} for a mask` : `${counts}; the features of this picture are not there yet`;
  const made = answer.ids ? `Mask from ${counts}, fitted and predicted in ${answer.milliseconds} ms` : waiting;
  $("status").textContent = `${made} · ${current}, ${size}`;
}

function showLists() {
  showPlaces($("places"), view.places, (place) => {
    view.left = view.canvas.width / 2 - (place.x + 0.5) * view.scale;
    view.top = view.canvas.height / 2 - (place.y + 0.5) * view.scale;
    view.cursor = { x: place.x, y: place.y };
    view.draw();
    view.canvas.focus();
  });
  list.show(state.pictures, state.ranking, current);
  $("count").textContent = `(${state.pictures.length})`;
  $("undo").disabled = !undoable.length;
  $("redo").disabled = !redoable.length;
}

function showAllClasses() {
  if (!state.classes.some((own) => own.id === view.label)) view.label = state.classes[0]?.id ?? null;
  view.setColors(state.classes);
  showClasses($("classes"), state.classes, view.label, {
    pick: pickClass,
    recolor: attempt(async (id, color) => { await api.changeClass(id, { color }); await loadState(); refresh(); }),
    edit: attempt(editClass),
  });
}

function pickClass(id) {
  view.label = id;
  if (view.tool !== "brush") setTool("brush");
  showAllClasses();
}

async function editClass(own) {
  const others = state.classes.filter((c) => c.id !== own.id).map((c) => c.name).join(", ");
  const name = prompt(`New name of “${own.name}”, or the name of a class to merge it into (${others}):`, own.name);
  if (name === null || name === own.name) return;
  const into = state.classes.find((c) => c.name === name.trim());
  if (into) {
    if (!confirm(`Make all that is “${own.name}” “${into.name}”? This cannot be undone.`)) return;
    await api.mergeClass(own.id, into.id);
  } else await api.changeClass(own.id, { name });
  await loadState();
  await reloadLabels();
  refresh();
}

async function loadState() {
  let found = await api.getState();
  if (found.revision < latest) found = await api.getState(); // it had been on its way when we drew
  if (found.revision < latest) latest = found.revision; // the session was put back
  Object.assign(state, found);
  showAllClasses();
  showLists();
  const { done, total, error } = found.progress;
  $("progress").hidden = done >= total || !!error;
  $("progress").max = total;
  $("progress").value = done;
  $("progress").title = `Features of ${done} of ${total} pictures`;
  if (error) fail(new api.ServerError(error));
  showFinish(found.finish);
  showNotes($("notes"), found.notes, found.left_out);
  return found;
}

function showFinish(finish) {
  $("finish").disabled = finish.state === "running";
  $("push").disabled = finish.state !== "done";
  $("finish-state").textContent = {
    idle: "",
    running: "Fitting the full recipe; strokes may go on.",
    done: `Fitted in ${finish.seconds} s; the pipeline is in ${finish.folder}.${finish.behind
      ? ` Strokes or classes have changed since: press “Finish” again to have them in it.` : ""}`,
    failed: finish.error,
  }[finish.state];
}

// Tools and keys.

function setTool(tool) {
  view.tool = tool;
  for (const name of ["brush", "erase", "accept", "pan"]) $(`tool-${name}`).setAttribute("aria-pressed", name === tool);
  $("view").style.cursor = { pan: "grab", accept: "cell" }[tool] ?? "crosshair";
  view.draw();
}

function setSize(size) {
  view.size = Math.min(Math.max(size, 1), 64);
  $("size").value = view.size;
  $("size-value").textContent = view.size;
  view.draw();
}

// The best picture that was not looked at since the last stroke; then from the top again.
async function openNext() {
  passed.add(current);
  if (!state.ranking.some((own) => !passed.has(own.picture))) {
    passed.clear();
    passed.add(current);
  }
  const best = state.ranking.find((own) => !passed.has(own.picture));
  if (!best) return;
  await open(best.picture);
  view.canvas.focus({ preventScroll: true });
}

for (const name of ["brush", "erase", "accept", "pan"]) $(`tool-${name}`).addEventListener("click", () => setTool(name));
for (const name of ["picture", "labels", "mask", "doubt"]) {
  $(`layer-${name}`).addEventListener("input", (event) => {
    view.opacity[name] = event.target.value / 100;
    view.draw();
  });
}
$("size").addEventListener("input", (event) => setSize(Number(event.target.value)));
$("undo").addEventListener("click", undo);
$("redo").addEventListener("click", redo);
$("zoom-in").addEventListener("click", () => view.zoom(1.5));
$("zoom-out").addEventListener("click", () => view.zoom(1 / 1.5));
$("zoom-fit").addEventListener("click", () => view.fit());
$("next").addEventListener("click", openNext);
$("add-class").addEventListener("submit", attempt(async (event) => {
  event.preventDefault();
  const made = await api.addClass($("class-name").value);
  $("class-name").value = "";
  view.label = made.id;
  await loadState();
}));

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input:not([type=range])") || document.querySelector("dialog[open]")) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") event.shiftKey ? redo() : undo();
    else if (key === "y") redo();
    else return;
    event.preventDefault();
    return;
  }
  if (event.altKey) return;
  const act = {
    b: () => setTool("brush"), e: () => setTool("erase"), a: () => setTool("accept"), h: () => setTool("pan"),
    "[": () => setSize(view.size - 1), "]": () => setSize(view.size + 1), n: openNext,
    "+": () => view.zoom(1.5), "=": () => view.zoom(1.5), "-": () => view.zoom(1 / 1.5), 0: () => view.fit(),
    escape: () => view.cancel(),
  }[key];
  if (act) act();
  else if (/^[1-9]$/.test(key) && state.classes[key - 1]) pickClass(state.classes[key - 1].id);
  else if (key === " " && event.target === $("view")) { view.spaceHeld = true; event.preventDefault(); }
});
document.addEventListener("keyup", (event) => { if (event.key === " ") view.spaceHeld = false; });

// Results.

$("finish").addEventListener("click", attempt(async () => {
  showFinish(await api.finish());
  poll();
}));
$("download").addEventListener("click", attempt(async () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await api.download());
  link.download = "labels.zip";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}));
$("push").addEventListener("click", () => $("push-dialog").showModal());
$("push-dialog").addEventListener("close", attempt(async () => {
  const [repo_id, token] = [$("push-repo").value, $("push-token").value];
  $("push-token").value = "";
  if ($("push-dialog").returnValue !== "push") return;
  $("finish-state").textContent = `Pushing to ${repo_id} …`;
  const { url } = await api.push({ repo_id, token, private: $("push-private").checked });
  $("finish-state").textContent = `Pushed: ${url}`;
}));

// While features are extracted or a head is fitted, the state is looked at again.

let polling = false;

async function poll() {
  if (polling) return;
  polling = true;
  try {
    for (;;) {
      const wasReady = state.pictures.filter((p) => p.ready).length;
      const found = await loadState();
      const ready = found.pictures.filter((p) => p.ready).length;
      if (current && ready !== wasReady) refresh();
      if ($("progress").hidden && found.finish.state !== "running") break;
      await new Promise((resolve) => setTimeout(resolve, 700));
    }
  } catch (error) {
    fail(error);
  } finally {
    polling = false;
  }
}

// What other tabs did is looked for while nothing else is done.
async function watch() {
  if (document.hidden || polling || running || unsent || view.stroke || !current) return;
  const before = state.revision;
  const found = await loadState();
  if (found.revision === before || found.revision <= latest) return;
  latest = found.revision;
  await reloadLabels();
  refresh();
}
setInterval(attemptQuietly(watch), 3000);

async function start() {
  const found = await loadState();
  const { ranking } = await api.getSuggestions();
  state.ranking = ranking;
  const wanted = decodeURIComponent(location.hash.slice(1));
  const names = found.pictures.map((p) => p.name);
  await open(names.includes(wanted) ? wanted : ranking[0]?.picture ?? names[0]);
  poll();
}

window.addEventListener("unhandledrejection", (event) => fail(event.reason));
attempt(start)();
