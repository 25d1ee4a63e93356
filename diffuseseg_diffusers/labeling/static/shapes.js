// Which pixels of a picture a tool means, as indices row by row.

// All pixels that touch the one at `start`, over edges, and have its label.
export function connected(labels, width, start) {
  const seen = new Uint8Array(labels.length);
  const found = [start];
  seen[start] = 1;
  for (let k = 0; k < found.length; k++) {
    const i = found[k];
    const x = i % width;
    const add = (j) => {
      if (seen[j] || labels[j] !== labels[start]) return;
      seen[j] = 1;
      found.push(j);
    };
    if (x > 0) add(i - 1);
    if (x < width - 1) add(i + 1);
    if (i >= width) add(i - width);
    if (i + width < labels.length) add(i + width);
  }
  return found;
}

// All pixels whose centres lie inside of a polygon, by the even-odd rule, and those on its left and right sides.
export function enclosed(corners, width, height) {
  const found = [];
  const rows = corners.map((corner) => corner.y);
  for (let y = Math.max(Math.min(...rows), 0); y <= Math.min(Math.max(...rows), height - 1); y++) {
    const crossings = [];
    corners.forEach((a, i) => {
      const b = corners[(i + 1) % corners.length];
      if ((a.y <= y) !== (b.y <= y)) crossings.push(a.x + ((y - a.y) * (b.x - a.x)) / (b.y - a.y));
    });
    crossings.sort((a, b) => a - b);
    for (let k = 0; k + 1 < crossings.length; k += 2) {
      const last = Math.min(Math.floor(crossings[k + 1]), width - 1);
      for (let x = Math.max(Math.ceil(crossings[k]), 0); x <= last; x++) found.push(y * width + x);
    }
  }
  return found;
}

// All pixels whose centres lie within a brush; even sizes reach one pixel further to the right and down.
export function disc({ x, y }, size, width, height) {
  const found = [];
  const radius = size / 2;
  const shift = size % 2 ? 0 : 0.5;
  const reach = Math.ceil(radius);
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      const inside = x + dx >= 0 && y + dy >= 0 && x + dx < width && y + dy < height;
      if (inside && (dx - shift) ** 2 + (dy - shift) ** 2 <= radius ** 2) found.push((y + dy) * width + x + dx);
    }
  }
  return found;
}
