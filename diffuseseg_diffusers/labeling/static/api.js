// Requests to the session's server. Errors carry the server's one sentence.

export const token = new URLSearchParams(location.search).get("token") ?? "";

export class ServerError extends Error {
  // `own`: whether it is the server's sentence, and not that of something between.
  constructor(message, status, own = false) {
    super(message);
    this.status = status;
    this.own = own;
  }
}

async function request(method, path, body) {
  const headers = { Authorization: `Bearer ${token}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    const advice = "Start `diffuseseg app` again with the same options; this page goes on by itself";
    throw new ServerError(`The server does not answer. ${advice} where the address is the same.`, 0);
  }
  if (!response.ok) {
    const found = await response.json().catch(() => ({}));
    throw new ServerError(found.error ?? `The server answered ${response.status}.`, response.status, !!found.error);
  }
  return response;
}

const query = (path, values) => `${path}?${new URLSearchParams(values)}`;
const json = async (method, path, body) => {
  const response = await request(method, path, body);
  try {
    return await response.json();
  } catch {
    throw new ServerError("The server's answer was cut off, or another page answered for it.", 0);
  }
};
const number = (response, name) => Number(response.headers.get(name));

export const getState = () => json("GET", "api/state");
export const getSuggestions = (picture) => json("GET", query("api/suggestions", picture ? { picture } : {}));
export const getSmallMasks = (pictures) => json("POST", "api/masks", { pictures });
export const sendStroke = (stroke) => json("POST", "api/strokes", stroke); // session, picture, runs, revision, key
export const sendAccept = (picture, y, x, revision) => json("POST", "api/accept", { picture, y, x, revision });
export const setUndone = (stroke, undone) => json("POST", `api/strokes/${stroke}/${undone ? "undo" : "redo"}`);
export const addClass = (name) => json("POST", "api/classes", { name });
export const changeClass = (id, change) => json("PATCH", `api/classes/${id}`, change);
export const mergeClass = (id, into) => json("POST", `api/classes/${id}/merge`, { into });
export const deleteClass = (id) => json("DELETE", `api/classes/${id}`);
export const orderClasses = (order) => json("POST", "api/classes/order", { order });
export const setPictureState = (picture, state) => json("POST", "api/pictures/state", { picture, state });
export const finish = () => json("POST", "api/finish");
export const push = (body) => json("POST", "api/push", body);

// A picture for display, the lines that have to be said of it, and how its values are shown. `display` may have the
// values that are `low` (black) and `high` (white), `gamma`, `invert` and a `channel`.
export async function getImage(picture, display = {}, side = null) {
  const response = await request("GET", query("api/image", { picture, ...display, ...(side && { side }) }));
  const read = (name) => JSON.parse(response.headers.get(name));
  return { image: await createImageBitmap(await response.blob()), notes: read("X-Notes"), display: read("X-Display") };
}

export async function getLabels(picture) {
  const response = await request("GET", query("api/labels", { picture }));
  const strokes = response.headers.get("X-Strokes");
  return {
    ids: new Uint8Array(await response.arrayBuffer()),
    revision: number(response, "X-Revision"),
    strokes: strokes ? strokes.split(",").map(Number) : [],
  };
}

// Class ids and uncertainty of a picture, a byte a pixel each; `null` while there is no head.
export async function getMask(picture) {
  const response = await request("GET", query("api/mask", { picture }));
  const revision = number(response, "X-Revision");
  if (response.status === 204) return { revision, ids: null };
  const bytes = new Uint8Array(await response.arrayBuffer());
  const half = bytes.length / 2;
  const milliseconds = number(response, "X-Milliseconds");
  return { revision, milliseconds, ids: bytes.subarray(0, half), doubt: bytes.subarray(half) };
}

export async function download(approved) {
  const response = await request("GET", query("api/download", approved ? { approved } : {}));
  return response.blob();
}
