"use strict";
// The page of a case. `about` is what page.py wrote; volumes are unpacked when they are first shown. The volumes have a
// margin around the brain. The crosshair stays within the images: `about.inside` has their first and last voxel.
const about = JSON.parse(element("case").textContent);
const [width, height, depth] = about.shape;
const PLANES = [
  // The canonical axes (0 to the left, 1 to the front, 2 to the top) that a step to the right, up and through moves
  // along, and in which direction. Radiologists see the patient's left on the right, and the front on the left.
  {name: "axial", right: [0, -1], up: [1, 1], through: [2, 1]},
  {name: "coronal", right: [0, -1], up: [2, 1], through: [1, 1]},
  {name: "sagittal", right: [1, -1], up: [2, 1], through: [0, 1]},
];
// Numbers of NiiVue's `SLICE_TYPE`. Tiles: left, top, width and height as fractions of the picture, which may be wide, very
// wide or high. Gaps between tiles keep the letters of neighbouring planes apart.
const RENDER = 4;
const LAYOUTS = {
  "all three": {
    row: [[0, 0, 0, 0.31, 1], [1, 0.33, 0, 0.31, 1], [2, 0.66, 0, 0.34, 1]],
    wide: [[0, 0, 0, 0.57, 1], [1, 0.59, 0, 0.41, 0.5], [2, 0.59, 0.5, 0.41, 0.5]],
    high: [[0, 0, 0, 1, 0.62], [1, 0, 0.62, 0.45, 0.38], [2, 0.47, 0.62, 0.53, 0.38]],
  },
  "all three and 3-D": {
    wide: [[0, 0, 0, 0.49, 0.5], [1, 0.51, 0, 0.49, 0.5], [2, 0, 0.5, 0.49, 0.5], [RENDER, 0.51, 0.5, 0.49, 0.5]],
  },
  axial: {wide: [[0, 0, 0, 1, 1]]},
  coronal: {wide: [[1, 0, 0, 1, 1]]},
  sagittal: {wide: [[2, 0, 0, 1, 1]]},
  "3-D": {wide: [[RENDER, 0, 0, 1, 1]]},
};
const SHADER = `#version 300 es
precision highp int;
precision highp float;
uniform highp sampler3D volume, overlay;
uniform highp sampler3D drawing;
uniform highp sampler2D colormap;
uniform float overlays;
uniform float overlayAlphaShader;
uniform float overlayOutlineWidth;
uniform float drawRimOpacity;
in vec3 texPos;
out vec4 color;
// The voxel's bits: one for each region.
int bits(vec3 at) { return int(texture(drawing, at).r * 255.0 + 0.5); }
void main() {
  color = vec4(texture(volume, texPos).rgb, 1.0);
  if (overlays > 0.0) {
    vec4 over = texture(overlay, texPos);
    color.rgb = mix(color.rgb, over.rgb, over.a * overlayAlphaShader);
  }
  int here = bits(texPos);
  if (here == 0) return;
  float layers = float(textureSize(colormap, 0).y);
  vec3 x = dFdx(texPos), y = dFdy(texPos);
  vec4 paint = vec4(0.0);
  // Colours of the regions whose borders are here.
  vec4 borders[8];
  int count = 0;
  // Outer regions come first, so a filled inner region covers the regions around it.
  for (int region = 0; region < 8; region++) {
    int bit = 1 << region;
    if ((here & bit) == 0) continue;
    vec4 own = texture(colormap, vec2((float(bit) + 0.5) / 256.0, (layers - 0.5) / layers));
    if (own.a == 0.0) continue;
    if (overlayOutlineWidth == 0.0) { paint = own; continue; }
    vec3 across = x * overlayOutlineWidth, along = y * overlayOutlineWidth;
    int around = bits(texPos - across) & bits(texPos + across) & bits(texPos - along) & bits(texPos + along);
    across *= 0.7;
    along *= 0.7;
    around &= bits(texPos - across - along) & bits(texPos + across - along);
    around &= bits(texPos - across + along) & bits(texPos + across + along);
    if ((around & bit) == 0) borders[count++] = own;
  }
  // Stripes show every colour where several regions have the same border.
  if (count > 0) paint = borders[int((gl_FragCoord.x + gl_FragCoord.y) / (3.0 * overlayOutlineWidth)) % count];
  color.rgb = mix(color.rgb, paint.rgb, sign(paint.a) * drawRimOpacity);
}`;

// Colours of maps. Type 2 of NiiVue's colour maps does not draw values below the window.
const MAP_COLOURS = {I: [0, 85, 170, 255], R: [70, 190, 250, 255], G: [0, 40, 140, 255], B: [130, 110, 20, 170], A: [0, 255, 255, 255]};
const views = [], position = [...about.start], unpacked = {};
let plane = PLANES[0], regionsHidden = false;

