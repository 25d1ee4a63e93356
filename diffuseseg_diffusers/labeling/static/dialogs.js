// Dialogs: a class, the keys, the push to the Hub.

import * as api from "./api.js";

const $ = (id) => document.getElementById(id);

for (const button of document.querySelectorAll("dialog .close")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

// Renames, merges, moves or deletes a class; `done` is called after a change.
export function editClass(own, classes, done) {
  const dialog = $("class-dialog");
  const others = classes.filter((one) => one.id !== own.id);
  const at = classes.findIndex((one) => one.id === own.id);
  $("class-title").textContent = `Class “${own.name}”`;
  $("class-rename").value = own.name;
  $("class-into").replaceChildren(new Option("choose …", ""), ...others.map((one) => new Option(one.name, one.id)));
  $("class-up").disabled = at === 0;
  $("class-down").disabled = at === classes.length - 1;
  const act = (button, action) => {
    $(button).onclick = async (event) => {
      event.preventDefault();
      dialog.close();
      await done(action);
    };
  };
  const move = (step) => () => {
    const order = classes.map((one) => one.id);
    [order[at], order[at + step]] = [order[at + step], order[at]];
    return api.orderClasses(order);
  };
  act("class-up", move(-1));
  act("class-down", move(1));
  act("class-save", async () => {
    const [name, into] = [$("class-rename").value, $("class-into").value];
    if (into) await api.mergeClass(own.id, Number(into));
    else if (name !== own.name) await api.changeClass(own.id, { name });
  });
  $("class-delete").onclick = async () => {
    const drawn = own.pixels ? ` ${own.pixels.toLocaleString("en")} pixels in ${own.pictures} of the pictures lose their label.` : "";
    if (!confirm(`Delete “${own.name}”?${drawn} This cannot be undone.`)) return;
    dialog.close();
    await done(() => api.deleteClass(own.id));
  };
  dialog.showModal();
}

// Asks for a repository and a token, and pushes; `said` shows how far it is.
export function pushPipeline(said, failed) {
  const dialog = $("push-dialog");
  $("push-form").onsubmit = async (event) => {
    event.preventDefault();
    const [repo_id, token] = [$("push-repo").value, $("push-token").value];
    $("push-token").value = "";
    dialog.close();
    said(`Pushing to ${repo_id} …`);
    try {
      const { url } = await api.push({ repo_id, token, private: $("push-private").checked });
      said(`Pushed: ${url}`);
    } catch (error) {
      said("");
      failed(error);
    }
  };
  dialog.showModal();
}

export const showHelp = () => $("help").showModal();
