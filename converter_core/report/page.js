"use strict";

const content = (id) => JSON.parse(document.getElementById(id).textContent);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = matchMedia("(prefers-color-scheme: dark)");

/* Figures come without colours of their own background, text and lines: those are the page's, light or dark. */
function themed(layout) {
  const axis = { gridcolor: css("--grid"), zerolinecolor: css("--grid"), linecolor: css("--line") };
  return {
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: css("--text"), size: 13 },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text") }, align: "left" },
  };
}

function draw() {
  for (const place of document.querySelectorAll(".plot")) {
    const figure = content(place.id + "-figure");
    const options = { responsive: true, displayModeBar: false };
    Plotly.react(place, figure.data, themed(figure.layout), options);
  }
}

const table = document.querySelector("#weights table");

function fill() {
  const { columns, rows } = content("weights-rows");
  const body = table.tBodies[0];
  for (const row of rows) {
    const line = body.insertRow();
    line.className = row.kept ? "kept" : row.ok ? "" : "failed";
    line.values = row.values;
    row.texts.forEach((text, at) => {
      const cell = line.insertCell();
      cell.textContent = text;
      cell.className = columns[at].text ? "text" : "number";
      if (columns[at].name) cell.className = "text name";
      if (columns[at].bar && row.share !== null) {
        cell.classList.add("bar");
        cell.style.setProperty("--share", (100 * Math.min(1, row.share)).toFixed(1) + "%");
      }
    });
  }
}

function compare(one, other) {
  if (one === null || other === null) return (one === null) - (other === null);
  return typeof one === "string" ? one.localeCompare(other, undefined, { numeric: true }) : one - other;
}

function sortBy(at, direction) {
  const body = table.tBodies[0];
  const sign = direction === "descending" ? -1 : 1;
  const lines = [...body.rows].sort((one, other) => {
    const a = one.values[at], b = other.values[at];
    return a === null || b === null ? compare(a, b) : sign * compare(a, b);
  });
  body.append(...lines);
  [...table.tHead.rows[0].cells].forEach((head, number) => {
    head.setAttribute("aria-sort", number === at ? direction : "none");
  });
}

function filter(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const line of table.tBodies[0].rows) {
    const all = line.textContent.toLowerCase();
    line.hidden = !words.every((word) => all.includes(word));
  }
}

/* A button for each view of the map; its figure keeps the one that is shown, for the next change of colours. */
function offerViews(place) {
  const figure = content(place.id + "-figure");
  const buttons = Object.entries(figure.data[0].meta.views).map(([name, values]) => {
    const button = document.createElement("button");
    button.textContent = name;
    button.addEventListener("click", () => {
      buttons.forEach((other) => other.setAttribute("aria-pressed", other === button));
      figure.data[0].z = values;
      [figure.data[0].zmin, figure.data[0].zmax] = figure.data[0].meta.ranges[name];
      document.getElementById(place.id + "-figure").textContent = JSON.stringify(figure);
      draw();
    });
    return button;
  });
  if (!buttons.length) return;
  buttons.forEach((button, number) => button.setAttribute("aria-pressed", number === 0));
  const views = document.createElement("div");
  views.className = "views";
  views.append(...buttons);
  place.before(views);
}

draw();
dark.addEventListener("change", draw);

if (table) {
  fill();
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    const first = head.classList.contains("text") ? "ascending" : "descending";
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sortBy(at, now === "none" ? first : now === "ascending" ? "descending" : "ascending");
    });
  });
  const chosen = [...table.tHead.rows[0].cells].findIndex((head) => head.dataset.first !== undefined);
  if (chosen >= 0) sortBy(chosen, "descending");
  const search = document.querySelector("#weights input");
  search.addEventListener("input", () => filter(search.value));
  const map = document.getElementById("map");
  if (map) {
    offerViews(map);
    map.on("plotly_click", (event) => {
      search.value = event.points[0].customdata[0];
      filter(search.value);
      document.getElementById("weights").scrollIntoView({ behavior: "smooth" });
    });
  }
}