function element(id) { return document.getElementById(id); }

function added(parent, tag, properties = {}) {
  return parent.appendChild(Object.assign(document.createElement(tag), properties));
}

async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

// Volumes are stored as differences from the mean of the three neighbours that come before, which compresses better.
async function voxels(packed) {
  const values = new Uint8Array(await inflated(packed));
  for (let at = 0, z = 0; z < depth; z++)
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++, at++) {
        const before = (x && values[at - 1]) + (y && values[at - width]) + (z && values[at - width * height]);
        values[at] += Math.floor(before / 3);
      }
  return values;
}

// NiiVue's image of a volume, by way of a NIfTI file in memory.
async function load(name, volume) {
  const header = Uint8Array.from(atob(volume.header), (letter) => letter.charCodeAt(0));
  const values = await voxels(volume.data);
  const file = new Uint8Array(header.length + values.length);
  file.set(header);
  file.set(values, header.length);
  const image = await niivue.NVImage.loadFromUrl({url: file, name: `${name}.nii`, colormap: volume.colours,
    cal_min: volume.window[0], cal_max: volume.window[1], colorbarVisible: volume.colours === "map"});
  if (volume.colours === "map") image.colormapType = 2;
  // A double click resets the window to these.
  [image.robust_min, image.robust_max] = volume.window;
  return Object.assign(image, {values, volume});
}

function image(kind, name) { return unpacked[`${kind} ${name}`] ??= load(name, about[kind][name]); }

// The value at a voxel in the units of the case, or null outside the brain.
function valueAt({values, volume}, at) {
  const {first, low, step} = volume;
  return values[at] < first ? null : low + (values[at] - first) * step;
}

async function show(view) {
  const {viewer} = view, chosen = () => [view.sequence, view.map, view.regions].map(({value}) => value);
  const wanted = chosen(), [sequence, map, regions] = wanted;
  const [back, over, labels] = await Promise.all([image("sequences", sequence), map && image("maps", map), regions && image("labels", regions)]);
  // Unpacking takes time. Someone may have chosen something else meanwhile, which is shown already.
  if (chosen().some((value, number) => value !== wanted[number])) return;
  viewer.volumes = over ? [back, over] : [back];
  viewer.back = back;
  viewer.overlays = viewer.volumes.slice(1);
  viewer.opts.isColorbar = Boolean(over);
  viewer.updateGLVolume();
  viewer.closeDrawing();
  if (labels) viewer.loadDrawing(labels);
  colour();
  move(position);
  showWindow();
}

// Colours of regions: a table over all combinations of bits, in which the innermost region that is switched on wins.
function colour() {
  const table = {R: [], G: [], B: [], A: [], I: []};
  for (let bits = 0; bits < 256; bits++) {
    let number = about.regions.length - 1;
    while (number >= 0 && !(bits >> number & 1 && !regionsHidden && element(`region-${number}`).checked)) number--;
    const rgb = about.regions[number]?.rgb ?? [0, 0, 0];
    ["R", "G", "B"].forEach((channel, index) => table[channel].push(rgb[index]));
    table.A.push(number < 0 ? 0 : 255);
    table.I.push(bits);
  }
  for (const {viewer} of views) {
    viewer.overlayOutlineWidth = element("outline").checked ? 1.5 * (viewer.uiData.dpr || 1) : 0;
    viewer.drawRimOpacity = element("opacity").value / 100;
    viewer.setDrawColormap(table);
  }
}

function arrange() {
  const layout = LAYOUTS[element("layout").value];
  // The picture ends where the window ends.
  const top = Math.max(...views.map(({canvas}) => canvas.getBoundingClientRect().top + scrollY));
  document.documentElement.style.setProperty("--top", `${top}px`);
  for (const {viewer, canvas} of views) {
    const aspect = canvas.clientWidth / canvas.clientHeight;
    const tiles = (aspect < 1.15 && layout.high) || (aspect > 2.1 && layout.row) || layout.wide;
    // A little space below each tile keeps its lowest letter in sight.
    viewer.setCustomLayout(tiles.map(([sliceType, left, top, wide, tall]) => ({sliceType, position: [left, top, wide, 0.98 * tall]})));
  }
}

// The crosshair keeps its place on the screen.
function zoom() {
  const factor = Number(element("zoom").value);
  for (const {viewer} of views) {
    const here = viewer.frac2mm(viewer.scene.crosshairPos);
    viewer.setPan2Dxyzmm([...[0, 1, 2].map((axis) => (1 - factor) * here[axis]), factor]);
  }
}

function move(to) {
  about.inside.forEach(([low, high], axis) => { position[axis] = Math.min(Math.max(Math.round(to[axis]), low), high); });
  for (const {viewer} of views) {
    viewer.scene.crosshairPos = viewer.vox2frac(position);
    viewer.drawScene();
  }
  moved();
}

