"use strict";
(async () => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const names = new Map(data.organs.map((organ) => [organ.class, organ.name]));
  const colors = new Map(data.organs.map((organ) => [organ.class, organ.color]));
  const MISSED = "#56b4e9", ADDED = "#e69f00", CONFUSED = "#cc79a7";
  const canvas = $("canvas"), context = canvas.getContext("2d");
  const boxes = { p: $("prediction"), t: $("truth"), e: $("errors") };
  let shown = null; // what is on the canvas

  const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const inflate = async (base64) => {
    const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const picture = (base64) => new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a slice cannot be decoded"));
    image.src = "data:image/jpeg;base64," + base64;
  });
  const classesOf = async (entry) => {
    entry.decoded ??= inflate(entry.classes);
    return entry.decoded;
  };

  // Lines along the edges between a class and its neighbours, a little inside of it.
  const outline = (classes, width, height, scale, dashed) => {
    const inset = 1;
    const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : classes[y * width + x]);
    const paths = new Map();
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const own = at(x, y);
        if (own === 0) continue;
        const left = x * scale + inset, right = (x + 1) * scale - inset;
        const top = y * scale + inset, bottom = (y + 1) * scale - inset;
        const path = paths.get(own) ?? paths.set(own, new Path2D()).get(own);
        if (at(x - 1, y) !== own) { path.moveTo(left, top); path.lineTo(left, bottom); }
        if (at(x + 1, y) !== own) { path.moveTo(right, top); path.lineTo(right, bottom); }
        if (at(x, y - 1) !== own) { path.moveTo(left, top); path.lineTo(right, top); }
        if (at(x, y + 1) !== own) { path.moveTo(left, bottom); path.lineTo(right, bottom); }
      }
    }
    // Each edge is a line of its own, so this leaves a gap at every pixel.
    context.setLineDash(dashed ? [scale * 0.55, scale * 0.45] : []);
    context.lineWidth = dashed ? 2 : 3;
    for (const [own, path] of paths) {
      context.strokeStyle = colors.get(own) ?? "#ffffff";
      context.stroke(path);
    }
    context.setLineDash([]);
  };

  const organsIn = (classes) => {
    const found = [...new Set(classes)].filter((own) => own !== 0).map((own) => names.get(own) ?? `class ${own}`);
    return found.length === 0 ? "no organ" : found.join(", ");
  };

  const draw = async () => {
    const entry = data.cases[Number($("case").value)];
    const index = Number($("slice").value);
    const [image, classes] = await Promise.all([picture(entry.images[index]), classesOf(entry)]);
    // Another slice may have been chosen meanwhile.
    if (entry !== data.cases[Number($("case").value)] || index !== Number($("slice").value)) return;
    const { width, height } = entry, size = width * height;
    const scale = Math.max(1, Math.ceil(640 / Math.max(width, height)));
    const prediction = classes.subarray(index * size, (index + 1) * size);
    const from = (entry.numbers.length + index) * size;
    const truth = classes.subarray(from, from + size);
    shown = { entry, prediction, truth };
    canvas.width = width * scale;
    canvas.height = height * scale;
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    let wrong = 0;
    for (let pixel = 0; pixel < size; pixel++) {
      if (prediction[pixel] === truth[pixel]) continue;
      wrong++;
      if (!boxes.e.checked) continue;
      context.fillStyle = prediction[pixel] === 0 ? MISSED : truth[pixel] === 0 ? ADDED : CONFUSED;
      context.globalAlpha = 0.6;
      context.fillRect((pixel % width) * scale, Math.floor(pixel / width) * scale, scale, scale);
    }
    context.globalAlpha = 1;
    if (boxes.p.checked) outline(prediction, width, height, scale, false);
    if (boxes.t.checked) outline(truth, width, height, scale, true);
    $("slice").setAttribute("aria-valuetext", `slice ${entry.numbers[index]}`);
    $("status").textContent = `Case ${entry.name}, slice ${entry.numbers[index]} (${index + 1} of ${entry.numbers.length}). ` +
      `Prediction: ${organsIn(prediction)}. Ground truth: ${organsIn(truth)}. ` +
      `${(100 * wrong / size).toFixed(1)} % of the pixels differ.`;
    canvas.setAttribute("aria-label", `Slice ${entry.numbers[index]} of case ${entry.name}`);
    $("pointer").textContent = "\u00a0";
    document.documentElement.dataset.drawn = `${entry.name}/${entry.numbers[index]}`;
  };

  const chooseCase = () => {
    const entry = data.cases[Number($("case").value)];
    $("slice").max = entry.numbers.length - 1;
    $("slice").value = Math.floor(entry.numbers.length / 2);
    const left = entry.with_organs - entry.numbers.length;
    $("left-out").textContent = left > 0 ? `, of this case ${entry.numbers.length} of ${entry.with_organs}` : "";
    return draw();
  };
  const step = (by) => {
    const before = $("slice").value;
    $("slice").value = Number(before) + by;
    if ($("slice").value !== before) draw();
  };

  $("case").addEventListener("change", chooseCase);
  $("slice").addEventListener("input", draw);
  for (const box of Object.values(boxes)) box.addEventListener("change", draw);
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); step(Math.sign(event.deltaY)); }, { passive: false });
  $("viewer").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key in boxes && event.target.id !== "case") {
      boxes[key].checked = !boxes[key].checked;
      draw();
    } else if (event.target === canvas && ["arrowdown", "arrowright", "arrowup", "arrowleft"].includes(key)) {
      event.preventDefault();
      step(key === "arrowdown" || key === "arrowright" ? 1 : -1);
    }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!shown) return;
    const { entry, prediction, truth } = shown, area = canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - area.left) / area.width * entry.width);
    const y = Math.floor((event.clientY - area.top) / area.height * entry.height);
    if (x < 0 || y < 0 || x >= entry.width || y >= entry.height) return;
    const name = (own) => (own === 0 ? "background" : names.get(own) ?? `class ${own}`);
    $("pointer").textContent = `At the pointer: prediction ${name(prediction[y * entry.width + x])}, ground truth ${name(truth[y * entry.width + x])}`;
  });
  for (const link of document.querySelectorAll("a[data-case]")) {
    link.addEventListener("click", () => { $("case").value = link.dataset.case; chooseCase(); });
  }
  $("viewer").hidden = false;
  await chooseCase();
})();
