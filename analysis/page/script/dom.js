// Elements are made here alone: texts enter as text nodes, never as markup.
"use strict";
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function add(parent, tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== "") element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

function button(parent, text, run, attributes = {}) {
  const element = add(parent, "button", text, { type: "button", class: "plain", ...attributes });
  element.addEventListener("click", run);
  return element;
}

function draw(parent, tag, attributes = {}, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function picture(parent, width, height, attributes = {}) {
  return draw(parent, "svg", { viewBox: `0 0 ${width} ${height}`, width, height, ...attributes });
}

// What a screen reader should hear without being asked.
function say(text) {
  $("said").textContent = text;
}

// Runs `job` once, soon, however often it was asked for: drawing must not hold up typing.
function soon(job, wait = 0) {
  let waiting = null;
  return () => {
    if (waiting !== null) clearTimeout(waiting);
    waiting = setTimeout(() => { waiting = null; job(); }, wait);
  };
}