// A click moves the crosshair to a place that is in sight. After other moves, the picture follows the crosshair.
function follow(to) {
  move(to);
  zoom();
}

// Write the place of the crosshair and what is there.
function moved() {
  const at = (position[2] * height + position[1]) * width + position[0];
  const transformed = (matrix) => matrix.slice(0, 3).map((row) => row[3] + row[0] * position[0] + row[1] * position[1] + row[2] * position[2]);
  // Signed numbers, as in other viewers: the origin may lie in a corner, and then "80 mm R" would be on the left of the head.
  const millimetres = transformed(about.affine).map((value) => value.toFixed(0)).join(", ");
  const words = [`${plane.name} plane`, `voxel ${transformed(about.own).map(Math.round).join(", ")}`, `RAS coordinates ${millimetres} mm`];
  for (const [number, view] of views.entries()) {
    const side = views.length > 1 ? `${number ? "right" : "left"}: ` : "";
    const parts = [];
    for (const shown of view.viewer.volumes) {
      const value = valueAt(shown, at);
      parts.push(`${shown.name.replace(".nii", "")} ${value === null ? "outside" : Number(value.toPrecision(3))}`);
    }
    const bits = view.viewer.drawBitmap?.[at] ?? 0;
    const inside = about.regions.filter((_, region) => bits >> region & 1).map(({name}) => name);
    if (view.regions.value) parts.push(inside.length ? `in ${inside.join(", ")}` : "in no region");
    words.push(side + parts.join(", "));
  }
  element("where").textContent = words.join(" · ");
  position.forEach((value, axis) => {
    const slider = element(`slice-${axis}`);
    slider.value = value;
    const [low, high] = about.inside[axis];
    slider.setAttribute("aria-valuetext", `slice ${value - low + 1} of ${high - low + 1}`);
  });
}

// Set the sliders to the window of the left view.
function showWindow() {
  const {cal_min: low, cal_max: high} = views[0].viewer.volumes[0];
  element("level").value = (low + high) / 2;
  element("width").value = high - low;
}

function setWindow(low, high) {
  for (const {viewer} of views) {
    [viewer.volumes[0].cal_min, viewer.volumes[0].cal_max] = [low, high];
    viewer.updateGLVolume();
  }
}

function keyPressed(event) {
  const steps = {ArrowRight: ["right", 1], ArrowLeft: ["right", -1], ArrowUp: ["up", 1], ArrowDown: ["up", -1],
    PageUp: ["through", 1], PageDown: ["through", -1]};
  // NiiVue has keys of its own, which the page does not explain.
  event.stopImmediatePropagation();
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key in steps) {
    const [way, sign] = steps[event.key], [axis, direction] = plane[way], to = [...position];
    to[axis] += sign * direction;
    follow(to);
  } else if ("123".includes(event.key)) {
    plane = PLANES[event.key - 1];
    moved();
  } else if (event.key === " ") {
    regionsHidden = !regionsHidden;
    colour();
  } else return;
  event.preventDefault();
}

function select(parent, label, names, value) {
  const chosen = added(added(parent, "label", {textContent: `${label} `}), "select");
  for (const [key, text] of names) added(chosen, "option", {value: key, textContent: text});
  chosen.value = value;
  return chosen;
}

async function addView(sequence, regions) {
  const number = views.length, box = added(element("views"), "div", {className: "view"});
  const choices = added(box, "div", {className: "choices"});
  const canvas = added(added(box, "div", {className: "canvas"}), "canvas", {tabIndex: 0, id: `canvas-${number}`});
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Slices. Arrow keys move the crosshair; Page Up and Page Down go through the slices.");
  canvas.setAttribute("aria-describedby", "where");
  const view = {
    box, canvas,
    sequence: select(choices, "sequence", Object.keys(about.sequences).map((name) => [name, name]), sequence),
    regions: select(choices, "regions", [...Object.keys(about.labels).map((name) => [name, name]), ["", "none"]], regions),
    map: select(choices, "map", [["", "none"], ...Object.keys(about.maps).map((name) => [name, name])], ""),
  };
  view.map.parentElement.hidden = Object.keys(about.maps).length === 0;
  canvas.addEventListener("keydown", keyPressed, true);
  canvas.addEventListener("keyup", (event) => event.stopImmediatePropagation(), true);
  const viewer = view.viewer = new niivue.Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [0.55, 1, 0.55, 0.7], crosshairWidth: 0.6, crosshairGap: 10,
    dragAndDropEnabled: false, fontColor: [1, 1, 1, 1], isForceMouseClickToVoxelCenters: true, isRadiologicalConvention: true,
    loadingText: "", logLevel: "error", sagittalNoseLeft: true, showAllOrientationMarkers: true, show3Dcrosshair: true,
    windowingGainFactor: about.levels / 255, fontMinPx: 14, tileMargin: 2, textHeight: -1,
    isColorbar: false, colorbarHeight: 0.03,
  });
  viewer.addColormap("map", MAP_COLOURS);
  await viewer.attachToCanvas(canvas);
  viewer.setCustomSliceShader(SHADER);
  viewer.overlayAlphaShader = 0.8;
  viewer.onLocationChange = (place) => {
    if (place.axCorSag in PLANES) plane = PLANES[place.axCorSag];
    if (viewer.volumes.length && views.includes(view)) move(place.vox);
  };
  viewer.onMouseUp = () => {
    // The views share the images, so the other view has the new window too, once it is drawn.
    for (const other of views) if (other !== view) other.viewer.updateGLVolume();
    showWindow();
  };
  views.push(view);
  for (const chosen of [view.sequence, view.regions, view.map]) chosen.addEventListener("change", () => show(view));
  drag();
  new ResizeObserver(arrange).observe(canvas);
  await show(view);
  arrange();
  zoom();
}

