"use strict";
// Draws the figures that the page carries, and shows the structure behind a point that is clicked.
(() => {
  const told = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function themed(layout) {
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 13 },
      margin: { l: 50, r: 15, t: 10, b: 45 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    };
  }

  const plots = new Map();
  function draw(name) {
    const figure = told.figures[name];
    const place = document.getElementById(`plot-${name}`);
    const settings = { responsive: true, displaylogo: false, toImageButtonOptions: { format: "svg", filename: name } };
    Plotly.react(place, figure.data, themed(figure.layout), settings);
    if (!plots.has(name) && figure.showsStructures) {
      place.on("plotly_click", (event) => {
        const [segment, frame] = event.points[0].customdata;
        show(segment, frame);
        document.getElementById("structure").scrollIntoView({ block: "nearest" });
      });
    }
    plots.set(name, place);
  }

  function colourBy(name, which) {
    const { name: title, values } = told.figures[name].colours[which];
    const trace = told.figures[name].data[0];
    trace.marker = {
      ...trace.marker, color: values, colorscale: "Viridis", showscale: true,
      colorbar: { title: { text: title, side: "right" }, thickness: 12 },
    };
    draw(name);
  }

  for (const name of Object.keys(told.figures)) draw(name);
  for (const choice of document.querySelectorAll("[data-colours]")) {
    const name = choice.dataset.colours;
    choice.addEventListener("change", () => colourBy(name, Number(choice.value)));
    colourBy(name, 0);
  }

  // Structures: whole numbers of 0.001 nm, little-endian, in base64.
  const trajectories = new Map((told.coordinates || []).map((each) => [each.s, each]));
  const place = document.getElementById("viewer");
  const of = (id) => document.getElementById(id);
  let viewer, model, now, timer;

  function framesOf(each) {
    const bytes = Uint8Array.from(atob(each.x), (letter) => letter.charCodeAt(0));
    const numbers = new DataView(bytes.buffer);
    const perFrame = bytes.length / 2 / each.f.length;
    return each.f.map((_, frame) => {
      const atoms = [];
      for (let i = 0; i < perFrame; i += 3) {
        const at = (k) => numbers.getInt16(2 * (frame * perFrame + i + k), true) * 0.01;  // Angstrom
        atoms.push([at(0), at(1), at(2)]);
      }
      return atoms;
    });
  }

  function begin() {
    viewer = $3Dmol.createViewer(place, { backgroundColor: colour("--ground") });
    model = viewer.addModel(told.topology, "pdb", { keepH: true, altLoc: "*" });  // every atom: frames have them
    const residues = new Set(model.selectedAtoms({ atom: "CA" }).map((atom) => `${atom.chain}${atom.resi}`));
    viewer.setStyle({}, { stick: { radius: 0.14 }, sphere: { scale: 0.22 } });
    if (residues.size > 4) {
      viewer.setStyle({ atom: ["N", "CA", "C", "O", "OXT"] }, { cartoon: { color: "spectrum" } });
      viewer.addStyle({ not: { elem: "H" } }, { line: {} });
      viewer.setStyle({ elem: "H" }, {});
      viewer.addStyle({ resn: "ACE" }, { stick: { radius: 0.1 } });
    }
  }

  function show(segment, frame) {
    if (!place) return;
    stop();
    const each = trajectories.get(segment);
    if (!each) {
      of("shown").textContent = `Coordinates of segment ${segment} are not in this page: it is a sample.`;
      return;
    }
    const first = viewer === undefined;
    if (first) begin();
    const frames = framesOf(each);
    if (frames[0].length !== model.selectedAtoms({}).length) {
      throw new Error(`segment ${segment} has ${frames[0].length} atoms, not those of the topology`);
    }
    model.setCoordinates(frames, "array");
    now = each;
    const found = each.f.indexOf(frame);
    of("segment").value = String(segment);
    of("frame").max = String(each.f.length - 1);
    of("trajectory").href = each.a;
    of("trajectory").textContent = each.p;
    of("load").textContent = `MDAnalysis.Universe("topology.pdb", "${each.p}")`;
    turn(found < 0 ? each.f.length - 1 : found);
    if (first) { viewer.zoomTo(); viewer.render(); }
  }

  function turn(place_) {
    of("frame").value = String(place_);
    // The drawing of a frame is told when it is done.
    viewer.setFrame(place_).then(() => viewer.render());
    const words = `Segment ${now.s}, frame ${now.f[place_]}` + (now.o === undefined ? ", from a basis state" : `, from segment ${now.o}`);
    of("shown").textContent = `${words}.`;
    place.setAttribute("aria-label", `Structure of segment ${now.s}, frame ${now.f[place_]}`);
  }

  function stop() {
    clearInterval(timer);
    timer = undefined;
    of("play").textContent = "Play";
    of("play").setAttribute("aria-pressed", "false");
  }

  if (place) {
    of("segment").addEventListener("change", (event) => show(Number(event.target.value), 0));
    of("frame").addEventListener("input", (event) => { if (now) turn(Number(event.target.value)); });
    of("parent").addEventListener("click", () => { if (now && now.o !== undefined) show(now.o, now.k); });
    of("play").addEventListener("click", () => {
      if (timer !== undefined) return stop();
      if (!now) show(Number(of("segment").value), 0);
      of("play").textContent = "Pause";
      of("play").setAttribute("aria-pressed", "true");
      timer = setInterval(() => turn((Number(of("frame").value) + 1) % now.f.length), 200);
    });
    show(told.first, told.firstFrame);
  }

  dark.addEventListener("change", () => {
    for (const name of plots.keys()) draw(name);
    if (viewer) { viewer.setBackgroundColor(colour("--ground")); viewer.render(); }
  });
  document.documentElement.dataset.drawn = String(plots.size);
})();
