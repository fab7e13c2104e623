// A clip's frames to draw on: cells of a coarse grid are kept (255) or not (0), one grid a frame.
// Drawing happens here alone; the kernel hears of a stroke when it is finished.

const HELP = "Draw with the mouse or a finger. Keys: arrows move the cursor, space draws, backspace erases, "
  + "comma and full stop change the frame.";

function render({ model, el }) {
  const canvas = document.createElement("canvas");
  canvas.className = "steplab-sketch";
  canvas.tabIndex = 0;
  canvas.title = HELP;
  canvas.setAttribute("role", "application");
  const paper = canvas.getContext("2d");
  const veil = document.createElement("canvas"); // one pixel a cell: how much of it is hidden
  const [rows, columns] = model.get("grid");
  veil.width = columns;
  veil.height = rows;
  const pictures = model.get("frames").map((bytes) => {
    const picture = new Image();
    picture.onload = show;
    picture.src = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
    return picture;
  });
  let cells = new Uint8Array(0);
  let cursor = null; // [row, column] of the keyboard
  let pen = null; // cell that the mouse was over last, while it draws

  function read() {
    cells = Uint8Array.from(model.get("cells").match(/../g), (hex) => parseInt(hex, 16));
    show();
  }

  function show() {
    const frame = model.get("frame");
    const picture = pictures[frame];
    if (!picture.complete || !picture.naturalWidth) return;
    if (canvas.width !== picture.naturalWidth || canvas.height !== picture.naturalHeight) {
      canvas.width = picture.naturalWidth;
      canvas.height = picture.naturalHeight;
    }
    paper.drawImage(picture, 0, 0);
    const pixels = new ImageData(columns, rows);
    for (let k = 0; k < rows * columns; k++) {
      pixels.data.set([235, 235, 235, 200 * (1 - cells[frame * rows * columns + k] / 255)], 4 * k);
    }
    veil.getContext("2d").putImageData(pixels, 0, 0);
    paper.imageSmoothingEnabled = true;
    paper.drawImage(veil, 0, 0, canvas.width, canvas.height);
    if (cursor && document.activeElement === canvas) {
      const [high, wide] = [canvas.height / rows, canvas.width / columns];
      paper.lineWidth = 2;
      paper.strokeStyle = "#D55E00";
      paper.strokeRect(cursor[1] * wide, cursor[0] * high, wide, high);
    }
    canvas.setAttribute("aria-label", `${model.get("label")}, frame ${frame + 1} of ${pictures.length}. ${HELP}`);
  }

  function paint([row, column], value) {
    const now = model.get("frame");
    const reach = model.get("reach");
    const brush = model.get("brush") - 1;
    for (let t = Math.max(0, now - reach); t <= Math.min(pictures.length - 1, now + reach); t++) {
      for (let i = Math.max(0, row - brush); i <= Math.min(rows - 1, row + brush); i++) {
        for (let j = Math.max(0, column - brush); j <= Math.min(columns - 1, column + brush); j++) {
          if ((i - row) ** 2 + (j - column) ** 2 <= (brush + 0.3) ** 2) {
            cells[(t * rows + i) * columns + j] = value;
          }
        }
      }
    }
    show();
  }

  function send() {
    model.set("cells", Array.from(cells, (value) => value.toString(16).padStart(2, "0")).join(""));
    model.save_changes();
  }

  function under(event) {
    const box = canvas.getBoundingClientRect();
    const part = (at, from, length, count) =>
      Math.min(count - 1, Math.max(0, Math.floor(((at - from) / length) * count)));
    return [part(event.clientY, box.top, box.height, rows), part(event.clientX, box.left, box.width, columns)];
  }

  function drawTo(cell) {
    // Every cell on the way: a quick hand skips some between two events.
    const steps = Math.max(1, Math.abs(cell[0] - pen[0]), Math.abs(cell[1] - pen[1]));
    for (let k = 0; k <= steps; k++) {
      const at = [0, 1].map((axis) => Math.round(pen[axis] + ((cell[axis] - pen[axis]) * k) / steps));
      paint(at, model.get("erase") ? 0 : 255);
    }
    pen = cell;
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    cursor = null;
    pen = under(event);
    drawTo(pen);
    event.preventDefault();
    canvas.focus({ preventScroll: true });
  });
  canvas.addEventListener("pointermove", (event) => pen && drawTo(under(event)));
  for (const kind of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(kind, () => {
      if (pen) send();
      pen = null;
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const frames = { ",": -1, ".": 1 };
    cursor = cursor || [rows >> 1, columns >> 1];
    if (event.key in moves) {
      const [down, right] = moves[event.key];
      cursor = [(cursor[0] + down + rows) % rows, (cursor[1] + right + columns) % columns];
      show();
    } else if (event.key === " " || event.key === "Backspace") {
      paint(cursor, event.key === " " ? 255 : 0);
      send();
    } else if (event.key in frames) {
      const next = (model.get("frame") + frames[event.key] + pictures.length) % pictures.length;
      model.set("frame", next);
      model.save_changes();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation(); // JupyterLab has plans of its own for these keys
  });
  canvas.addEventListener("blur", show);
  model.on("change:cells", read);
  model.on("change:frame", show);
  read();
  el.appendChild(canvas);
  return () => pictures.forEach((picture) => URL.revokeObjectURL(picture.src));
}

export default { render };
