// The item browser of the report: filters, search, pages and marked differences over the data embedded in the page.
// Plain DOM, text nodes only: nothing a model wrote is ever parsed as HTML. evaluation/browser.py documents the data.
"use strict";
(() => {
  const PAGE = 20; // items at a time: thousands of records stay fast
  const CLIP = 1500; // characters of a text before "show all"
  const DIFF_CELLS = 400000; // a difference takes words * words steps
  const SIMILAR = 0.4; // texts with less in common are not marked, as in the Markdown report
  const PAUSE_MS = 120; // after the last key before the search starts

  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const form = byId("filters");
  const field = (name) => form.elements.namedItem(name);
  let shown = []; // places of the items that pass the filters, in order
  let page = 0;

  const element = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  };

  // ---- Which items ----

  const textOf = (model, place) => {
    const text = data.answers[model].texts[place];
    return text === 0 ? data.golds[place] : text;
  };

  const haystacks = new Array(data.ids.length);
  const haystack = (place) => {
    if (haystacks[place] === undefined) {
      const answers = data.answers.flatMap((answer, model) => [textOf(model, place) || "", data.whys[answer.whys[place]]]);
      haystacks[place] = [data.ids[place], data.inputs[place], data.golds[place], ...answers].join("\n").toLowerCase();
    }
    return haystacks[place];
  };

  const isRight = (model, place, metric) => Boolean((data.answers[model].right[place] >> metric) & 1);

  const agrees = (kind, place, metric) => {
    const right = data.answers.filter((_, model) => isRight(model, place, metric)).length;
    if (kind === "disagree") return right > 0 && right < data.answers.length;
    return right === (kind === "right" ? data.answers.length : 0);
  };

  const judgedAs = (wanted, model, place, metric) => {
    if (model !== "") return isRight(Number(model), place, metric) === wanted;
    return data.answers.some((_, each) => isRight(each, place, metric) === wanted);
  };

  const filters = () => {
    const value = (name) => field(name).value;
    const words = value("text").toLowerCase().split(/\s+/).filter(Boolean);
    const metric = Number(value("metric"));
    const tests = [];
    if (words.length) tests.push((place) => words.every((word) => haystack(place).includes(word)));
    if (value("agreement")) tests.push((place) => agrees(value("agreement"), place, metric));
    if (value("right")) tests.push((place) => judgedAs(true, value("right"), place, metric));
    if (value("wrong")) tests.push((place) => judgedAs(false, value("wrong"), place, metric));
    if (value("error")) {
      const error = Number(value("error"));
      const among = value("of") === "" ? data.answers : [data.answers[Number(value("of"))]];
      tests.push((place) => among.some((answer) => answer.errors[place] === error));
    }
    if (field("leaks") && field("leaks").checked) tests.push((place) => place in data.leaks);
    return tests;
  };

  const filter = () => {
    const tests = filters();
    const places = field("order").value === "worst" ? data.order : data.ids.map((_, place) => place);
    shown = tests.length ? places.filter((place) => tests.every((test) => test(place))) : places;
    page = 0;
    render();
  };

  // ---- What an item looks like ----

  const pieces = (text) => text.match(/[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}_\s]/gu) || [];
  const letters = (list) => list.reduce((sum, piece) => sum + (piece.trim() ? piece.length : 0), 0);

  // Longest common subsequence of two lists of words, as stretches [kind, text]; null when it is too long to find.
  const difference = (gold, output) => {
    const a = pieces(gold);
    const b = pieces(output);
    if (a.length * b.length > DIFF_CELLS) return null;
    const width = b.length + 1;
    const best = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        best[i * width + j] = a[i] === b[j]
          ? best[(i + 1) * width + j + 1] + 1
          : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
      }
    }
    const parts = [];
    const push = (kind, text) => {
      if (parts.length && parts[parts.length - 1][0] === kind) parts[parts.length - 1][1] += text;
      else parts.push([kind, text]);
    };
    const same = [];
    let i = 0;
    let j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) {
        same.push(a[i]);
        push("same", a[i]);
        i++;
        j++;
      } else if (j === b.length || (i < a.length && best[(i + 1) * width + j] >= best[i * width + j + 1])) {
        push("del", a[i++]);
      } else {
        push("ins", b[j++]);
      }
    }
    return (2 * letters(same)) / Math.max(1, letters(a) + letters(b)) < SIMILAR ? null : parts;
  };

  const long = (text) => {
    const node = element("p", "text", text.slice(0, CLIP));
    if (text.length <= CLIP) return node;
    const more = element("button", "more", `Show all ${text.length.toLocaleString("en")} characters`);
    more.type = "button";
    more.addEventListener("click", () => {
      node.replaceChildren(text);
      node.tabIndex = -1;
      node.focus();
    });
    node.append(" ", more);
    return node;
  };

  const outputText = (model, place) => {
    const text = data.answers[model].texts[place];
    if (text === null) return element("p", "text none", "(only the score was kept)");
    if (text === 0) return element("p", "text none", "the same text as gold");
    if (text === "") return element("p", "text none", "(empty)");
    const parts = difference(data.golds[place], text);
    if (parts === null) return long(text);
    const nodes = parts.map(([kind, part]) => (kind === "same" ? part : element(kind, "", part)));
    return element("p", "text", ...nodes);
  };

  const answerNodes = (model, place, metric) => {
    const answer = data.answers[model];
    const right = isRight(model, place, metric);
    const mark = element("span", right ? "mark good" : "mark bad", right ? "right" : "wrong");
    const why = element("p", "why", mark);
    if (answer.errors[place] >= 0) why.append(" ", element("span", "tag", data.errors[answer.errors[place]]));
    why.append(" ", data.whys[answer.whys[place]]);
    return [element("dt", "", data.models[model]), element("dd", "", outputText(model, place), why)];
  };

  const item = (place, metric) => {
    const head = element("h3", "", data.ids[place]);
    if (place in data.leaks) head.append(" ", element("span", "tag leak", `leak: ${data.leaks[place]}`));
    const list = element("dl", "");
    list.append(element("dt", "", "Input"), element("dd", "", long(data.inputs[place])));
    list.append(element("dt", "", "Gold"), element("dd", "", long(data.golds[place])));
    data.models.forEach((_, model) => list.append(...answerNodes(model, place, metric)));
    return element("article", "example", head, list);
  };

  const render = () => {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const from = page * PAGE;
    const metric = Number(field("metric").value);
    const here = shown.slice(from, from + PAGE);
    byId("list").replaceChildren(...here.map((place) => item(place, metric)));
    const all = data.ids.length.toLocaleString("en");
    const found = `${shown.length.toLocaleString("en")} of ${all} items`;
    byId("count").textContent = here.length ? `${found}, showing ${from + 1} to ${from + here.length}` : `${found}: no item passes these filters`;
    byId("page").textContent = `Page ${page + 1} of ${pages}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
    byId("pager").hidden = pages === 1;
  };

  // ---- What the reader does ----

  const turn = (step) => {
    page += step;
    render();
    byId("items-title").focus({ preventScroll: true });
    byId("items").scrollIntoView();
  };

  const showPair = (link) => {
    form.reset();
    field("metric").value = String(data.metrics.indexOf(link.dataset.metric));
    field("right").value = String(data.models.indexOf(link.dataset.right));
    field("wrong").value = String(data.models.indexOf(link.dataset.wrong));
    filter();
  };

  const start = () => {
    data.errors.forEach((name, place) => field("error").append(new Option(name, String(place))));
    let timer = 0;
    field("text").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(filter, PAUSE_MS);
    });
    form.addEventListener("change", filter);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      filter();
    });
    form.addEventListener("reset", () => setTimeout(filter, 0)); // after the fields are back at their defaults
    byId("previous").addEventListener("click", () => turn(-1));
    byId("next").addEventListener("click", () => turn(1));
    document.querySelectorAll("a.show").forEach((link) => link.addEventListener("click", () => showPair(link)));
    addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
    form.hidden = false;
    filter();
  };

  start();
})();