function removeView() {
  const view = views.pop();
  view.viewer.cleanup();
  view.viewer.gl.getExtension("WEBGL_lose_context")?.loseContext();
  view.box.remove();
  arrange();
  moved();
}

function drag() {
  const {crosshair, windowing, pan} = niivue.DRAG_MODE;
  const main = element("drag-window").checked ? windowing : crosshair;
  for (const {viewer} of views) {
    viewer.setMouseEventConfig({leftButton: {primary: main}, rightButton: windowing, centerButton: pan});
    viewer.setTouchEventConfig({singleTouch: main, doubleTouch: pan});
  }
}

function connect() {
  for (const name of Object.keys(LAYOUTS)) added(element("layout"), "option", {value: name, textContent: name});
  about.inside.forEach(([min, max], axis) => {
    const slider = Object.assign(element(`slice-${axis}`), {min, max, value: position[axis]});
    slider.addEventListener("input", () => follow(position.map((value, other) => (other === axis ? slider.value : value))));
  });
  about.regions.forEach((_, number) => {
    element(`region-${number}`).disabled = false;
    element(`region-${number}`).addEventListener("change", colour);
  });
  const {levels} = about, level = element("level"), range = element("width");
  Object.assign(level, {min: 0, max: levels, step: levels / 100});
  Object.assign(range, {min: levels / 100, max: 2 * levels, step: levels / 100});
  for (const slider of [level, range])
    slider.addEventListener("input", () => setWindow(level.value - range.value / 2, Number(level.value) + range.value / 2));
  element("reset").addEventListener("click", () => {
    for (const {viewer} of views) [viewer.volumes[0].cal_min, viewer.volumes[0].cal_max] = viewer.volumes[0].volume.window;
    for (const {viewer} of views) viewer.updateGLVolume();
    showWindow();
  });
  element("home").addEventListener("click", () => follow(about.start));
  element("layout").addEventListener("change", arrange);
  element("zoom").addEventListener("input", zoom);
  element("crosshair").addEventListener("change", (event) => views.forEach(({viewer}) => viewer.setCrosshairWidth(event.target.checked ? 0.4 : 0)));
  element("opacity").addEventListener("input", colour);
  element("fill").addEventListener("change", () => { element("opacity").value = 40; colour(); });
  element("outline").addEventListener("change", () => { element("opacity").value = 100; colour(); });
  for (const id of ["drag-crosshair", "drag-window"]) element(id).addEventListener("change", drag);
  element("compare").addEventListener("change", async ({target}) => {
    // The second view takes a moment, and cannot be removed before it is there.
    target.disabled = true;
    if (target.checked) await addView(...about.second);
    else removeView();
    target.disabled = false;
    document.body.dataset.views = views.length;
  });
}

function usable(yes) {
  for (const id of ["viewer", "controls", "help"]) element(id).hidden = !yes;
  element("still").hidden = yes;
}

// The app shows the page in a frame, below its own notice and the warnings.
document.body.classList.toggle("inside", location.hash === "#inside");

async function start() {
  if (!document.createElement("canvas").getContext("webgl2"))
    throw new Error("This browser has no WebGL2, which the slices need. Switch on hardware acceleration, or use another browser.");
  if (!window.DecompressionStream)
    throw new Error("This browser is too old to unpack the slices. Update it, or use another browser.");
  added(document.head, "script", {textContent: new TextDecoder().decode(await inflated(element("niivue").textContent))});
  usable(true);
  connect();
  await addView(...about.first);
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  console.error(error);
  usable(false);
  element("failure").textContent = `${error.message} The picture below shows the result without them.`;
  document.body.dataset.ready = "no";
});
