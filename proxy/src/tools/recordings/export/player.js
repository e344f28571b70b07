
"use strict";
(() => {
  const tape = JSON.parse(document.getElementById("recording").textContent);
  const { about, frames, end } = tape;
  const NAMES = ["bold", "faint", "italic", "underline", "strike"];
  const INVERSE = 32, WIDE = 64;
  const SPEEDS = [0.25, 0.5, 1, 2, 4, 8, 16];
  const BASE = ["#000000", "#cd3131", "#0dbc79", "#e5e510", "#2472c8", "#bc3fbc", "#11a8cd", "#d0d0d0",
    "#666666", "#f14c4c", "#23d18b", "#f5f543", "#3b8eea", "#d670d6", "#29b8db", "#ffffff"];
  const FOREGROUND = "#d0d0d0", BACKGROUND = "#000000";

  const element = (name, kind, text) => {
    const made = document.createElement(name);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // A colour is a number, whatever it says: nothing else gets into a style.
  const colour = (number, otherwise) => {
    number = Number(number) | 0;
    if (number < 0) return otherwise;
    if (number < 16) return BASE[number];
    if (number >= 256) return "#" + (number - 256).toString(16).padStart(6, "0").slice(-6);
    if (number >= 232) { const grey = 8 + (number - 232) * 10; return `rgb(${grey},${grey},${grey})`; }
    const step = (level) => (level === 0 ? 0 : 55 + level * 40);
    const cube = number - 16;
    return `rgb(${step(Math.floor(cube / 36))},${step(Math.floor(cube / 6) % 6)},${step(cube % 6)})`;
  };

  const drawn = (span) => {
    if (typeof span === "string") return document.createTextNode(span);
    const [text, foreground, background, bits] = span;
    const made = element("span", NAMES.filter((_, bit) => bits & (1 << bit)).join(" "), text);
    if (bits & WIDE) made.classList.add("wide");
    const [front, back] = [colour(foreground, FOREGROUND), colour(background, BACKGROUND)];
    if (foreground >= 0 || bits & INVERSE) made.style.color = bits & INVERSE ? back : front;
    if (background >= 0 || bits & INVERSE) made.style.backgroundColor = bits & INVERSE ? front : back;
    return made;
  };

  document.title = about.title || "Recording";
  document.body.append(element("h1", "", about.title));
  const facts = element("dl");
  for (const [name, text] of about.facts) facts.append(element("dt", "", name), element("dd", "", text));
  facts.append(element("dt", "", "state"), element("dd", "", end.says));
  document.body.append(facts);
  if (end.state !== "whole") document.body.append(element("p", "warning", `This recording is ${end.says}.`));

  const screen = element("pre");
  const box = element("div", "screen");
  box.append(screen);
  const play = element("button", "", "▶");
  const bar = element("input");
  Object.assign(bar, { type: "range", min: 0, max: end.length, step: 1, value: 0 });
  const time = element("span");
  const speed = element("select");
  for (const times of SPEEDS) {
    const choice = element("option", "", `${times}x`);
    choice.value = times;
    speed.append(choice);
  }
  speed.value = 1;
  const controls = element("div", "controls");
  controls.append(play, bar, time, speed);
  document.body.append(box, controls);
  const cursor = element("span", "cursor");

  let next = 0;
  let at = 0;
  let since = null;

  const show = (frame) => {
    if (frame.s) {
      const [columns, rows] = frame.s;
      screen.replaceChildren(...Array.from({ length: rows }, () => element("div")));
      screen.style.width = `${columns}ch`;
    }
    for (const [row, spans] of frame.r) screen.children[row].replaceChildren(...spans.map(drawn));
    cursor.remove();
    if (frame.c) {
      cursor.style.left = `${Number(frame.c[0])}ch`;
      screen.children[frame.c[1]].append(cursor);
    }
  };

  const clock = (milliseconds) => {
    const seconds = Math.floor(milliseconds / 1000);
    const two = (number) => String(number).padStart(2, "0");
    const hours = Math.floor(seconds / 3600);
    return `${hours ? hours + ":" : ""}${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}`;
  };

  const go = (to) => {
    at = Math.min(Math.max(to, 0), end.length);
    // Each frame is what changed: to go back is to begin again.
    if (next > 0 && frames[next - 1].t > at) next = 0;
    while (next < frames.length && frames[next].t <= at) show(frames[next++]);
    bar.value = at;
    time.textContent = `${clock(at)} / ${clock(end.length)}`;
  };

  const stop = () => { since = null; play.textContent = "▶"; };
  const tick = (now) => {
    if (since === null) return;
    go(at + (now - since) * Number(speed.value));
    since = now;
    if (at >= end.length) stop();
    else requestAnimationFrame(tick);
  };
  const start = () => {
    if (at >= end.length) go(0);
    since = performance.now();
    play.textContent = "❚❚";
    requestAnimationFrame(tick);
  };
  const toggle = () => (since === null ? start() : stop());

  play.addEventListener("click", toggle);
  bar.addEventListener("input", () => go(Number(bar.value)));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target === bar || event.target === speed) return;
    if (event.target === play && (event.key === " " || event.key === "Enter")) return;
    const step = () => { stop(); return next; };
    const keys = {
      " ": toggle,
      ArrowLeft: () => go(at - 5000),
      ArrowRight: () => go(at + 5000),
      Home: () => go(0),
      End: () => go(end.length),
      ".": () => { const to = step(); if (to < frames.length) go(frames[to].t); },
      ",": () => { const to = step(); if (to > 1) go(frames[to - 2].t); },
      "+": () => { speed.selectedIndex = Math.min(speed.selectedIndex + 1, SPEEDS.length - 1); },
      "-": () => { speed.selectedIndex = Math.max(speed.selectedIndex - 1, 0); },
    };
    if (!Object.hasOwn(keys, event.key)) return;
    keys[event.key]();
    event.preventDefault();
  });
  go(0);
})();
