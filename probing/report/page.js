"use strict";
// Rows of a report page: they are searched, sorted, filtered from bars, and opened one by one. All texts come from data
// and are only ever set as text.
(() => {
  const STEP = 50;
  const WAIT_MS = 120;
  const LONG_TEXT = 4000;
  const CELL_TEXT = 90;
  const SHOWN_TOKENS = 500;
  const MOST_FALLEN = 5;
  // Changes of log-probability, in nats, at which the colour of a token changes.
  const LIMITS = [0.1, 0.3, 1, 3];
  // Shares of the largest pull of a response at which the colour of a token changes, and below which it is shown as 0.
  const SHARES = [0.05, 0.2, 0.5, 0.8];
  const NO_PULL = 0.001;
  // Of the column of ids, which is none of the columns of the data.
  const ID = -1;
  const NONE = -1;
  const LEFT_OUT = -2;
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const collator = new Intl.Collator("en", { numeric: true });

  // ---- Small things that are made of text ----

  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (value === true) element.setAttribute(name, "");
      else if (value !== false && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };

  const makeButton = (text, act, attributes) => {
    const button = make("button", { type: "button", ...attributes }, text);
    button.addEventListener("click", act);
    return button;
  };

  const missing = () => make("span", { class: "none" }, "none");
  const count = (number) => number.toLocaleString("en");
  const countOf = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

  const round = (number, digits) => (Number.isInteger(number) ? number : Number(number.toPrecision(digits)));

  const show = (column, row, digits) => {
    const value = column.values[row];
    if (column.kind === "text") return value === NONE ? missing() : data.strings[value];
    if (value === null) return missing();
    if (column.kind === "flag") return value ? "yes" : "no";
    return String(round(value, digits));
  };

  const showChange = (change) => {
    if (change === null) return "none";
    const text = change.toFixed(2);
    return Number(text) === 0 ? "0" : change > 0 ? `+${text}` : text;
  };

  const showProbability = (probability) => {
    if (probability === null) return "none";
    return probability < 1e-6 ? "below 0.000001" : String(round(probability, 3));
  };

  // Without half of a character of two parts at the end.
  const cut = (text, length) => text.slice(0, length).replace(/[\ud800-\udbff]$/, "");
  const shorten = (text, length) => (text.length <= length ? text : `${cut(text, length)}…`);

  const makeText = (text) => {
    const place = make("div", { class: "text", dir: "auto" });
    if (text.length <= LONG_TEXT) {
      place.append(text);
      return place;
    }
    const all = makeButton(`show all ${count(text.length)} characters`, () => {
      place.replaceChildren(text);
      place.tabIndex = -1;
      place.focus();
    });
    place.append(`${cut(text, LONG_TEXT / 2)}…`, make("br"), all);
    return place;
  };

  const makeTable = (caption, titles, rows) => {
    const heads = titles.map(([title, number]) => make("th", { scope: "col", class: number && "number" }, title));
    const cells = (row) =>
      row.map((cell, at) => make("td", { class: titles[at][1] && "number" }, ...(Array.isArray(cell) ? cell : [cell])));
    const body = make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row))));
    const table = make("table", {}, make("caption", {}, make("span", {}, caption)), make("thead", {}, make("tr", {}, ...heads)), body);
    return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption }, table);
  };

  // ---- Tokens of a response ----

  const readTokens = ([numbers, before, changes, gained]) =>
    numbers.map((number, at) => {
      const low = before[at] === null ? null : before[at] / 1000;
      const change = changes[at] === null ? null : changes[at] / 1000;
      const after = low === null || change === null ? null : low + change;
      const others = [];
      for (let from = 0; from < gained[at].length; from += 3) {
        const [text, first, last] = gained[at].slice(from, from + 3);
        const scaled = [first, last].map((value) => (value === null ? null : value / 1e6));
        others.push({ text: data.strings[text], before: scaled[0], after: scaled[1] });
      }
      const shown = { color: colorOf(change), number: showChange(change) };
      return { at, text: data.strings[number], before: low, change, after, gained: others, ...shown };
    });

  const showPull = (pull) => (pull === null ? "none" : String(round(pull, 3)));

  const readPulls = ([numbers, pulls]) => {
    const most = pulls.reduce((largest, pull) => Math.max(largest, Math.abs(pull)), 0);
    return pulls.map((pull, at) => {
      const level = pull ? SHARES.filter((share) => Math.abs(pull) >= share * most).length : 0;
      const color = level === 0 ? "" : `${pull > 0 ? "lost" : "won"}-${level}`;
      const small = pull !== null && Math.abs(pull) < NO_PULL * most;
      return { at, text: data.strings[numbers[at]], pull, small, color, number: small ? "0" : showPull(pull) };
    });
  };

  // "lost-3" where a token lost between 1 and 3 nats.
  const colorOf = (change) => {
    const level = change === null ? 0 : LIMITS.filter((limit) => Math.abs(change) >= limit).length;
    return level === 0 ? "" : `${change < 0 ? "lost" : "won"}-${level}`;
  };

  const makePiece = (text) => make("span", { class: "piece" }, text.replaceAll("\n", "↵").replaceAll("\t", "⇥"));

  const makeToken = (token) => {
    const number = make("span", { class: "change" }, token.number);
    return make("span", { class: `token ${token.color}` }, makePiece(token.text), number);
  };

  const key = (name, text) => make("span", { class: `key ${name}` }, text);

  const makeLegend = () => {
    const [a, b, c, d] = LIMITS;
    const lost = [key("lost-4", `-${d} or less`), key("lost-3", `-${c}`), key("lost-2", `-${b}`), key("lost-1", `-${a}`)];
    const won = [key("won-1", `+${a}`), key("won-2", `+${b}`), key("won-3", `+${c}`), key("won-4", `+${d} or more`)];
    return make("p", { class: "legend" }, "Change of ln p, nats: ", ...lost, key("", "nearer to 0"), ...won);
  };

  const makePullLegend = () => {
    const names = SHARES.map((share, at) => [at + 1, `${100 * share} %`]).reverse();
    const above = names.map(([level, text]) => key(`lost-${level}`, text));
    const below = names.map(([level, text]) => key(`won-${level}`, text)).reverse();
    const words = "At least so much of the largest pull of the response: above 0 ";
    return make("p", { class: "legend" }, words, ...above, key("", "less"), ...below, " below 0");
  };

  const exp = (logarithm) => (logarithm === null ? null : Math.exp(logarithm));

  const listGained = (token) =>
    token.gained.length === 0
      ? [missing()]
      : token.gained.flatMap((other, at) => [
          at ? ", " : "",
          make("bdi", { class: "piece" }, other.text.replaceAll("\n", "↵")),
          ` ${showProbability(other.before)} → ${showProbability(other.after)}`,
        ]);

  const TOKEN_TITLES = [
    ["position", true],
    ["token", false],
    ["change of ln p, nats", true],
    ["probability before", true],
    ["after", true],
    ["gained most in its place (probability before → after)", false],
  ];

  const listToken = (token) => [
    String(token.at),
    [makePiece(token.text)],
    showChange(token.change),
    showProbability(exp(token.before)),
    showProbability(exp(token.after)),
    listGained(token),
  ];

  const makeTokenTable = (caption, tokens) => makeTable(caption, TOKEN_TITLES, tokens.map(listToken));

  const PULL_TITLES = [
    ["position", true],
    ["token", false],
    ["pull", true],
  ];

  const makePullTable = (caption, tokens) =>
    makeTable(caption, PULL_TITLES, tokens.map((token) => [String(token.at), [makePiece(token.text)], showPull(token.pull)]));

  // The tokens in colour, the first of them until all are asked for.
  const makeColored = (tokens) => {
    // Numbers between words are no text to listen to; the table below says the same.
    const place = make("div", { class: "tokens", dir: "auto", "aria-hidden": "true" });
    const add = (some) => {
      for (const token of some) {
        place.append(makeToken(token));
        if (token.text.includes("\n")) place.append(make("br"));
      }
    };
    add(tokens.slice(0, SHOWN_TOKENS));
    if (tokens.length <= SHOWN_TOKENS) return [place];
    const more = makeButton(`show all ${countOf(tokens.length, "token")}`, () => {
      add(tokens.slice(SHOWN_TOKENS));
      more.remove();
    });
    return [place, more];
  };

  const makeAllTokens = (name, tokens, makeTable) => {
    const summary = make("summary", {}, `All ${countOf(tokens.length, "token")} as a table`);
    const details = make("details", {}, summary);
    details.addEventListener("toggle", () => {
      // Made when it is looked at: a long response has thousands of tokens.
      if (details.childElementCount === 1) details.append(makeTable(`Tokens of ${name}`, tokens));
    });
    return details;
  };

  const makeTokens = (name, packed) => {
    const tokens = readTokens(packed);
    const known = tokens.filter((token) => token.change !== null);
    const sum = known.reduce((total, token) => total + token.change, 0);
    const fallen = known.filter((token) => token.change < 0).sort((a, b) => a.change - b.change);
    const words = `${countOf(known.length, "token")}, sum of changes ${showChange(sum)} nats`;
    const parts = [make("h5", {}, `${name}, token by token`), make("p", {}, words), makeLegend(), ...makeColored(tokens)];
    if (fallen.length) parts.push(makeTokenTable("Tokens that fell most", fallen.slice(0, MOST_FALLEN)));
    return [...parts, makeAllTokens(name, tokens, makeTokenTable)];
  };

  const makePulls = (name, packed) => {
    const tokens = readPulls(packed);
    const sum = tokens.reduce((total, token) => total + token.pull, 0);
    const most = tokens.filter((token) => token.pull > 0 && !token.small).sort((a, b) => b.pull - a.pull);
    const words = `${countOf(tokens.length, "token")}, sum of pulls ${showPull(sum)}; above 0: lowering the token lowers the preferred response`;
    const parts = [make("h5", {}, `${name}, pull of each token`), make("p", {}, words), makePullLegend(), ...makeColored(tokens)];
    if (most.length) parts.push(makePullTable("Tokens that pull most", most.slice(0, MOST_FALLEN)));
    return [...parts, makeAllTokens(name, tokens, makePullTable)];
  };

  // ---- A table of rows ----

  class Rows {
    constructor(table) {
      this.table = table;
      this.name = table.name;
      this.numbers = new Map();
      table.ids.forEach((id, row) => this.numbers.set(id, row));
      this.query = "";
      this.ranges = new Map();
      this.sorted = { column: table.first === NONE ? null : table.first, descending: false };
      this.opened = null;
      this.place = document.getElementById(`rows-${table.name}`);
      this.build();
    }

    build() {
      const { table } = this;
      const label = make("label", { for: `search-${table.name}` }, "Search ids and texts ");
      this.search = make("input", { type: "search", id: `search-${table.name}`, autocomplete: "off", spellcheck: "false" });
      let timer = 0;
      this.search.addEventListener("input", () => {
        clearTimeout(timer);
        timer = setTimeout(() => this.find(this.search.value), WAIT_MS);
      });
      const views = ["lowest", "median", "highest"].map((view) =>
        makeButton(view, () => this.look(view), { "data-view": view }),
      );
      this.viewed = make("span", { id: `viewed-${table.name}` });
      this.views = make("div", { role: "group", "aria-labelledby": `viewed-${table.name}` }, this.viewed, " ", ...views);
      this.chips = make("div", { class: "chips" });
      this.status = make("p", { role: "status" });
      const tools = make("div", { class: "tools" }, make("div", {}, label, this.search), this.views);
      this.heads = make("tr");
      this.body = make("tbody");
      const caption = make("caption", { class: "unseen" }, table.title);
      this.grid = make("table", { class: "grid" }, caption, make("thead", {}, this.heads), this.body);
      const scroll = { class: "scroll", tabindex: "0", role: "group", "aria-label": table.title };
      const paper = make("p", { class: "paper" }, "On paper the table has its first eight columns.");
      this.before = makeButton(`${STEP} before`, () => this.extend(-STEP));
      this.more = makeButton(`${STEP} more`, () => this.extend(STEP));
      this.place.append(tools, this.chips, this.status, this.before, make("div", scroll, this.grid), this.more, paper);
      this.buildHeads();
    }

    buildHeads() {
      const { columns, texts } = this.table;
      const titles = [["id", "text"], ...columns.map((column) => [column.title, column.kind])];
      this.sorters = titles.map(([title, kind], at) => {
        const button = makeButton(title, () => this.sort(at - 1));
        button.append(make("span", { class: "arrow", "aria-hidden": "true" }));
        return make("th", { scope: "col", class: kind === "number" && "number" }, button);
      });
      const sample = texts.length ? [make("th", { scope: "col" }, texts[0].name)] : [];
      this.heads.append(...this.sorters, ...sample);
      this.width = this.heads.childElementCount;
    }

    // ---- Which rows, and in which order ----

    find(query) {
      this.query = query.toLowerCase();
      this.update();
    }

    // What is searched, made when it is first needed.
    listSearched() {
      const { ids, columns, texts } = this.table;
      const cells = [...columns.filter((column) => column.kind === "text"), ...texts];
      this.searched ??= ids.map((id, row) =>
        [id, ...cells.map((column) => data.strings[column.values[row]] ?? "")].join("\n").toLowerCase(),
      );
      return this.searched;
    }

    sort(column) {
      const again = this.sorted.column === column;
      this.sorted = { column, descending: again && !this.sorted.descending };
      this.update();
    }

    look(view) {
      this.sorted.descending = view === "highest";
      this.update(view);
    }

    filter(column, range) {
      if (range) this.ranges.set(column, range);
      else this.ranges.delete(column);
      this.update();
    }

    isShown(row) {
      for (const [column, { from, to, closed }] of this.ranges) {
        const value = this.table.columns[column].values[row];
        if (value === null || value < from || value > to || (value === to && !closed)) return false;
      }
      return this.query === "" || this.listSearched()[row].includes(this.query);
    }

    // What a cell is sorted by; null where it is missing, which comes last either way.
    read(column, row) {
      if (column === ID) return this.table.ids[row];
      const { kind, values } = this.table.columns[column];
      if (kind !== "text") return values[row];
      return values[row] === NONE ? null : data.strings[values[row]];
    }

    order() {
      const rows = this.table.ids.map((_, row) => row).filter((row) => this.isShown(row));
      const { column, descending } = this.sorted;
      if (column === null) return { rows, known: rows.length };
      const values = new Map(rows.map((row) => [row, this.read(column, row)]));
      const known = rows.filter((row) => values.get(row) !== null);
      const isText = typeof values.get(known[0]) === "string";
      const compare = isText ? collator.compare : (a, b) => a - b;
      const sign = descending ? -1 : 1;
      known.sort((a, b) => sign * compare(values.get(a), values.get(b)) || a - b);
      return { rows: [...known, ...rows.filter((row) => values.get(row) === null)], known: known.length };
    }

    // ---- What is drawn ----

    update(view = "") {
      const { rows, known } = this.order();
      this.rows = rows;
      const start = view === "median" ? Math.max(0, Math.floor(known / 2) - STEP / 2) : 0;
      this.draw(start, start + STEP, view);
    }

    draw(start, end, view = "") {
      this.start = Math.max(0, start);
      this.end = Math.min(this.rows.length, end);
      this.body.replaceChildren(...this.rows.slice(this.start, this.end).map((row) => this.makeRow(row)));
      if (this.opened !== null) this.lineOf(this.opened)?.after(this.makeOpened(this.opened));
      this.drawHeads(view);
      this.drawChips();
      this.drawStatus();
    }

    // Rows before or after those that are shown; where the button vanishes, the first new row has the focus.
    extend(by) {
      const [start, end] = [this.start, this.end];
      if (by < 0) {
        this.start = Math.max(0, start + by);
        this.body.prepend(...this.rows.slice(this.start, start).map((row) => this.makeRow(row)));
      } else {
        this.end = Math.min(this.rows.length, end + by);
        this.body.append(...this.rows.slice(end, this.end).map((row) => this.makeRow(row)));
      }
      const button = by < 0 ? this.before : this.more;
      this.drawStatus();
      if (button.hidden) this.lineOf(this.rows[by < 0 ? this.start : end]).querySelector("a").focus();
    }

    lineOf(row) {
      return this.body.querySelector(`[data-row="${row}"]`);
    }

    makeRow(row) {
      const { ids, columns, texts } = this.table;
      const link = make("a", { href: this.linkOf(row), "aria-expanded": String(this.opened === row) }, ids[row]);
      const line = make("tr", { "data-row": row }, make("th", { scope: "row", dir: "auto" }, link));
      for (const column of columns) {
        const cell = show(column, row, 4);
        const isText = column.kind === "text" && typeof cell === "string";
        line.append(
          isText
            ? make("td", { dir: "auto" }, shorten(cell, CELL_TEXT))
            : make("td", { class: column.kind === "number" && "number" }, cell),
        );
      }
      if (texts.length) {
        const number = texts[0].values[row];
        const sample = number >= 0 ? shorten(data.strings[number], CELL_TEXT) : number === NONE ? missing() : "left out";
        line.append(make("td", { class: "sample", dir: "auto" }, sample));
      }
      return line;
    }

    drawHeads(view) {
      const { column, descending } = this.sorted;
      this.sorters.forEach((head, at) => {
        if (at - 1 === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      const kind = this.table.columns[column]?.kind;
      this.views.hidden = kind !== "number";
      if (kind === "number") this.viewed.replaceChildren(`By ${this.table.columns[column].title}:`);
      for (const button of this.views.querySelectorAll("button")) {
        button.setAttribute("aria-pressed", String(button.dataset.view === view));
      }
    }

    drawChips() {
      this.chips.replaceChildren(
        ...[...this.ranges].map(([column, { from, to }]) => {
          const words = `${this.table.columns[column].title}: ${round(from, 5)} to ${round(to, 5)}`;
          const act = () => {
            this.filter(column, null);
            this.search.focus();
          };
          return makeButton(`${words} ✕`, act, { "aria-label": `Remove the filter ${words}` });
        }),
      );
    }

    drawStatus() {
      const all = this.table.ids.length;
      const found = this.rows.length;
      const shown = this.end - this.start;
      const which = this.start === 0 ? count(shown) : `${count(this.start + 1)} to ${count(this.end)}`;
      const of = found === all ? countOf(all, "row") : `${countOf(found, "row")} that match, of ${count(all)}`;
      this.status.replaceChildren(`Showing ${this.start === 0 ? "" : "rows "}${which} of ${of}`);
      this.before.hidden = this.start === 0;
      this.more.hidden = this.end === found;
    }

    // ---- One row, opened ----

    linkOf(row) {
      const id = this.table.ids[row];
      const first = views.find((view) => view.numbers.has(id));
      return `#${first === this || !first ? "pair" : this.name}=${encodeURIComponent(id)}`;
    }

    open(row) {
      this.close();
      this.opened = row;
      if (!this.rows.includes(row)) {
        this.search.value = "";
        this.query = "";
        this.ranges.clear();
        this.update();
      }
      if (!this.lineOf(row)) {
        const at = this.rows.indexOf(row);
        this.draw(at - STEP / 2, at + STEP / 2);
      }
      const line = this.lineOf(row);
      line.querySelector("a").setAttribute("aria-expanded", "true");
      if (!this.openedLine) line.after(this.makeOpened(row));
      line.scrollIntoView({ block: "start" });
      this.openedLine.querySelector("h4").focus({ preventScroll: true });
    }

    close() {
      if (this.opened === null) return;
      const link = this.lineOf(this.opened)?.querySelector("a");
      const hadFocus = this.openedLine?.contains(document.activeElement);
      link?.setAttribute("aria-expanded", "false");
      this.openedLine?.remove();
      this.opened = null;
      if (hadFocus) link?.focus();
    }

    get openedLine() {
      return this.body.querySelector(".opened-line");
    }

    makeOpened(row) {
      const { ids, columns } = this.table;
      const facts = columns.map((column) =>
        make("div", {}, make("dt", {}, column.title), make("dd", { dir: "auto" }, show(column, row, 5))),
      );
      const buttons = make("p", { class: "buttons" });
      buttons.append(
        makeButton("copy link", () => this.copyLink(row, buttons)),
        makeButton("close", leave, { "aria-keyshortcuts": "Escape" }),
      );
      const head = make("h4", { tabindex: "-1", dir: "auto" }, ids[row]);
      const parts = [head, buttons, make("dl", {}, ...facts), ...this.makeTexts(row), ...this.makeTokens(row)];
      const cell = make("td", { colspan: this.width }, make("div", { class: "opened" }, ...parts));
      return make("tr", { class: "opened-line" }, cell);
    }

    makeTexts(row) {
      const { texts } = this.table;
      if (texts.some((text) => text.values[row] === LEFT_OUT)) return [tellLeftOut("texts")];
      return texts.flatMap((text) => {
        const number = text.values[row];
        return [make("h5", {}, text.name), number === NONE ? missing() : makeText(data.strings[number])];
      });
    }

    makeTokens(row) {
      const { tokens } = this.table;
      if (tokens.some((response) => response.values[row] === 0)) return [tellLeftOut("tokens")];
      return tokens.flatMap(({ name, values }) => {
        if (values[row] === null) return [];
        return values[row].length === 2 ? makePulls(name, values[row]) : makeTokens(name, values[row]);
      });
    }

    copyLink(row, place) {
      const link = new URL(this.linkOf(row), location.href).href;
      const showLink = () => {
        place.querySelector("input")?.remove();
        const input = make("input", { readonly: true, value: link, "aria-label": "Link to this row" });
        place.append(input);
        input.select();
      };
      const told = make("span", { role: "status" });
      if (!navigator.clipboard) return showLink();
      place.append(told);
      navigator.clipboard.writeText(link).then(() => told.append(" copied"), showLink);
    }
  }

  const tellLeftOut = (kind) => {
    const words = `The ${kind} of this row were left out to keep the page under ${data.size}.`;
    return make("p", { class: "left-out" }, words);
  };

  // ---- Links: #pair=ID is the first table that has the row, #TABLE=ID a certain one ----

  const views = [];

  const decode = (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  };

  const follow = () => {
    const [, name, encoded] = /^#([A-Za-z0-9-]+)=(.*)$/s.exec(location.hash) ?? [];
    for (const view of views) view.close();
    told.replaceChildren();
    if (name === undefined) return;
    const id = decode(encoded);
    const named = views.find((view) => view.name === name);
    const view = named ?? (name === "pair" ? views.find((some) => some.numbers.has(id)) : undefined);
    if (view?.numbers.has(id)) view.open(view.numbers.get(id));
    else told.replaceChildren("This page has no row ", make("bdi", {}, shorten(id, CELL_TEXT)), ".");
  };

  // Close the row: its link is no longer the address.
  const leave = () => {
    if (location.hash.includes("=")) history.pushState(null, "", location.pathname + location.search);
    follow();
  };

  const followBar = (bar) => {
    const { table, column, id, from, to } = bar.dataset;
    const view = views.find((some) => some.name === table);
    if (!view) return;
    if (id !== undefined) {
      location.hash = `${table}=${encodeURIComponent(id)}`;
      return;
    }
    const at = view.table.columns.findIndex((some) => some.name === column);
    if (at < 0) return;
    const others = [...(bar.closest("svg") ?? document).querySelectorAll(".bar")];
    // A bin holds its lower end, and the last one its upper end too.
    const closed = !others.some((other) => other.dataset.column === column && Number(other.dataset.from) === Number(to));
    view.filter(at, { from: Number(from), to: Number(to), closed });
    location.hash = `rows-${table}`;
    view.place.focus();
  };

  const told = make("p", { role: "status", class: "told" });

  const start = () => {
    if (!data.tables.length) return;
    document.querySelector("#page-rows > h2").after(told);
    for (const table of data.tables) views.push(new Rows(table));
    for (const view of views) view.update();
    document.addEventListener("click", (event) => {
      const bar = event.target.closest("[data-table]");
      if (bar) followBar(bar);
      const link = event.target.closest("tr[data-row] a");
      // The link of an open row closes it.
      if (link?.getAttribute("aria-expanded") === "true") {
        event.preventDefault();
        leave();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && views.some((view) => view.opened !== null)) leave();
      const bar = event.target.closest?.("[data-table]");
      if (bar && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        followBar(bar);
      }
    });
    window.addEventListener("hashchange", follow);
    follow();
  };

  start();
})();
